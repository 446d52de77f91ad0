"""What README and docs/ print can be run: Python as printed, commands of kedit as they compose, links as they lead."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import run_kedit
from hydra.utils import instantiate

from kedit import world
from kedit.common.paths import ROOT
from kedit.data import load
from kedit.data.choices import dataset_options
from kedit.lm import LM
from kedit.reports.table.layout import layout
from kedit.run.composition import composed
from kedit.run.options import check
from kedit.run.references import resolved

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READERS = {path.stem for path in (ROOT / "kedit").glob("*.py")} | {"data", "reports.page", "reports.compare"}
PLACEHOLDER = re.compile(r"\.\.\.|\bNAME\b|\bMODEL\b")  # of a command that the reader completes


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> Iterator[str]:
    """Every line of an unmarked block that begins with kedit or python -m kedit, continued lines joined."""
    for page in PAGES:
        for block in blocks(page, ""):
            for line in block.replace("\\\n", " ").splitlines():
                words = re.split(r"\s#\s|\s;\s", line)[0].strip()
                if re.match(r"kedit\s|python -m kedit\.", words) and not PLACEHOLDER.search(words):
                    yield " ".join(words.split())


COMMANDS = list(dict.fromkeys(commands()))
RUNS = [command for command in COMMANDS if command.startswith("kedit ")]


def test_there_are_commands_to_check() -> None:
    assert len(RUNS) > 30
    assert len(COMMANDS) - len(RUNS) > 15


@pytest.mark.parametrize("command", RUNS)
def test_a_printed_command_composes(command: str, tmp_path: Path) -> None:
    """Each choice and option exists, and its value is of the right kind; of a grid that of the first cell."""
    overrides = [word for word in shlex.split(command)[1:] if not word.startswith("-")]
    if "--config-dir" in command:
        own_folder(tmp_path)
        overrides = [f"hydra.searchpath=[{tmp_path / 'mine'}]", *(word for word in overrides if word != "mine")]
    overrides = [word for word in overrides if word not in ("defaults", "job")]
    check(resolved(composed([first_of(word) for word in overrides]), {}))


def first_of(override: str) -> str:
    """Of an axis its first value."""
    name, equals, value = override.partition("=")
    return f"{name}{equals}{value.split(',')[0]}" if not value.startswith(("[", "{")) else override


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RUNS])
def test_a_printed_reader_exists(command: str) -> None:
    module = command.split()[2].removeprefix("kedit.")
    assert module in READERS
    place = ROOT / "kedit" / module.replace(".", "/")
    assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


# --- an editor in a folder of one's own ------------------------------------------------------------------------------


def own_folder(home: Path) -> None:
    """As docs/own_editor.md prints it."""
    page = ROOT / "docs" / "own_editor.md"
    for language in ("python", "yaml"):
        for text in blocks(page, language):
            path = home / text.split("\n")[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, and a search path of modules that is as before afterwards."""
    own_folder(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "nudge", raising=False)
    return tmp_path / "mine"


def test_the_printed_editor_runs_from_a_folder_of_ones_own(tmp_path: Path) -> None:
    own_folder(tmp_path)
    given = ["--config-dir", "mine", "-m", "editor=nudge", "T=2", "dataset.limit=2", "eval.fluency_tokens=0"]
    done = run_kedit(tmp_path, *given)
    assert done.returncode == 0, done.stderr
    assert re.search(r"nudge +2 ", done.stdout), done.stdout


def test_its_options_are_checked_and_a_missing_module_is_named(mine: Path, refusal: Callable[..., str]) -> None:
    given = ["--config-dir", mine, "editor=nudge", "T=2"]
    assert "editor.layer=true: give a whole number" in refusal(*given, "editor.layer=true")
    (mine / "editor" / "nudge.yaml").write_text("_target_: nugde.Nudge")
    assert "editor._target_=nugde.Nudge: cannot be imported" in refusal(*given)


def test_it_edits_and_is_undone(lm: LM, mine: Path) -> None:
    sys.path.append(str(mine))
    editor = instantiate(composed([f"hydra.searchpath=[{mine}]", "editor=nudge", "editor.rate=0.01"]).editor)
    edit = world.cases(edits=1, limit=1).cases[0].edits[0]
    before = lm.answer([edit.prompt], [edit.target_new])[0].logprob
    assert editor.edit(lm, [edit])["steps"] == 1
    assert sum(lm.answer([edit.prompt], [edit.target_new])[0].logprob) > sum(before) + 0.1
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    lm.restore()
    assert lm.answer([edit.prompt], [edit.target_new])[0].logprob == before


# --- files and links -------------------------------------------------------------------------------------------------


def test_the_json_that_one_writes_by_hand_is_read(tmp_path: Path) -> None:
    for number, text in enumerate(blocks(ROOT / "docs" / "data.md", "json")):
        (tmp_path / f"{number}.json").write_text(text, encoding="utf-8")
        assert load(**dataset_options("knowedit") | {"path": str(tmp_path / f"{number}.json")}).cases


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_page_is_in_the_index_and_in_the_sites_navigation() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"({page.name})" in index, page.name
        assert page.name in site, page.name


def test_every_family_of_editors_is_in_their_index() -> None:
    """All that are no variant of another by their name."""
    text = (ROOT / "docs" / "editor_index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    there = {path.stem for path in (ROOT / "conf" / "editor").glob("*.yaml")}
    assert listed <= there
    left = {name for name in there if not any(name == one or name.startswith(f"{one}_") for one in listed)}
    assert {name for name in left if not name.startswith("ft")} == set()


def test_the_screens_of_sweeps_print_commands_that_compose() -> None:
    said = yaml.safe_load((ROOT / "sweeps" / "quickstart.yaml").read_text(encoding="utf-8"))["table"]
    assert len(said["look_at"]) == 3
    assert layout("quickstart") is None
    for line in said["next"]:
        words = shlex.split(line.split(" #")[0])
        composed([first_of(word) for word in words[1:] if not word.startswith("-")])


@pytest.mark.parametrize("sweep", ["quickstart", "world_tour"])
def test_every_cell_of_the_worlds_sweeps_composes_on_the_same_cases(sweep: str) -> None:
    """Editors that learn from training cases keep 160 people from being edited; beside them all editors must."""
    axes = yaml.safe_load((ROOT / "sweeps" / f"{sweep}.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
    for editor in axes["editor"].split(","):
        cfg = composed([f"sweeps={sweep}", f"editor={editor}"])
        check(resolved(cfg, {}))
        assert cfg.dataset.train_people == 160
