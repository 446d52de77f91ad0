"""Scoring with the gate of an editor that acts inside a pass, beside scoring without it.

Both score the same questions with the same model, interleaved; the gate is switched off by `lm.without_interventions`.
Two ways each: as a run does, which keeps what lies below the edited layers, and with whole passes, of which a gate is a
smaller share.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from benchmarks.bench import Bench, Timing
from benchmarks.gating import wise_of
from kedit.editors.gated.base import Gated
from kedit.editors.gated.counterfactual import Counterfactual
from kedit.editors.gated.grace import GRACE
from kedit.editors.gated.melo import MELO
from kedit.editors.gated.scope import ScopeClassifier
from kedit.editors.gated.serac import SERAC
from kedit.lm import LM
from kedit.lm.sentence_encoder import MINILM, load
from kedit.losses.cross_entropy import CrossEntropy

KEPT = {True: "lower layers kept", False: "whole passes"}


def gated_scoring(bench: Bench, repeats: int, questions: int = 200) -> list[list[str]]:
    """Lines: seconds without the gate (left) and with it (right)."""
    torch.manual_seed(0)
    asked = tuple(zip(*bench.material.questions[:questions], strict=True))
    wise, melo = (
        wise_of(1),
        MELO(loss=CrossEntropy(), steps=1, lr=1e-3, radius=0.5, rank=2, part="mlp_in", depth=35 / 48),
    )
    editors: list[tuple[str, Gated, float | None]] = [
        ("GRACE", GRACE(steps=1, lr=1.0, radius=1.0), None),
        ("MELO", melo, None),
        ("WISE, no prompt reads the memory", wise, 1e9),
        ("WISE, every prompt reads it", wise, 0.0),
    ]
    lines = []
    for name, editor, ratio in editors:
        if ratio is not None:
            wise.ratio = ratio
        lines += _gate(bench, repeats, editor, asked, name)
    return lines + _serac(bench, repeats, asked)


def _gate(bench: Bench, repeats: int, editor: Gated, asked: Sequence[Sequence[str]], name: str) -> list[list[str]]:
    """WISE trains a memory of one edit, the others have an entry for each edit of the material."""
    lm, lines = bench.lm, []
    edits = bench.edits[:1] if name.startswith("WISE") else bench.edits[:40]
    for kept, how in KEPT.items():
        lm.cache_lower_layers(list(editor.edited_parameters(lm)) if kept else [], *asked)
        editor.edit(lm, edits)
        timing = _interleaved(bench, repeats, asked, lm.without_interventions)
        lm.restore()
        lines.append(timing.line(f"{name}, {len(edits)} edit{'s' * (len(edits) > 1)}; {how}"))
    lm.cache_lower_layers([])
    return lines


def _interleaved(
    bench: Bench, repeats: int, asked: Sequence[Sequence[str]], off: Callable[[], AbstractContextManager[None]]
) -> Timing:
    """Seconds of scoring without (first) and with, by turns."""
    timing, said = Timing(), list[list[list[int]]]()

    def score(where: AbstractContextManager[None]) -> float:
        with where:
            return bench.timed(lambda: said.append([one.pred for one in bench.lm.answer(*asked)]))

    for i in range(repeats + 1):
        times = score(off()), score(nullcontext())
        if i:  # the first warms up
            timing.add(*times)
    timing.same = all(one == said[0] for one in said[::2])  # those without: the gate leaves nothing behind
    return timing


# --- SERAC -----------------------------------------------------------------------------------------------------------


class Embedded(ScopeClassifier):
    """MiniLM as it is: training moves its weights, not its cost."""

    def __init__(self, threshold: float):
        self.threshold, self._known = threshold, {}
        self.encode = load(MINILM)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self.encode(new).cpu(), strict=True)
        return torch.stack([self._known[text] for text in texts])


class Lent(Counterfactual):
    """The model under test once more."""

    def __init__(self, lm: LM):
        self._lm = LM(lm.model, lm.text.tokenizer)  # type: ignore[arg-type]


def _serac(bench: Bench, repeats: int, asked: Sequence[Sequence[str]]) -> list[list[str]]:
    """The classifier alone, and the second model (as large as the first) alone: what each adds to scoring without."""
    lm, parts = bench.lm, {"classifier (MiniLM)": Timing(), "second model, every prompt in scope": Timing()}
    for i in range(repeats + 1):
        without = bench.timed(partial(lm.answer, *asked))
        for timing, threshold in zip(parts.values(), (1.0, 0.0), strict=True):
            editor = SERAC(scope=Embedded(threshold), counterfactual=Lent(lm))
            editor.edit(lm, bench.edits[:40])
            looked_up = bench.timed(partial(lm.routed, asked[0]))
            scored = bench.timed(partial(lm.answer, *asked))  # every prompt is looked up already
            lm.restore()
            if i:
                timing.add(without, without + looked_up if threshold else scored)
    return [
        timing.line(f"SERAC, {len(bench.edits[:40])} edits: {part}; whole passes") for part, timing in parts.items()
    ]
