"""`python -m kedit.memory` on the memory that a real run has left: what it shows is what the run's rows say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import run_kedit

from kedit.common.errors import InputError
from kedit.lm.sentence_encoder import MINILM
from kedit.reports.table.formats import Grid
from kedit.run.memory_command import explained, found, listed, main, saved_memory

KEDAS = ["editor=kedas", "editor.alignment=null", "editor.memory.k=3", "editor.filter.threshold=0.0"]
FILTER = {"batch_size": 4, "max_steps": 1, "max_length": 64, "validation": 0.02}
TEMPLATE = "Suppose that {facts}. Then {query}"
CASES = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KEDAS without its adapter, and with a filter that has hardly learnt anything and accepts whatever is found."""
    folder = tmp_path_factory.mktemp("memory")
    training = [f"editor.filter.training.{name}={value}" for name, value in FILTER.items()]
    more = [f"editor.filter.model={MINILM}", *training, f"editor.prompt.template='{TEMPLATE}'", "keep_state=true"]
    done = run_kedit(folder, *KEDAS, *more, f"T={CASES}", "eval.fluency_tokens=0")
    assert done.returncode == 0, done.stderr
    assert "filter precision" in " ".join(done.stdout.split())  # the table of what was recalled, under that of scores
    [meta] = folder.rglob("meta.json")
    return meta.parent


@pytest.fixture
def cell(run: Path, tmp_path: Path) -> Path:
    """A copy, to be changed; without what would say so."""
    copy = Path(shutil.copytree(run, tmp_path / "cell", ignore=shutil.ignore_patterns("manifest.json")))
    (copy / "state/commit.json").write_text(json.dumps({"step": CASES}))
    return copy


def rows(cell: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (cell / "rows.jsonl").read_text().splitlines()]
    return [row for row in found if row["when"] == "test" and row["kind"] == "reliability"]


def texts(grid: Grid) -> list[list[str]]:
    return [[*line.head, *(entry.text for entry in line.entries)] for line in grid.lines]


def change(path: Path, how: Callable[[Any], object]) -> None:
    """The file's content, changed in place."""
    content = yaml.safe_load(path.read_text())
    how(content)
    path.write_text(yaml.safe_dump(content))


def first_prompt(cell: Path) -> str:
    """The first case's edit is stored as prompt and answer."""
    [line, *_] = texts(listed(saved_memory(str(cell)), 0))
    return line[-1].removesuffix(rows(cell)[0]["gold"].strip()).rstrip()


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_every_string_is_listed_with_its_case(run: Path) -> None:
    lines = texts(listed(saved_memory(str(run))))
    assert len(lines) == 6 * CASES
    assert [line[:3] for line in lines[::6]] == [[str(i), row["case"], "qa"] for i, row in enumerate(rows(run))]
    assert texts(listed(saved_memory(str(run)), 1)) == lines[6:12]
    with pytest.raises(InputError, match=r"--edit 3: .* holds the edits 0 to 2"):
        listed(saved_memory(str(run)), 3)


def test_the_nearest_are_found_whatever_the_filter_says(run: Path) -> None:
    all_lines = texts(listed(saved_memory(str(run))))
    nearest = texts(found(saved_memory(str(run)), all_lines[7][-1], 5))
    assert len(nearest) == 5
    assert nearest[0] == ["1.000", *all_lines[7]]
    assert [float(line[0]) for line in nearest] == sorted((float(line[0]) for line in nearest), reverse=True)


def test_a_query_is_explained_as_the_run_routed_it(run: Path) -> None:
    grid, said = explained(saved_memory(str(run)), first_prompt(run))
    route = rows(run)[0]["route"]
    assert len(grid.lines) == len(route["retrieved"]) == 3
    for (cosine, probability, _, edit, _, form, _), there in zip(texts(grid), route["retrieved"], strict=True):
        assert (int(edit), form) == (there["edit"], there["form"])
        assert float(cosine) == pytest.approx(there["cosine"], abs=1e-3)
        assert float(probability) == pytest.approx(there["probability"], abs=1e-3)
    assert [line[2] for line in texts(grid)] == ["in context"] + 2 * ["accepted, beyond inject=1"]
    [text] = route["in_context"]
    assert said == [f"The prompt:\n\nSuppose that {text}. Then {first_prompt(run)}\n"]


def test_a_query_that_the_filter_refuses_stays_as_it_is(cell: Path) -> None:
    change(cell / "config.yaml", lambda config: config["editor"]["filter"].update(threshold=1.0))
    change(cell / "config.yaml", lambda config: config["eval"].update(routed_by="edit"))
    grid, said = explained(saved_memory(str(cell)), first_prompt(cell))
    assert {line[2] for line in texts(grid)} == {"refused"}
    assert grid.caption == f"The 3 nearest of {6 * CASES} strings; accepted from probability 1."
    assert said == [
        "In this run questions were not looked up by their prompt alone: eval.routed_by=edit.",
        "Nothing is injected: the query stays as it is.",
    ]


def test_a_prompt_that_takes_the_model_is_not_made_up(cell: Path) -> None:
    notes = {"_target_": "kedit.editors.incontext.prompts.Notes", "reading": "{notes} {query}"}
    parts = {"prompt": notes, "filter": None, "alignment": {"_target_": "what.is.not.loaded"}}
    change(cell / "config.yaml", lambda config: config["editor"].update(parts))
    grid, said = explained(saved_memory(str(cell)), first_prompt(cell))
    assert [line[1:3] for line in texts(grid)] == [["-", "in context"]] + 2 * [["-", "accepted, beyond inject=1"]]
    assert said == [
        "Its prompt (Notes) is written by the loaded model or from training cases.",
        "It is read by the aligned model.",
    ]


def test_from_the_command_line(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    asked = (["list", "--edit", "0"], ["search", "Who?", "-k", "2"], ["explain", first_prompt(run)])
    for arguments, said in zip(asked, ("reversed", "The nearest of 18 strings.", "beyond inject=1"), strict=True):
        monkeypatch.setattr("sys.argv", ["kedit.memory", str(run), *arguments])
        main()
        assert said in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["kedit.memory", str(run), "search", "Who?", "-k", "0"])
    with pytest.raises(SystemExit, match="-k 0: give at least 1"):
        main()


def test_the_runs_own_numbers_of_recall(run: Path) -> None:
    lines = pd.read_csv(run / "routing.csv").set_index("kind")
    assert lines.loc["reliability", ["recall@k", "filter recall", "in context", "in scope"]].tolist() == [100.0] * 4
    assert lines.loc["locality", "in scope"].tolist() == [100.0] * 4  # whatever is found is accepted


# --- what it refuses -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "state": (lambda cell: shutil.rmtree(cell / "state"), "run it again with keep_state=true"),
    "nothing": (
        lambda cell: (cell / "state/commit.json").write_text('{"step": 0}'),
        "its memory is empty after step 0",
    ),
    "damage": (lambda cell: (cell / f"state/{CASES}/editor.safetensors").write_text("{"), "is damaged"),
    "editor": (
        lambda cell: change(
            cell / "config.yaml", lambda c: c["editor"].update(_target_="kedit.editors.finetune.per_edit.FineTune")
        ),
        "its editor kedas has no memory of edits",
    ),
    "several": (lambda cell: shutil.copytree(cell, cell / "more"), "2 runs there; give the directory of one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_memory_is_said_in_one_sentence(cell: Path, name: str) -> None:
    damage, said = REFUSED[name]
    damage(cell)
    with pytest.raises(InputError, match=said):
        saved_memory(str(cell))


def test_a_filter_that_is_no_longer_kept(cell: Path) -> None:
    first, *more = (cell / "steps.jsonl").read_text().splitlines()
    record = json.loads(first)
    record["learnt"]["filter"]["folder"] = str(cell / "gone")
    (cell / "steps.jsonl").write_text("\n".join([json.dumps(record), *more, ""]))
    with pytest.raises(InputError, match=r"gone: the filter that .* trained is not in the cache any more"):
        explained(saved_memory(str(cell)), "Who?")
