"""KEDAS, Tables 3 and 12: how many records its data files hold, and how many pairs its filter learns from.

KEDIT_TEST_DATA=FOLDER python tests/count_data.py writes the table of docs/papers.md.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kedit.data.files import parse_file, recognise
from kedit.editors.incontext.filter_pairs import FilterPairs
from kedit.papers import printed

TRAIN = {
    "zsre": "zsre_mend_train_10000.json",
    "wikibio": "wikibio-train-all.json",
    "wikidata_recent": "recent_train.json",
    "wikidata_counterfact": "train_cf.json",
}
TEST = {
    "zsre": "ZsRE-test-all.json",
    "wikibio": "wikibio-test-all.json",
    "wikidata_recent": "recent_test.json",
    "wikidata_counterfact": "test_cf.json",
}
KINDS = {"edit": "n_requests", "portability": "n_portability", "locality": "n_locality"}


def counts(folder: Path) -> Iterator[tuple[int, str, str, int, int | None]]:
    """(table, dataset, what, printed, counted); None if the file is not in the folder or below it."""
    ours = {(3, name, "n_train"): _records(folder, file) for name, file in TRAIN.items()}
    ours |= {(3, name, "n_test"): _records(folder, file) for name, file in TEST.items()}
    for name, file in TRAIN.items():
        ours |= {(12, name, what): n for what, n in _pairs(folder, file).items()}
    for record in printed("kedas").query("table in (3, 12)").to_dict("records"):
        key = (int(record["table"]), record["dataset"], record["metric"])
        yield *key, int(record["value"]), ours.get(key)


def _find(folder: Path, file: str) -> Path | None:
    return next(iter(sorted(folder.rglob(file))), None)


def _records(folder: Path, file: str) -> int | None:
    path = _find(folder, file)
    return None if path is None else len(parse_file(recognise(path).parse, path, False, Counter()))


def _pairs(folder: Path, file: str) -> dict[str, int]:
    """Of the first 1000 records, as the table has it of ZsRE; general prompts are drawn for half of the records."""
    path = _find(folder, file)
    if path is None:
        return {}
    cases = parse_file(recognise(path).parse, path, True, Counter())
    found = Counter(pair.kind for pair in FilterPairs().of(cases[:1000] if "zsre" in file else cases))
    own = {what: found[kind] for kind, what in KINDS.items()} | {"n_general": round(len(cases) / 2)}
    return own | {"n_total": sum(own.values())}


def table(folder: Path) -> str:
    lines = [
        f"| {number} | {dataset} | {what.removeprefix('n_')} | {theirs} | {'-' if ours is None else ours} |"
        for number, dataset, what, theirs, ours in counts(folder)
    ]
    return "\n".join(["| table | dataset | of | printed | counted |", "|---|---|---|---:|---:|", *lines])


if __name__ == "__main__":
    sys.stdout.write(table(Path(os.environ["KEDIT_TEST_DATA"])) + "\n")
