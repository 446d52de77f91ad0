"""What a caption must say of measured numbers: N, setting, effective T, way of scoring, seeds, what failed."""

from collections.abc import Collection, Sequence

import pandas as pd

from kedit.evaluation.metrics import metrics
from kedit.results.abilities import abilities, described
from kedit.results.cells import Cell
from kedit.results.measured import AVERAGE
from kedit.results.mixing import mixed
from kedit.results.samples import asked_T
from kedit.results.scores import Score
from kedit.results.strictness import strictly_scored


def facts(frame: pd.DataFrame, cells: Sequence[Cell], score: Score) -> list[str]:
    """Facts about these measured numbers; an average's are those of its datasets."""
    own = _own(frame)
    settings = ", ".join(map(str, dict.fromkeys(own["setting"])))
    seeds = sorted({cell.meta["seed"] for cell in cells})
    each = f" in each of the edit seeds {', '.join(map(str, seeds))}" if own["seeds"].max() > 1 else ""
    said = [f"{settings}, {_horizons(own, cells)}", f"N={_counts(own)} cases{each}", metrics()[score].caption]
    said += strictly_scored(cells) if metrics()[score].scoring == "strict" else []
    return said + _of_cells(cells)


def ability_facts(frame: pd.DataFrame, cells: Sequence[Cell], benchmarks: Collection[str]) -> list[str]:
    """Facts about numbers of benchmarks: after which edits, and what of each benchmark was asked."""
    own = _own(frame)
    settings = ", ".join(dict.fromkeys(setting for setting in own["setting"] if setting)) or cells[0].meta["setting"]
    edits = ", ".join(sorted({cell.meta["dataset"] for cell in cells}))
    said = [f"{settings} edits of {edits}, {_horizons(own, cells)}"]
    return said + asked_of_benchmarks(cells, benchmarks) + _of_cells(cells)


def asked_of_benchmarks(cells: Sequence[Cell], benchmarks: Collection[str]) -> list[str]:
    """Accuracy of what: each benchmark's N, how much of the published set that is, its examples; what memories did."""
    about = {name: asked for name, asked in described(cells).items() if name in benchmarks}
    if not about:
        return []
    versions = ", ".join(sorted({str(asked["lm_eval"]) for asked in about.values()}))
    shots = {name: asked["num_fewshot"] for name, asked in about.items()}
    same = len(set(map(str, shots.values()))) == 1
    said = [f"accuracy in % as lm-eval {versions} scores it" + (f", {_shots(*set(shots.values()))}" if same else "")]
    for name, asked in about.items():
        parts = [f"N={asked['n']}", *([] if same else [_shots(shots[name])]), *filter(None, [asked["said"]])]
        said.append(f"{name}: {', '.join(parts)}")
    return said + _routed(cells, benchmarks)


def _shots(n: object) -> str:
    return "zero-shot" if n == 0 else f"{n}-shot"


def _routed(cells: Sequence[Cell], benchmarks: Collection[str]) -> list[str]:
    """For editors with a memory or a gate, in how many of the last test's requests it acted."""
    said = []
    for cell in cells:
        lines = abilities(cell)
        if "routed" not in lines:
            continue
        last = lines[(lines["T"] == lines["T"].max()) & lines["benchmark"].isin(benchmarks)]["routed"].dropna()
        total, acted, cut = (sum(found[name] for found in last) for name in ("requests", "in_scope", "cut"))
        text = f"{cell.meta['editor']} (seed {cell.meta['seed']}) acted in {acted} of {total} requests"
        said.append(text + (f", its retriever read only a part of {cut}" if cut else ""))
    return said


def _of_cells(cells: Sequence[Cell]) -> list[str]:
    said: list[str] = []
    orders = sorted({str(cell.meta["order_seed"]) for cell in cells} - {"None"})
    options = sorted({cell.meta["overrides"] for cell in cells} - {""})
    said += [f"order seed {', '.join(orders)}"] if orders else []
    said += [f"options: {' and '.join(options)}"] if options else []
    mixes = mixed(cells)
    said += [f"mixed: {', '.join(mixes)}"] if mixes else []
    unfinished = sum(not cell.finished for cell in cells)
    said += [f"{unfinished} of {len(cells)} cells are not finished: what they have tested counts"] if unfinished else []
    return said + closings(cells) + numbers(cells) + encoders(cells) + noise(cells)


def _own(frame: pd.DataFrame) -> pd.DataFrame:
    own = frame[frame["dataset"] != AVERAGE]
    return own if len(own) else frame


def _horizons(frame: pd.DataFrame, cells: Sequence[Cell]) -> str:
    """T, and the effective one where a dataset has fewer cases."""
    Ts = sorted(set(frame["T"].dropna()))
    short = {
        f"{cell.meta['effective_T']} on {cell.meta['dataset']}"
        for cell in cells
        if asked_T(cell) in Ts and asked_T(cell) != cell.meta["effective_T"]
    }
    known = "/".join(map(str, Ts)) or "number of each dataset's cases"
    return f"effective T={known}" + (f" ({', '.join(sorted(short))})" if short else "")


def _counts(frame: pd.DataFrame) -> str:
    """Cases of each dataset in a seed; several numbers where not all editors have the same."""
    seeds = frame["seeds"].clip(lower=1)
    groups = frame.assign(n=frame["n"] / seeds).groupby(["dataset", "editor", "T"], sort=False, dropna=False)
    largest = groups["n"].max().round().astype(int)
    each = largest.groupby(level="dataset", sort=False).agg(lambda counts: "/".join(map(str, sorted(set(counts)))))
    if each.nunique() == 1:
        return str(each.iloc[0])
    return ", ".join(f"{counts} ({dataset})" for dataset, counts in each.items())


def over_seeds(seeds: Sequence[int]) -> str:
    return f", over the edit seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""


def failures(frame: pd.DataFrame) -> list[str]:
    """Edits that failed numerically and were undone: they count as they are, unedited."""
    each = _own(frame).drop_duplicates(["model", "setting", "T", "dataset", "editor"])
    counts = each.groupby("editor", sort=False)["failed"].sum().astype(int)
    return [
        f"{n} edit{'s' * (n > 1)} of {editor} failed and {'were' if n > 1 else 'was'} undone"
        for editor, n in counts[counts > 0].items()
    ]


def numbers(cells: Sequence[Cell]) -> list[str]:
    """Editors whose numbers for the model are those of other editors, or of none (meta.json: numbers, untuned)."""
    said: dict[str, None] = {}
    for cell in cells:
        editor, model = cell.meta["editor"], cell.meta["model"]
        sources = [file.rpartition("/")[0] for file in cell.meta.get("numbers", {})]
        inherited = [name for name in sources if name != editor and "/" not in name]  # solver/... is a part's own
        if cell.meta.get("untuned"):
            said[f"{editor} is untuned for {model}"] = None
        elif inherited:
            said[f"{editor} has numbers of {', '.join(inherited)} for {model}"] = None
    return list(said)


def encoders(cells: Sequence[Cell]) -> list[str]:
    """The text encoders of editors whose own network reads stored edits and queries."""
    said: dict[str, None] = {}
    for cell in cells:
        editor = cell.config.get("editor") or {}
        if "network" in editor and "memory" in editor:
            said[f"{cell.meta['editor']}'s encoder is {editor['memory']['encoder'].rpartition('/')[2]}"] = None
    return list(said)


def closings(cells: Sequence[Cell]) -> list[str]:
    """Editors that train the end-of-text token behind each answer: they learn to stop, which strict scores reward."""
    closed = dict.fromkeys(c.meta["editor"] for c in cells if (c.config.get("editor") or {}).get("append_eos"))
    return [f"{editor} trains EOS behind each answer (append_eos)" for editor in closed]


def noise(cells: Sequence[Cell]) -> list[str]:
    """Below float32 a model does not quite agree with itself; no locality can be measured more finely."""
    known = {(c.meta["model_is"]["dtype"], c.meta["noise_floor"]) for c in cells if "noise_floor" in c.meta}
    return [
        f"in {d} the unedited model agrees with itself on {100 * share:.1f} % of tokens" for d, share in sorted(known)
    ]
