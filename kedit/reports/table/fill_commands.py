"""Which command fills a place of a table that is still empty, and which no command fills yet."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kedit.common.paths import ROOT
from kedit.reports.table.layout import Layout, place_of
from kedit.results.abilities import ACCURACY
from kedit.results.measured import AVERAGE, KNOWEDIT_SETS
from kedit.results.samples import COSTS, UNEDITED
from kedit.results.scores import PAPER


def command(record: Mapping[str, Any], layout: Layout, seeds: Sequence[int] = (), options: str = "") -> str:
    """The command that runs this number's cell, for a place that the sweep's own axes may not have; with the `options`
    of the cells beside it."""
    choices = {"model": [record["model"]], "dataset": _datasets(record, layout), "editor": [_editor(record, layout)]}
    T = None if pd.isna(record["T"]) else str(record["T"])
    if T and (T in layout.axes.get("T", ()) or seeds):
        choices["T"] = [T]
    if len(layout.axes.get("setting", ())) > 1:
        choices["setting"] = [record["setting"]]
    if list(seeds) not in ([], [0]):
        choices["seed"] = [str(seed) for seed in seeds]
    return _joined(layout, choices, options)


def _joined(layout: Layout, choices: Mapping[str, Sequence[str]], options: str = "") -> str:
    axes = [f"{key}={','.join(some)}" for key, some in choices.items()]
    more = layout.more if layout.more not in options else ""
    return " ".join(filter(None, [f"kedit sweeps={layout.sweep}", *axes, options, more]))


def _datasets(record: Mapping[str, Any], layout: Layout) -> list[str]:
    """Those whose edits are needed."""
    if layout.benchmarks:
        edited = layout.edited.get(place_of(record))
        return [edited] if edited else list(layout.axes["dataset"])
    return list(KNOWEDIT_SETS) if record["dataset"] == AVERAGE else [record["dataset"]]


def _editor(record: Mapping[str, Any], layout: Layout) -> str:
    """The conf editor that fills a printed one; any fills the unedited model's."""
    runs = layout.axes.get("editor", ())
    if record["editor"] == UNEDITED:
        return next((editor for editor in runs if has("editor", editor)), "ft_m")
    if record["editor"] in runs:
        return record["editor"]
    return next((ours for ours, theirs in layout.same_as.items() if theirs == record["editor"]), record["editor"])


def has(group: str, name: str) -> bool:
    return (ROOT / "conf" / group / f"{name}.yaml").exists()


def why_not(record: Mapping[str, Any], layout: Layout) -> str:
    """What kedit lacks for this number; empty where a command fills it."""
    measures = PAPER[layout.profile]
    known = {ACCURACY} if layout.benchmarks else {*measures.kinds, measures.combined, *COSTS}
    if record["metric"] not in known:
        return f"kedit does not measure {record['metric']} yet"
    choices = [("editor", _editor(record, layout)), ("model", record["model"])]
    choices += [("dataset", dataset) for dataset in _datasets(record, layout)]
    return next((f"kedit has no {group} {name} yet" for group, name in choices if not has(group, name)), "")


def lacks(record: Mapping[str, Any], layout: Layout) -> list[str]:
    """Files and models that this number's cells did not find when they were last run or checked."""
    cells = [(record["model"], dataset, _editor(record, layout)) for dataset in _datasets(record, layout)]
    return list(dict.fromkeys(name for cell in cells for name in (layout.missing or {}).get(cell, ())))


def hint(record: Mapping[str, Any], layout: Layout) -> str:
    """What fills an empty place of the paper, or why nothing does."""
    if reason := why_not(record, layout):
        return reason
    names = lacks(record, layout)
    return f"it lacks {', '.join(names)}: {_status(layout)}" if names else command(record, layout)


def summary(missing: Sequence[Mapping[str, Any]], layout: Layout) -> tuple[list[str], list[str]]:
    """(commands that fill all of these places, sentences about those that none fills). Finished cells are skipped."""
    reasons = [why_not(record, layout) for record in missing]
    possible = [record for record, reason in zip(missing, reasons, strict=True) if not reason]
    lacking = dict.fromkeys(name for record in possible for name in lacks(record, layout))
    fillable = [record for record in possible if not lacks(record, layout)]
    commands = [_joined(layout, _axes(fillable, layout))] if fillable else []
    said = _gathered([reason for reason in dict.fromkeys(reasons) if reason])
    if lacking:
        said.append(f"{len(possible) - len(fillable)} numbers lack {', '.join(lacking)}: {_status(layout)}")
    return commands, said


def _status(layout: Layout) -> str:
    return f"python -m kedit.status {layout.sweep} says where they come from"


def _gathered(reasons: Sequence[str]) -> list[str]:
    """ "kedit has no editor rome yet" and "... memit yet" in one."""
    said: dict[str, list[str]] = {}
    for reason in reasons:
        start, _, name = reason.removesuffix(" yet").rpartition(" ")
        said.setdefault(start, []).append(name)
    return [f"{start} {', '.join(names)} yet" for start, names in said.items()]


def how(commands: Sequence[str], reasons: Sequence[str], layout: Layout) -> str:
    """The end of a sentence about empty places: what fills them, and what cannot be filled yet and why."""
    checked = "" if layout.missing is not None else f"; python -m kedit.status {layout.sweep} --check: what it needs"
    filled = f" (the command below fills it{checked})" if commands else ""
    return filled + (f"; {'; '.join(reasons)}" if reasons else "")


def _axes(records: Sequence[Mapping[str, Any]], layout: Layout) -> dict[str, list[str]]:
    """The axes of which these places need only a part."""
    everything = [record for record in layout.printed.to_dict("records") if not why_not(record, layout)]
    found = {}
    for key in ("model", "dataset", "editor", "T"):
        needed, all_of_it = _along(key, records, layout), _along(key, everything, layout)
        if needed < all_of_it and (key != "T" or all_of_it <= set(layout.axes.get("T", ()))):
            found[key] = sorted(needed)
    return found


def _along(key: str, records: Sequence[Mapping[str, Any]], layout: Layout) -> set[str]:
    if key == "editor":
        return {_editor(record, layout) for record in records if record["editor"] != UNEDITED}
    if key == "dataset":
        return {dataset for record in records for dataset in _datasets(record, layout)}
    return {str(record[key]) for record in records if not pd.isna(record[key])}
