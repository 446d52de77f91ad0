"""Odd data files as people write them: read with a stated meaning, or refused in one sentence."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS, Done, run_kedit
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from odd_files import FLAT, FORMS, NAMES, READ, REFUSED, ROME, SIMPLE, text

from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.data import Dataset, load
from kedit.data.__main__ import main
from kedit.data.choices import FOLDER, dataset_options
from kedit.data.files import dataset_of


def outcome(path: Path, *overrides: str) -> Dataset | str:
    """What `dataset=... dataset.path=PATH` makes of it."""
    try:
        return load(**dataset_options(dataset_of(path), overrides) | {"path": str(path)})
    except InputError as error:
        return str(error)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """python -m kedit.data, in this process: what it prints, or what it exits with."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["kedit.data", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return f"exit: {end.code}"
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("what", READ)
def test_a_file_that_is_read(what: str, tmp_path: Path, report: Callable[..., str]) -> None:
    content, cases, said = READ[what]
    name = NAMES.get(what, "a.json")
    (tmp_path / name).write_bytes(content)
    dataset = outcome(tmp_path / name)
    assert isinstance(dataset, Dataset), dataset
    assert len(dataset.cases) == cases
    shown = report(tmp_path / name)
    assert f"{name}: {cases} cases, read with dataset={dataset_of(tmp_path / name)}" in shown
    assert re.search(said, shown), shown


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_is_refused(what: str, tmp_path: Path, report: Callable[..., str]) -> None:
    content, said = REFUSED[what]
    name = NAMES.get(what, "a.json")
    (tmp_path / name).write_bytes(content)
    message = outcome(tmp_path / name)
    assert isinstance(message, str)
    assert message.startswith(str(tmp_path / name))
    assert re.search(said, message), message
    assert "\n" not in message
    assert len(message) < 400
    assert report(tmp_path / name) == f"exit: {message}"


def test_the_texts_of_a_file_are_used_as_they_are(tmp_path: Path) -> None:
    """No Unicode normal form is applied, nothing is removed; braces are texts too."""
    odd = ["Ko\u0308ln", "\u05d9\u05e8", "Os\u200blo", " Oslo ", "Oslo\tor\nso", "\U0001f600"]
    (tmp_path / "a.json").write_bytes(text(*(SIMPLE | {"target_new": answer} for answer in odd)))
    dataset = outcome(tmp_path / "a.json")
    assert isinstance(dataset, Dataset)
    assert [case.edits[0].target_new for case in dataset.cases] == odd
    rewrite = ROME["requested_rewrite"] | {"prompt": "{a} {} {", "subject": "{x}"}
    (tmp_path / "a.json").write_bytes(text(ROME | {"requested_rewrite": rewrite}))
    [case] = outcome(tmp_path / "a.json").cases  # type: ignore[union-attr]
    assert case.edits[0].prompt == "{a} {x} {"


# --- every field missing, and of every wrong kind --------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "null": None,
    "empty": "",
    "blank": "\u200b ",
    "number": 7,
    "true": True,
    "list": [],
    "object": {},
}
# of each form: which values of a field, or its absence ("absent"), have a meaning; all others are refused
NO_OLD = {"absent", "null", "empty", "blank", "list"}  # no old answer is stated
BLANK_ANSWER = {"empty", "blank", "list"}  # the question is dropped and counted
NOT_ASKED = {"absent", "null"}
NO_LIST = {*NOT_ASKED, "list"}
NO_OBJECT = {*NOT_ASKED, "object"}
ANYTHING = {"absent", *VALUES}
GROUPS = {
    "locality": NO_OBJECT,
    "locality.Relation_Specificity": NO_LIST,
    "locality.Relation_Specificity.ground_truth": BLANK_ANSWER,
}
ALLOWED: dict[str, dict[str, set[str]]] = {
    "knowedit": GROUPS
    | {
        "ground_truth": NO_OLD,
        "rephrase_prompt": NOT_ASKED,
        "portability": NO_OBJECT,
        "portability.Reasoning": NO_LIST,
        "portability.Reasoning.ground_truth": BLANK_ANSWER,
    },
    "wikibio": GROUPS,
    "rome": {
        "requested_rewrite.relation_id": ANYTHING,  # only for consistency
        "requested_rewrite.target_new.id": ANYTHING,
        "requested_rewrite.target_true.id": ANYTHING,  # not used
        "paraphrase_prompts": NO_LIST,
        "neighborhood_prompts": NO_LIST,
        "generation_prompts": NO_LIST,
    },
    "flat": {"ground_truth": NO_OLD, "locality_ground_truth": BLANK_ANSWER},
    "mend": {"alt": ANYTHING, "loc_ans": BLANK_ANSWER},  # edited to its answers
    "mend with portability": {
        "answers": NO_OLD,
        "loc_ans": BLANK_ANSWER,
        "portability": NO_OBJECT,
        "portability.New Answer": BLANK_ANSWER,
    },
}


def fields(record: Any, below: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The steps down to every field of a record and of its parts."""
    parts = record.items() if isinstance(record, dict) else enumerate(record if isinstance(record, list) else [])
    for step, part in parts:
        if isinstance(step, str):
            yield (*below, step)
        yield from fields(part, (*below, step))


def changed(record: Any, steps: tuple[str | int, ...], kind: str) -> Any:
    new = deepcopy(record)
    node = new
    for step in steps[:-1]:
        node = node[step]
    if kind == "absent":
        del node[steps[-1]]
    else:
        node[steps[-1]] = VALUES[kind]
    return new


@pytest.mark.parametrize("form", FORMS)
def test_every_field_missing_or_of_a_wrong_kind(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for steps in fields(FORMS[form]):
        name = ".".join(step for step in steps if isinstance(step, str))
        for kind in ANYTHING:
            path.write_bytes(text(FORMS[form], changed(FORMS[form], steps, kind)))
            found = outcome(path)
            place = f"{form}, {name}: {kind}: {found}"
            if kind in ALLOWED[form].get(name, ()):
                assert isinstance(found, Dataset), place
            else:
                assert isinstance(found, str), place
                assert found.startswith(f"{path}: record 1"), place
                assert str(steps[-1]) in found, place


# --- files that are none, options, files of which nothing is left ----------------------------------------------------


def test_what_is_no_file(tmp_path: Path, report: Callable[..., str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for path, said in {
        tmp_path: "is a folder; give a file with dataset.path=FILE",
        tmp_path / "nope.json": "no such file; give it with dataset.path=FILE",
        tmp_path / "loop": "no such file",
        tmp_path / "pipe": "is no ordinary file; give a file",
        tmp_path / ("x" * 300): "cannot be read .File name too long",
    }.items():
        with pytest.raises(InputError, match=said) as caught:
            load(**dataset_options("zsre") | {"path": str(path)})
        assert report(path) == f"exit: {caught.value}"
    with pytest.raises(InputError, match=r"dataset.path is empty; give the data file"):
        load(**dataset_options("zsre") | {"path": " "})


@pytest.mark.parametrize(
    ("records", "override", "said"),
    [
        ([SIMPLE | {"target_new": ""}] * 2, "dataset.drop_empty_targets=true", "dropped: 2 edit with an empty target"),
        ([SIMPLE, SIMPLE], "dataset.dedup=odd_toggle_last", "dropped: 2 repeated subject"),
    ],
)
def test_a_file_of_which_no_record_is_left(
    tmp_path: Path, report: Callable[..., str], records: list[Any], override: str, said: str
) -> None:
    (tmp_path / "a.json").write_bytes(text(*records))
    message = outcome(tmp_path / "a.json", override)
    assert f"none of its records is left to edit ({said})" in str(message)
    assert report(tmp_path / "a.json", override) == f"exit: {message}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "nope"], "dataset=nope: no such choice; choose from counterfact, "),
        (["--dataset", "world"], "dataset=world reads no file; choose from counterfact, "),
        (["--dataset", "zsre"], "record 0: has the form that dataset=counterfact reads"),
        (["--dedup", "first"], "1 cases, read with dataset=counterfact dataset.dedup=first"),
        (["dataset.dedupe=first"], "dataset.dedupe: the dataset has no such option; choose from dataset."),
        (["dataset.parse=alt"], "dataset.parse: the dataset has no such option"),
        (["limit=3"], "'limit=3' is no option of a dataset; write e.g. dataset.drop_empty_targets=true"),
        (["dataset.limit=1"], "1 cases, read with dataset=counterfact dataset.limit=1"),
    ],
)
def test_options_of_the_report(tmp_path: Path, report: Callable[..., str], arguments: list[str], said: str) -> None:
    (tmp_path / "a.json").write_bytes(text(FLAT, FLAT))
    assert said in report(tmp_path / "a.json", *arguments)


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted(FOLDER.glob("*.yaml")) if path.stem not in ("file", "world")]
)
def test_the_report_reads_with_the_options_of_conf(name: str) -> None:
    """dataset_options says what Hydra would make of `dataset=<name>`."""
    given = (
        [f"dataset.parse.counterfact={TESTS / 'data' / 'counterfact_rome.json'}"] if name == "wikirecent_fte" else []
    )
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made = instantiate(compose("config", [f"dataset={name}", *given]).dataset, _convert_="all")
    ours = dataset_options(name, given)
    theirs = dict(made.keywords)
    for options in (ours, theirs):
        parse = options.pop("parse")
        options["parse"] = [getattr(parse, "func", type(parse)), getattr(parse, "keywords", None)]
    assert ours == theirs


def test_the_example_of_the_docs_is_read(tmp_path: Path, report: Callable[..., str]) -> None:
    [example] = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.json").write_text(example, encoding="utf-8")
    assert "mine.json: 1 cases, read with dataset=knowedit" in report(tmp_path / "mine.json")


# --- the command line ------------------------------------------------------------------------------------------------


def said_by(*arguments: object, folder: Path) -> Done:
    command = [sys.executable, "-m", "kedit.data", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("what", "status"), [("byte order mark", 0), ("JSON lines named json", 0), ("half a character", 1), ("Latin-1", 1)]
)
def test_the_report_on_the_command_line(tmp_path: Path, what: str, status: int) -> None:
    content, *_ = READ[what] if status == 0 else REFUSED[what]
    name = NAMES.get(what, "a.json")
    (tmp_path / name).write_bytes(content)
    done = said_by(name, folder=tmp_path)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == status
    assert name in done.stdout + done.stderr


def test_kedit_refuses_the_same_file_and_makes_nothing(tmp_path: Path) -> None:
    content, said = REFUSED["half a character"]
    name = "a.json"
    (tmp_path / name).write_bytes(content)
    done = run_kedit(tmp_path, "dataset=zsre", f"dataset.path={name}", "editor=ft_m", "setting=single")
    assert done.returncode == 1
    assert re.search(said, done.stderr)
    assert said_by(name, folder=tmp_path).stderr.strip() in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").rglob("*"))
