"""kedit against plain loops, interleaved in one process: `make bench`.

Each line: seconds of both (medians), their ratio (median and range), the bound of the ratio by counting multiplications
and how much of it was reached, and whether both gave the same weights or answers.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks.bench import Bench
from benchmarks.editing import adapters, editing, fairness, memory
from benchmarks.gated_scoring import gated_scoring
from benchmarks.gating import gating
from benchmarks.locating import locating
from benchmarks.long import long
from benchmarks.profiling import profiled
from benchmarks.retrieval import encoding, index, routing
from benchmarks.scoring import fluency, scoring
from benchmarks.shapes import BIG, SHAPES, asked, build, cases_of, material
from benchmarks.side_by_side import PARTS as LINES
from benchmarks.side_by_side import side_by_side
from benchmarks.statistics import statistics
from kedit.data import knowedit, load

CURVE = (
    *("threshold", "rewrites routed", "own", "rephrases routed", "own", "portability routed", "own"),
    "locality not routed",
)
FILE = Path(__file__).parents[1] / "tests/data/zsre.json"
COLUMNS = ("", "kedit, s", "plain, s", "ratio (range)", "bound", "reached", "of matmul", "same")
LOCATED = ("gpt2 12x768", *BIG)  # shapes with these parts: one is enough on a CPU
PARTS = (
    *("editing", "side_by_side", "locating", "gating", "gated_scoring", "statistics", "scoring", "profile", "long"),
    "retrieval",
)


def matmul_rate(bench: Bench) -> float:
    """The machine's, in multiplications and additions a second."""
    a = torch.randn(1024, 1024, device=bench.device, dtype=bench.lm.dtype)
    return 4 * 1024**3 / min(bench.timed(lambda: [a @ a for _ in range(4)]) for _ in range(10))


class Rows(list):
    """A table's lines; each is written to stderr when it is measured: a machine that is taken away loses none."""

    def __iadd__(self, more: Iterable[Sequence[str]]) -> "Rows":  # type: ignore[override]
        for row in more:
            sys.stderr.write(f"| {' | '.join(row)} |\n")
            sys.stderr.flush()
            self.append(row)
        return self


def measure(name: str, given: argparse.Namespace) -> Iterator[Table]:
    """One shape's tables."""
    dtype, config = getattr(torch, given.dtype), (SHAPES | BIG)[name]
    asked = material(config, given.data, given.rows)
    bench = Bench(build(config, asked.tokenizer, given.device, dtype), asked)
    rate = matmul_rate(bench)
    rows = Rows()
    if "editing" in given.parts:
        rows += editing(bench, given.repeats, rate)
        rows += [adapters(bench, given.repeats, rate)]
        rows += [fairness(bench, given.repeats).line("plain FT-M (left) beside its bare steps (right)")]
        rows += [memory(name, given.data)] if given.device == "cpu" else []
    if "side_by_side" in given.parts:
        cases = cases_of(config, given.data, given.beside)
        rows += side_by_side(bench, given.repeats, cases, parts=given.lines, only=given.only)
    if "locating" in given.parts and name in LOCATED:
        rows += locating(bench, given.repeats, rate)
    if "gating" in given.parts and name in LOCATED:
        rows += gating(bench, given.repeats)
    if "gated_scoring" in given.parts and name in LOCATED:
        rows += gated_scoring(bench, given.repeats)
    if "statistics" in given.parts and name in LOCATED:
        rows += statistics(bench, given.repeats, rate)
    if "scoring" in given.parts:
        rows += scoring(bench, given.repeats, rate)
        rows += [fluency(bench, 2, given.texts)]
    title = f"{name}, {given.dtype}, {given.device}; matmul {rate / 1e9:.0f} G multiply-adds/s"
    if rows:
        yield grid(title, COLUMNS, rows)
    if "profile" in given.parts:
        columns = ("", "a KDPO edit", f"{len(asked.questions)} answers after it")
        yield grid(f"{name}: where kedit's time goes", columns, profiled(bench))


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    return table


def retrieval(given: argparse.Namespace) -> Iterator[Table]:
    if not given.queries_only:
        facts = [f"{prompt} {answer}" for prompt, answer in asked(load(knowedit.parse, path=given.data).cases)[1]]
        yield grid("Index and encoder", ("", " "), [*index(), encoding(list(islice(cycle(facts), 5000)))])
    if given.train and given.others:
        columns = ("query", "n", "right edit retrieved, %", "routed, %", "to the right edit, %")
        options = OmegaConf.from_dotlist(given.filter)
        kinds, costs, curve = routing(given.data, given.train, given.others, options, given.asked)
        yield grid("Queries to a memory of real edits", columns, kinds)
        yield grid("By the filter's threshold: routed at all, routed to the own edit, %", CURVE, curve)
        yield grid("What it costs", ("", " "), costs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", default=str(FILE), help="a file in KnowEdit's form (default: an excerpt of ZsRE)")
    parser.add_argument("--rows", type=int, default=200, help="of it that are asked")
    parser.add_argument("--beside", type=int, default=16, help="edits that run side by side")
    parser.add_argument("--lines", nargs="*", default=LINES, choices=LINES, help="of side_by_side")
    parser.add_argument("--only", default="", help="side_by_side: methods whose names have this in them")
    parser.add_argument("--texts", type=int, default=64, help="that are written for fluency")
    parser.add_argument("--shapes", nargs="*", help=f"some of {list(SHAPES)}, on a GPU of {list(BIG)}")
    parser.add_argument("--train", nargs="*", default=[], help="retrieval: files that the filter learns from")
    parser.add_argument("--others", help="retrieval: a file whose facts are stored beside those of --data")
    parser.add_argument(
        "--filter",
        nargs="*",
        default=[],
        help="its yaml (yaml=any_form) and options of the filter, e.g. training.max_steps=500",
    )
    parser.add_argument("--asked", type=int, help="retrieval: only the questions of the first so many cases")
    parser.add_argument("--queries-only", action="store_true", help="retrieval: not the index and the encoder")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    return parser.parse_args()


def main() -> None:
    given, console = arguments(), Console(file=sys.stdout, width=120)
    torch.set_num_threads(1 if given.device == "cpu" else 8)
    if "long" in given.parts and given.device == "cpu":
        console.print(grid("What must not grow", ("", " "), long(given.data, given.rows)))
    if "retrieval" in given.parts and given.device == "cpu":
        for table in retrieval(given):
            console.print(table)
    for name in given.shapes or (SHAPES if given.device == "cpu" else BIG):
        for table in measure(name, given):
            console.print(table)


if __name__ == "__main__":
    main()
