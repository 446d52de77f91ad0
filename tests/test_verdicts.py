"""The claims as a table: what the papers' numbers say, what ours say, and what that rests on."""

from pathlib import Path

import pytest
from made_cells import make_cell
from test_paper_tables import places, run_table

from kedit.common.errors import InputError
from kedit.reports.table.show import claims


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KDPO's Table 6 as far as the world goes: KDPO is perfect, DPO far from it."""
    monkeypatch.setenv("KEDIT_RUNS", str(tmp_path))
    for editor, low in (("kdpo", 1.0), ("dpo", 0.0)):
        scores = {"reliability": [low, 1.0] * 20, "locality": [low] * 40}
        make_cell(tmp_path / "kdpo_table6", scores, editor=editor, T=500)
    return tmp_path


def test_every_claim_has_both_verdicts_and_ours_its_comparisons_and_cells(runs: Path) -> None:
    made = claims("kdpo", home=runs)
    table, rests = made.grids
    assert [line.head[0] for line in table.lines] == [f"kdpo-{i}" for i in range(1, 18)]
    by_claim = places(table)
    assert by_claim[("kdpo-14",), ("paper",)].text == "CONFIRMED"
    assert by_claim[("kdpo-14",), ("ours",)].text == "holds"
    assert by_claim[("kdpo-14",), ("ours",)].link == "kdpo_table6/world/world/"
    assert by_claim[("kdpo-11",), ("ours",)].text == "not run"
    assert "kdpo-14" in {line.head[0] for line in rests.lines}
    of_14 = [line.entries for line in rests.lines if line.head == ("kdpo-14",)]
    assert {entries[2].text for entries in of_14} == {
        "kdpo_table6/world/world/dpo/sequential-T500, kdpo_table6/world/world/kdpo/sequential-T500"
    }
    ours = made.frame[made.frame["on"] == "ours"].set_index("claim")
    assert "seed101" in ours.loc["kdpo-14", "directories"]


def test_without_runs_there_are_the_papers_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_RUNS", str(tmp_path))
    grids = claims(None).grids
    assert [grid.title for grid in grids] == [
        f"{name}: claims" for name in ("KDPO", "Model Editing by Standard Fine-Tuning", "KEDAS", "OVERTONE")
    ]
    assert sum(len(grid.lines) for grid in grids) == 74
    assert {line.entries[2].text for grid in grids for line in grid.lines} == {"not run"}
    with pytest.raises(InputError, match="--claims nobody: choose from kdpo, ft_editing, kedas, overtone"):
        claims("nobody")


def test_the_command_line_shows_claims(runs: Path) -> None:
    done = run_table(runs, "kdpo", "--claims")
    assert done.returncode == 0, done.stderr
    assert "what our verdicts rest on" in done.stdout
