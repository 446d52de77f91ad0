"""The numbers that the four papers print, as data: one line of a CSV is one printed cell.

`<paper>_table<n>.csv` has the columns paper, table, model, setting, T, dataset, editor, metric, value, ci, note,
printed_as. `value` is the printed string, never corrected; it is empty if the paper prints a dash or the source text
lost the cell: `note` says which, and what does not add up. Keys are names in conf/; `printed_as` lists, as key=name,
the printed names that were translated (`kedit.papers.translate`).
"""

from pathlib import Path

import pandas as pd

from kedit.common.errors import InputError

FOLDER = Path(__file__).parent
PAPERS = {
    "kdpo": "KDPO",
    "ft_editing": "Model Editing by Standard Fine-Tuning",
    "kedas": "KEDAS",
    "overtone": "OVERTONE",
}
KEYS = ["model", "setting", "T", "dataset", "editor", "metric"]


def tables(paper: str) -> list[int]:
    """The numbers of those of the paper's tables that are in this package."""
    if paper not in PAPERS:
        raise InputError(f"paper {paper!r}: not one of {', '.join(PAPERS)}")
    return sorted(int(path.stem.removeprefix(f"{paper}_table")) for path in FOLDER.glob(f"{paper}_table*.csv"))


def printed(paper: str, table: int | None = None) -> pd.DataFrame:
    """One table's numbers (None: those of all tables), in printed order; an absent number is NaN, an absent T is NA."""
    known = tables(paper)
    if table is not None and table not in known:
        raise InputError(f"{paper} table {table}: not here; there are {', '.join(map(str, known))}")
    wanted = known if table is None else [table]
    frame = pd.concat([as_text(paper, number) for number in wanted], ignore_index=True)
    numbers = {name: pd.to_numeric(frame[name]) for name in ("table", "value", "ci")}
    return frame.assign(**numbers, T=pd.to_numeric(frame["T"]).astype("Int64"))


def as_text(paper: str, table: int) -> pd.DataFrame:
    """The file's cells, all of them strings."""
    return pd.read_csv(FOLDER / f"{paper}_table{table}.csv", dtype=str, keep_default_na=False)
