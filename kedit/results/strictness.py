"""What is said of strictly scored answers: how they were asked and graded, which judge said nothing, how far two judges
agree."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from kedit.results.cells import Cell

JUDGE = "judge_"  # columns of rows: what a judge says of an answer, by its name
UNPARSED = -1  # a reply without a verdict
LOCALITY = {  # what locality compares -> what a caption says
    "same_tokens": "equal tokens to the unedited model's",
    "same_text": "equal text to the unedited model's",
    "gold_match": "the gold answer by exact match",
    "gold_judged": "the gold answer by the judge",
}


def strict_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["scoring"] == "strict"] if "scoring" in rows else rows.iloc[:0]


def judges_of(rows: pd.DataFrame) -> list[str]:
    """Names of the judges that graded these rows, the first one first."""
    return [str(name).removeprefix(JUDGE) for name in rows if str(name).startswith(JUDGE)]


def kappa(one: Sequence[int], other: Sequence[int]) -> float:
    """Cohen's kappa of two judges' verdicts (0, 1) on the same texts; NaN if chance alone gives full agreement."""
    n = len(one)
    if not n:
        return math.nan
    agree = sum(a == b for a, b in zip(one, other, strict=True)) / n
    first, second = sum(one) / n, sum(other) / n
    chance = first * second + (1 - first) * (1 - second)
    return math.nan if chance == 1 else (agree - chance) / (1 - chance)


def agreement(rows: pd.DataFrame) -> list[tuple[str, str, int, float, float]]:
    """For each pair of judges: names, number of texts that both gave a verdict on, share of equal verdicts, kappa."""
    found = []
    for one, other in combinations(judges_of(rows), 2):
        columns = [f"{JUDGE}{one}", f"{JUDGE}{other}"]
        both = rows[(rows[columns] >= 0).all(axis=1)].drop_duplicates([*columns, "case", "kind", "group", "generated"])
        a, b = (both[column].astype(int).tolist() for column in columns)
        same = sum(x == y for x, y in zip(a, b, strict=True)) / len(a) if a else math.nan
        found.append((one, other, len(a), same, kappa(a, b)))
    return found


def strictly_scored(cells: Sequence[Cell]) -> list[str]:
    """For a caption."""
    profiles: dict[str, None] = {}
    for cell in cells:
        options = cell.config.get("eval") or {}
        if options.get("strict"):
            profiles[_profile(options["strict"], options.get("judges") or {})] = None
    rows = pd.concat([strict_rows(cell.rows) for cell in cells]) if cells else pd.DataFrame()
    return [*profiles, *_unparsed(rows), *_agreement(rows), *_unstopped(rows)]


def _profile(options: dict[str, Any], judges: dict[str, Any]) -> str:
    stops = ", ".join(repr(stop) for stop in options["stop"]) or "none"
    by = " and ".join(f"the judge {name} ({judge.get('model') or judge.get('path')})" for name, judge in judges.items())
    meaning = options["locality"]
    meaning = "gold_match" if meaning == "gold_judged" and not judges else meaning
    parts = [
        f"strict: frame {options['frame']!r}, stop strings {stops}, at most {options['max_new']} new tokens",
        f"graded by {by or 'exact match (no judge)'}, match={options['match']}",
        f"strict locality = {LOCALITY[meaning]}" if meaning else "no strict locality",
    ]
    return ", ".join(parts)


def _unparsed(rows: pd.DataFrame) -> list[str]:
    counts = {name: int((rows[f"{JUDGE}{name}"] == UNPARSED).sum()) for name in judges_of(rows)}
    return [f"{n} replies of the judge {name} have no verdict and do not count" for name, n in counts.items() if n]


def _agreement(rows: pd.DataFrame) -> list[str]:
    return [
        f"the judges {one} and {other} agree on {100 * same:.1f} % of {n} texts (kappa {value:.2f})"
        for one, other, n, same, value in agreement(rows)
        if n
    ]


def _unstopped(rows: pd.DataFrame) -> list[str]:
    tested = rows[rows["when"] == "test"] if len(rows) else rows
    if not len(tested):
        return []
    share = (tested["stopped_by"] == "length").mean()
    return [f"{100 * share:.1f} % of the strict answers did not stop by themselves"]
