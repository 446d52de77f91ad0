"""Retrieval and filter on real records: what a memory of many edits returns, and what the filter lets pass."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from benchmarks.memory import kilobytes
from kedit.common.paths import ROOT
from kedit.data import Dataset, knowedit, load
from kedit.data.dataset import drop_leaking
from kedit.data.files import parse_file, recognise
from kedit.editors.incontext.augmentation import Form, qa
from kedit.editors.incontext.edit_memory import EditMemory, Hit
from kedit.editors.incontext.filter import Filter
from kedit.editors.incontext.vector_index import Index
from kedit.lm.sentence_encoder import MINILM
from kedit.lm.sentence_encoder import load as load_encoder

K = 4  # KEDAS
ASKED = ("reliability", "generality", "portability", "locality")
THRESHOLDS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
Lines = list[list[str]]


def index(n: int = 100_000, width: int = 384, queries: int = 64, seed: int = 0) -> Lines:
    """Random unit vectors: what an entry costs, and whether its neighbours are those of float64."""
    generator = torch.Generator().manual_seed(seed)
    vectors, asked = (_units(torch.randn(rows, width, generator=generator)) for rows in (n, queries))
    store = Index()
    store.add(vectors)
    seconds = min(_timed(lambda: store.nearest(asked, K)) for _ in range(5))
    exact = (asked.double() @ vectors.double().T).topk(K).indices
    same = int((store.nearest(asked, K)[1] == exact).sum())
    return [
        [f"{n} vectors of width {width}: bytes an entry", f"{store.vectors.untyped_storage().nbytes() / n:.0f}"],
        [f"the {K} nearest for {queries} queries together, CPU milliseconds", f"{1000 * seconds:.0f}"],
        ["places that float64 ranks so too", f"{same} of {exact.numel()}"],
    ]


def encoding(texts: Sequence[str]) -> list[str]:
    encode = load_encoder(MINILM)
    encode(texts[:32])
    seconds = _timed(lambda: encode(texts))
    return [f"{len(texts)} texts embedded by MiniLM, texts in a CPU second", f"{len(texts) / seconds:.0f}"]


@dataclass
class Tally:
    """Of the queries of a kind."""

    n: int = 0
    found: int = 0  # the right edit is among the nearest
    routed: int = 0  # something of the nearest is accepted
    right: int = 0  # the nearest that is accepted is the right edit

    def count(self, texts: Sequence[str], accepted: Sequence[str], right: set[str]) -> None:
        """A query with what was retrieved and accepted for it, the nearest first."""
        self.n += 1
        self.found += not right.isdisjoint(texts)
        self.routed += bool(accepted)
        self.right += bool(accepted) and accepted[0] in right

    def line(self, kind: str) -> list[str]:
        found, routed, right = (f"{100 * part / self.n:.1f}" for part in (self.found, self.routed, self.right))
        return [kind, str(self.n), *(("", routed, "") if kind.startswith("locality") else (found, routed, right))]


@dataclass(frozen=True)
class Judged:
    """What was retrieved for a query, the nearest first: is it the case's own edit, and is it relevant?"""

    kind: str
    found: Sequence[tuple[bool, float]]

    def routed(self, threshold: float) -> bool:
        return any(p >= threshold for _, p in self.found)

    def right(self, threshold: float) -> bool:
        return next((own for own, p in self.found if p >= threshold), False)


def curve(judged: Sequence[Judged], chosen: float) -> Lines:
    """Recall and locality of routing at each threshold, and at the one that the filter has."""
    lines = []
    for threshold in sorted({*THRESHOLDS, chosen}):
        shares = [
            [getattr(one, how)(threshold) for one in judged if one.kind.startswith(kinds)]
            for kinds in ("reliability", "generality", "portability", "locality")
            for how in (("routed", "right") if kinds != "locality" else ("routed",))
        ]
        texts = [f"{100 * sum(share) / len(share):.1f}" if share else "" for share in shares]
        texts[-1] = f"{100 - float(texts[-1]):.1f}" if texts[-1] else ""
        lines.append([f"{threshold:.3g}" + (" (the filter's)" if threshold == chosen else ""), *texts])
    return lines


def routing(
    data: str, train: Sequence[str], others: str, options: DictConfig, asked_cases: int | None = None
) -> tuple[Lines, Lines, Lines]:
    """All edits of `data` in one memory with five statements of the file `others` for each, of which none is about a
    subject that is asked about; a filter learnt from the files `train`, with `options` over its yaml. A line for each
    kind of query (of the first `asked_cases` cases), one for each cost, and one for each threshold."""
    dataset = load(knowedit.parse, path=data, train_path=train, train=True, drop_empty_targets=True)
    memory, gate = EditMemory(k=K), _filter(options)
    memory.load()
    gate.fit(dataset.train)
    stored = [qa(edit) for case in dataset.cases for edit in case.edits]
    stored += _distractors(Path(others), dataset, 5 * len(stored))
    cases = dataset.cases[:asked_cases]
    asked = [(case, probe) for case in cases for probe in case.probes if probe.kind in ASKED]
    hits: list[list[Hit]] = []
    pairs: list[tuple[str, str]] = []

    def retrieve() -> None:
        hits.extend(memory.nearest([probe.prompt for _, probe in asked]))
        pairs.extend(
            (probe.prompt, hit.entry.text) for (_, probe), near in zip(asked, hits, strict=True) for hit in near
        )

    costs = [
        [f"{len(stored)} strings embedded, CPU seconds", f"{_timed(lambda: memory.add([[s] for s in stored])):.0f}"],
        [f"{len(asked)} queries embedded and their {K} nearest found, CPU seconds", f"{_timed(retrieve):.0f}"],
        [f"{len(set(pairs))} pairs judged, CPU seconds", f"{_timed(lambda: gate(pairs)):.0f}"],
        *([f"filter: {name}", str(told)] for name, told in gate.fit_report().items()),
        ["peak memory, MB", f"{kilobytes('VmHWM') / 1024:.0f}"],
    ]
    tallies: dict[str, Tally] = defaultdict(Tally)
    judged = []
    for (case, probe), near in zip(asked, hits, strict=True):
        texts, right = [hit.entry.text for hit in near], {qa(edit).text for edit in case.edits}
        chances = gate([(probe.prompt, text) for text in texts])
        accepted = [text for text, p in zip(texts, chances, strict=True) if p >= gate.threshold]
        tallies[f"{probe.kind} {probe.group}".rstrip()].count(texts, accepted, right)
        judged.append(Judged(probe.kind, [(text in right, p) for text, p in zip(texts, chances, strict=True)]))
    lines = [tallies[kind].line(kind) for kind in sorted(tallies)]
    return lines, costs, curve(judged, gate.threshold)


def _filter(options: DictConfig) -> Filter:
    """Of conf/editor/filter: the option `yaml` names the file, by default KEDAS's."""
    folder, options = ROOT / "conf/editor/filter", options.copy()
    files = [folder / "cross_encoder.yaml", folder / f"{options.pop('yaml', 'cross_encoder')}.yaml"]
    yamls = [OmegaConf.load(file) for file in files]
    merged = OmegaConf.merge(*yamls, options)
    merged.pop("defaults", None)
    return instantiate(merged, _convert_="all")


def _distractors(path: Path, dataset: Dataset, n: int) -> list[Form]:
    """The first `n` facts of a file that share no subject and no question with what is asked."""
    cases = parse_file(recognise(path).parse, path, True, Counter())
    return [qa(edit) for case in drop_leaking(cases, dataset.cases, Counter()) for edit in case.edits][:n]


def _units(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _timed(run: Any) -> float:
    """CPU seconds of this process: others may be at work."""
    started = time.process_time()
    run()
    return time.process_time() - started
