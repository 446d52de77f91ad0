"""What was answered before and after editing, question by question: python -m kedit.examples SWEEP.

`--printed` shows the questions of a paper's own table, and what it prints: KDPO's Table 4 (the cells of kdpo_table3)
asks each edit's prompt, KEDAS's Table 10 (kedas_table4) what must not change and what follows from the edit. Needs no
model; the prompts are read from the cells' dataset again.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pandas as pd
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedit.cases import KINDS, Case, Kind, questions_of
from kedit.common.errors import InputError
from kedit.common.terminal import use_safe_output
from kedit.papers import FOLDER
from kedit.reports.table import formats
from kedit.results.cells import Cell, find, tested

SAME = ("model", "dataset", "setting", "T", "seed", "order_seed", "overrides")  # what one table's editors share
PLACE = ["case", "kind", "group", "probe"]
TEXT = {"forced": "pred", "generate": "generated"}
PRINTED: dict[str, list[Kind]] = {"kdpo_table4": ["reliability"], "kedas_table10": ["locality", "portability"]}
RIGHT, WRONG = "✓", "✗"
Show = Callable[[str, pd.DataFrame], None]
log = logging.getLogger(__name__)


def cases_of(cell: Cell) -> dict[str, Case]:
    """The cell's cases by id, built again from its config."""
    return _cases(yaml.safe_dump(cell.config["dataset"]))


@cache
def _cases(config: str) -> dict[str, Case]:
    from hydra.utils import instantiate

    return {case.id: case for case in instantiate(yaml.safe_load(config), _convert_="all")(train=False).cases}


def outputs(cell: Cell, when: str, scoring: str) -> pd.Series:
    """What was answered at the last test (when="test") or by the unedited model ("before"), marked right or wrong."""
    rows = cell.rows
    rows = rows[(rows["when"] == when) & (rows["scoring"] == scoring) & rows["gold"].notna()]
    if rows.empty:
        raise InputError(
            f"{cell.directory} has no answers scored {scoring}; run it with eval.scoring=[forced,generate]"
        )
    rows = rows.drop_duplicates(PLACE, keep="last").set_index(PLACE)
    return rows[TEXT[scoring]].str.strip() + " " + rows["exact"].map({1: RIGHT, 0: WRONG})


def examples(cells: Sequence[Cell], kinds: Sequence[Kind], *, scoring: str = "forced") -> pd.DataFrame:
    """A line for each question of these kinds: prompt, wanted answer, and what each model answered.

    The cells differ in their editor only. Wanted is the dataset's answer; of locality, what the unedited model answers.
    """
    answers = _answers(cells, scoring)
    [first, *_] = answers
    before = outputs(first, "before", scoring)
    table = _questions(first, list(dict.fromkeys(case for case, *_ in before.index)), kinds)
    table["(unedited)"] = before
    for cell, said in answers.items():
        table[cell.meta["editor"]] = said
    return table.dropna(subset=["(unedited)"]).fillna("-").reset_index()


def _answers(cells: Sequence[Cell], scoring: str) -> dict[Cell, pd.Series]:
    """What each edited model answered; a cell without such answers is left out, unless all are."""
    found: dict[Cell, pd.Series] = {}
    for cell in cells:
        try:
            found[cell] = outputs(cell, "test", scoring)
        except InputError as error:
            if cell is cells[-1] and not found:
                raise
            log.warning("left out: %s", error)
    return found


def _questions(cell: Cell, ids: Sequence[str], kinds: Sequence[Kind]) -> pd.DataFrame:
    """Prompt and wanted answer of each question of these kinds, by PLACE."""
    known = cases_of(cell)
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for id in ids:
        if id not in known:
            raise InputError(f"{cell.directory}: its dataset has no case {id} any more; give it the file that it had")
        for q in sorted(questions_of(known[id], tuple(kinds)), key=lambda q: list(kinds).index(q.probe.kind)):
            place = (id, q.probe.kind, q.probe.group, q.index)
            lines[place] = {"prompt": q.probe.prompt, "wanted": q.probe.answers[0]}
    if not lines:
        raise InputError(f"{cell.directory}: its dataset asks no {' and no '.join(kinds)}; choose other --kinds")
    table = pd.DataFrame.from_dict(lines, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=PLACE)
    return table


def choose(table: pd.DataFrame, wanted: Sequence[str], n: int) -> pd.DataFrame:
    """The cases that an id or a part of one of their prompts names; without any the first `n`. Of several names some
    may be of no case here."""
    ids = list(dict.fromkeys(table["case"]))
    if not wanted:
        return table[table["case"].isin(ids[:n])]
    plain = table["prompt"].map(_plain)
    named = [(table["case"] == text) | plain.str.contains(_plain(text), regex=False) for text in wanted]
    found = pd.concat(named, axis=1).any(axis=1)
    if not found.any():
        raise InputError(f"{', '.join(map(repr, wanted))}: no case has this id or asks this; the first is {ids[0]}")
    return table[table["case"].isin(table["case"][found])]


def _plain(text: str) -> str:
    return text.lower().replace("\u2019", "'")


def printed(name: str) -> pd.DataFrame:
    """What a paper's table of examples prints, in the form of `examples`; a mark only where the paper has one."""
    table = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    lines = []
    for case in table.get("examples", ()):  # KDPO
        said = {editor: _marked(**post) for editor, post in case["post_edit"].items()}
        asked = {"case": "", "kind": "reliability", "prompt": case["prompt"], "wanted": case["edit_target"]}
        lines.append(asked | {"(unedited)": _marked(case["pre_edit_output"])} | said)
    for kind in ("locality", "portability"):  # KEDAS
        if kind in table:
            case = table[kind]
            asked = {"case": table["edit_qa"], "kind": kind, "prompt": case.pop("query")}
            before = case.pop("original_output", "-")
            lines.append(asked | {"wanted": case.pop("ground_truth", before), "(unedited)": before} | case)
    return pd.DataFrame(lines).assign(group="", probe=0)


def _marked(output: str, correct: bool | None = None) -> str:
    return f"{output or '(empty)'}{ {None: '', True: ' ' + RIGHT, False: ' ' + WRONG}[correct] }"


def groups(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """(caption, cells that may stand in one table)."""
    together: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.tested:
            of = "{model} on {dataset}, {setting}, T={T}, seed {seed}".format(**cell.meta)
            rest = [f"{key} {cell.meta[key]}" for key in SAME[5:] if cell.meta[key]]
            together.setdefault(", ".join([of, *rest]), []).append(cell)
    yield from together.items()


def _columns(table: pd.DataFrame) -> pd.DataFrame:
    """Those that a reader needs; a kind where there are several."""
    return table.drop(columns=["group", "probe", *(["kind"] if table["kind"].nunique() == 1 else [])])


def show(caption: str, table: pd.DataFrame) -> None:
    grid = Table(box=box.SIMPLE, caption=Text(caption), caption_justify="left", show_lines=True)
    shown = _columns(table)
    for name in shown:
        grid.add_column(str(name), overflow="fold")
    for _, line in shown.iterrows():
        grid.add_row(*(Text(str(value), style="green" if str(value).endswith(RIGHT) else "") for value in line))
    Console().print(grid)


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(prog="python -m kedit.examples", description=str(__doc__))
    parser.add_argument("place", help="a sweep's name, or a directory of runs")
    parser.add_argument("--case", action="append", default=[], metavar="TEXT", help="an id, or part of a prompt")
    parser.add_argument("--kinds", nargs="+", choices=KINDS[:4], default=["reliability"], help="what is asked")
    parser.add_argument("--printed", choices=list(PRINTED), help="the questions of this table, and what it prints")
    parser.add_argument("--scoring", choices=list(TEXT), default="forced", help="whose answers are shown")
    parser.add_argument("-n", type=int, default=8, help="number of cases where none is named (8)")
    parser.add_argument("--markdown", action="store_true", help="instead of a table for the terminal")
    given = parser.parse_args()
    out = _write if given.markdown else show
    try:
        cells = list(groups(tested(find(given.place))))
        wanted, kinds = list(given.case), given.kinds
        if given.printed:
            table, kinds = printed(given.printed), PRINTED[given.printed]
            out(f"printed: {given.printed}", table)
            wanted += list(table["prompt"])
        shown = [_shown(out, caption, together, given, kinds, wanted) for caption, together in cells]
    except InputError as error:
        sys.exit(str(error))
    sys.exit(not any(shown))


def _shown(
    out: Show, caption: str, cells: Sequence[Cell], given: argparse.Namespace, kinds: Sequence[Kind], wanted: list[str]
) -> bool:
    """One set of cells; what is wrong with it is said, and the other sets are shown."""
    try:
        out(caption, choose(examples(cells, kinds, scoring=given.scoring), wanted, given.n))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return False
    return True


def _write(caption: str, table: pd.DataFrame) -> None:
    sys.stdout.write(f"{markdown(table)}\n\n{formats.plain_markdown(caption)}\n\n")


def markdown(table: pd.DataFrame) -> str:
    shown = _columns(table).astype(str)
    lines = [list(shown), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(formats.plain_markdown, line)) + " |" for line in lines)


if __name__ == "__main__":
    main()
