"""What `python -m kedit.table` puts together: of which cells, in which views, in which format."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from kedit.common.errors import InputError
from kedit.papers import PAPERS
from kedit.reports.table import compare as versus
from kedit.reports.table import formats, plain, verdicts, views
from kedit.reports.table import routing_table as routing
from kedit.reports.table import strictness_table as strictness
from kedit.reports.table.formats import Grid
from kedit.reports.table.html import page
from kedit.reports.table.layout import Layout, layout, layouts
from kedit.reports.table.table_cells import shown
from kedit.results.abilities import benchmark_frame
from kedit.results.cells import Cell, find, tested
from kedit.results.measured import frame_of
from kedit.results.mixing import RULES, refuse_mixed
from kedit.results.samples import COSTS, samples
from kedit.results.scores import Score, profiles

ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": "html", ".htm": "html"}
TEXTS = ("fluency", "consistency")  # are scored in one way
GENERATE = "'eval.scoring=[forced,generate]'"
NEEDS = {
    "generate": f"run it with {GENERATE}",
    "magnitude": "it needs two objects that compete (eval=rome)",
    "token": "nothing was tested yet",
    "exact": "nothing was tested yet",
    "strict": "run it with a strict profile, e.g. eval=wild",
    "judged": "run it with a strict profile and a judge, e.g. eval=wild 'eval/judges=[endpoint]'",
}
Given = argparse.Namespace


@dataclass(frozen=True)
class Made:
    """Tables by view, and the same numbers as a frame."""

    title: str
    views: Mapping[str, Sequence[Grid]]
    frame: pd.DataFrame

    @property
    def grids(self) -> list[Grid]:
        return [grid for grids in self.views.values() for grid in grids]


def output(given: Given) -> None:
    """Make the requested tables, and print or write them."""
    unknown = sorted(set(given.mix) - {*RULES, "all"})
    if unknown:
        raise InputError(f"--mix {unknown[0]}: choose from {', '.join(RULES)}, all")
    made = _made(given)
    form = given.format or (ENDINGS.get(given.out.suffix, "markdown") if given.out else "terminal")
    if form == "terminal" and not given.out:
        formats.show(made.grids)
        return
    text = rendered(made, form)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{given.out}\n" if given.out else text)


def show_sweep(sweep: str, home: Path) -> bool:
    """Print what a sweep has measured in its paper's layout; False if it defines no paper's table."""
    known = layout(sweep)
    if known is None:
        return False
    formats.show(paper_table(known, find(home)).views["ours"])
    return True


def rendered(made: Made, form: str) -> str:
    if form == "html":
        return page(made.title, made.views)
    if form == "csv":
        return made.frame.to_csv(index=False)
    writers = {"latex": formats.latex, "latex-narrow": formats.narrow_latex}
    return "\n".join(map(writers.get(form, formats.markdown), made.grids))


def _made(given: Given) -> Made:
    if given.claims:
        return claims(given.place, given.scoring, given.mix, given.out.parent if given.out else Path())
    place = given.place or "quickstart"
    if given.routing:
        return _routing(place, given.options)
    known = _scored_as(given.scored_as, None if given.plain else layout(Path(place).name))
    if given.strict:
        return _strict(place, given.options, given.mix)
    if given.versus:
        return _versus(given, place, known)
    if known:
        return paper_table(known, _cells(place, given.options, known), given.view, given.scoring, given.mix, given.out)
    made = list(plain.tables(_cells(place, given.options), score=given.scoring, merge=given.merge or "case_macro"))
    return Made(place, {"runs": [plain.grid(*one) for one in made]}, plain.as_csv(made))


def _scored_as(profile: str | None, known: Layout | None) -> Layout | None:
    """The layout with this reading of its paper's metrics."""
    if profile is None:
        return known
    choices = profiles(known.paper) if known else []
    if known is None or profile not in choices:
        fits = f"choose {', '.join(choices)}" if choices else "only a paper's table has readings of its metrics"
        raise InputError(f"--scored-as {profile}: {fits}")
    return replace(known, scored_as=profile)


def _routing(place: str, options: str | None) -> Made:
    made = list(routing.tables(_cells(place, options)))
    if not made:
        raise InputError(f"{place}: no run there recalls edits from a memory; leave --routing out for its scores")
    return Made(place, {"routing": [routing.grid(*one) for one in made]}, plain.as_csv(made))


def _strict(place: str, options: str | None, mix: Sequence[str]) -> Made:
    cells = _cells(place, options)
    refuse_mixed(cells, mix)
    made = list(strictness.tables(cells))
    if not made:
        raise InputError(f"{place}: no run there was scored strictly; {NEEDS['strict']}")
    return Made(place, {"strict": [strictness.grid(*one) for one in made]}, plain.as_csv(made))


def _cells(place: str, options: str | None, known: Layout | None = None) -> list[Cell]:
    """The runs there with these overrides; a paper's table may have none yet."""
    try:
        cells = find(place)
    except InputError:
        if known and not Path(place).is_dir():
            return []
        raise
    chosen = [cell for cell in cells if options is None or cell.meta["overrides"] == options]
    if not chosen:
        there = sorted({cell.meta["overrides"] for cell in cells})
        raise InputError(f"no run there has --options {options!r}; there are {', '.join(map(repr, there))}")
    return chosen if known else tested(chosen)


# --- a paper's table -------------------------------------------------------------------------------------------------


def paper_table(
    known: Layout,
    cells: Sequence[Cell],
    view: str = "all",
    score: Score = "token",
    mix: Sequence[str] = (),
    out: Path | None = None,
) -> Made:
    """The table in the paper's layout: ours, the paper's, and the difference."""
    by_layout = {"settings"} if "setting" in (*known.rows, *known.columns) else set()
    refuse_mixed(cells, {*mix, *by_layout})
    if score == "generate":
        known = replace(known, more=GENERATE)
    found = frame(known, cells, score)
    if cells and set(found["metric"]) <= {*TEXTS, *COSTS}:
        wanted = "benchmarks" if known.benchmarks else f"rows for --scoring {score}"
        needed = "run it with eval/measures" if known.benchmarks else NEEDS[score]
        raise InputError(f"no run of {known.sweep} has {wanted}; {needed}")
    given = shown(known, found, cells, score, out.parent if out else Path())
    made = {
        "ours": lambda: views.ours(given),
        "paper": lambda: views.paper(known),
        "difference": lambda: views.difference(given),
    }
    chosen = {name: make() for name, make in made.items() if view in (name, "all")}
    return Made(known.name, chosen, views.tidy(given))


def frame(known: Layout, cells: Sequence[Cell], score: Score) -> pd.DataFrame:
    """What these cells measured of the table's metrics."""
    if known.benchmarks:
        bare = known.printed[known.printed["T"].isna() & (known.printed["setting"] == "")]
        places = set(zip(bare["model"], bare["editor"], strict=True))
        return benchmark_frame(cells, known.paper, known.number, known.benchmarks, known.same_as, places)
    return frame_of(samples(cells, known.profile, scoring=score, same_as=known.same_as), known.paper, known.number)


def _versus(given: Given, place: str, known: Layout | None) -> Made:
    one, other = given.versus
    chosen = [cell for cell in _cells(place, given.options) if cell.meta["editor"] in (one, other)]
    refuse_mixed(chosen, given.mix)
    profile = known.profile if known else None
    frame = versus.compare(chosen or _cells(place, None), one, other, profile, given.scoring)
    grid = versus.grid(frame, chosen, known.paper if known else None, given.scoring, profile)
    return Made(grid.title, {"versus": [grid]}, frame)


# --- claims ----------------------------------------------------------------------------------------------------------


def claims(paper: str | None, score: Score = "token", mix: Sequence[str] = (), home: Path = Path()) -> Made:
    """Each claim's verdict on the paper's numbers and, where something of the paper's tables was run, on ours."""
    from kedit.reports.claims import report

    if paper is not None and paper not in PAPERS:
        raise InputError(f"--claims {paper}: choose from {', '.join(PAPERS)}")
    ours = [_of_sweep(known, score, mix) for known in layouts() if paper in (None, known.paper)]
    ran = [frame for frame in ours if frame is not None]
    found = report(paper, pd.concat(ran, ignore_index=True) if ran else None)
    title = f"Claims of {PAPERS[paper] if paper else 'the four papers'}"
    return Made(title, {"claims": verdicts.grids(found, home)}, verdicts.frame(found))


def _of_sweep(known: Layout, score: Score, mix: Sequence[str]) -> pd.DataFrame | None:
    cells = _cells(known.sweep, None, known)
    if not cells:
        return None
    refuse_mixed(cells, {*mix, "settings"})
    return frame(known, cells, score)
