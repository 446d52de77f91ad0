"""Every yaml composes and fits the signature of what it configures; a typo is named before anything is loaded."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from kedit.common.paths import ROOT
from kedit.run.naming import cell_directory, overrides

INCONTEXT = ("editor/augmentation", "editor/filter", "editor/alignment", "editor/alignment/conversations")
EDITOR = ("editor", "editor/loss", "editor/adapter", "editor/solver", *INCONTEXT)
GROUPS = ("model", "dataset", *EDITOR, "setting", "eval", "tracker")
ABSTRACT = {"dataset=file", "editor/augmentation=prompts"}  # what others inherit
SOLVES = {"rank_one": "rome", "least_squares": "memit", "equality": "emmet", "null_space": "alphaedit"}
FILE = ["editor.augmentation.path=/nowhere"]
RELEASED = ["model=llama2-7b-chat", "dataset=zsre"]  # the world's numbers are about its own conversations
MANDATORY = {"local": ["model.path=/nowhere"], "file": FILE, "model": FILE, "released": RELEASED}


def choices() -> list[str]:
    found = [f"{group}={path.stem}" for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
    return [choice for choice in found if choice not in ABSTRACT]


def composed(*given: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(given))


def bind(node: Any, *, inject: dict[str, Any]) -> None:
    """Bind the keys of every `_target_` below `node` to its signature, as instantiating would."""
    if isinstance(node, dict):
        if "_target_" in node:
            keys = {key: value for key, value in node.items() if not key.startswith("_")}
            signature = inspect.signature(get_method(node["_target_"]))
            late = inject if node.get("_partial_") else {}
            positional = [p.name for p in signature.parameters.values() if p.default is p.empty and p.name not in keys]
            signature.bind(**keys, **{name: None for name in positional if name in late or late})
        for value in node.values():
            bind(value, inject=inject)


@pytest.mark.parametrize("choice", choices())
def test_every_choice_fits_its_target(choice: str) -> None:
    group, _, name = choice.partition("=")
    extra = MANDATORY.get(name, []) + (["dataset=zsre"] if group == "model" and name != "world" else [])
    extra += [f"editor={SOLVES[name]}"] if group == "editor/solver" else []
    extra += ["editor=kedas"] if group in INCONTEXT else []
    cfg = OmegaConf.to_container(composed(choice, *extra), resolve=True)
    assert isinstance(cfg, dict)
    for part in ("model", "dataset", "editor", "setting", "eval", "tracker"):
        bind(cfg[part], inject={"cases": None, "T": None, "train": False})


@pytest.mark.parametrize("editor", [path.stem for path in sorted((ROOT / "conf/editor").glob("*.yaml"))])
def test_every_editor_is_built_from_its_yaml(editor: str) -> None:
    instantiate(composed(f"editor={editor}").editor, _convert_="all")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf/hparams").glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_numbers_of_an_editor_for_a_model_fit_the_editor(path: Path) -> None:
    """They reach it, and every key of them is one of its own."""
    data = [] if path.stem == "world" else ["dataset=zsre"]
    cfg = OmegaConf.to_container(composed(f"editor={path.parent.name}", f"model={path.stem}", *data), resolve=True)
    assert isinstance(cfg, dict)
    bind(cfg["editor"], inject={"train": ()})
    numbers = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(numbers, dict)
    assert {key: cfg["editor"][key] for key in numbers if not isinstance(numbers[key], dict)} == {
        key: value for key, value in numbers.items() if not isinstance(value, dict)
    }


def test_the_quickstart_composes() -> None:
    """The papers' tables: test_sweeps.py."""
    assert composed("sweeps=quickstart").setting.checkpoints == [10]


def test_numbers_of_one_editor_for_one_model_come_after_the_editor_and_before_the_command_line() -> None:
    assert composed("editor=kdpo").editor.lr == 5e-4
    assert composed("editor=kdpo", "model=local", "model.path=x", "dataset=zsre").editor.lr == 1e-4
    assert composed("editor=kdpo", "editor.lr=5").editor.lr == 5
    assert composed("editor=ft_m", "editor/loss=kdpo").editor.loss.beta == 0.1


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("editor.lrr=1", ConfigCompositionException, "lrr"),
        ("editor=ftm", MissingConfigException, "ft_m"),
        ("sweeps=kdpo_table0", MissingConfigException, "quickstart"),
        ("colour=blue", ConfigCompositionException, "colour"),
    ],
)
def test_unknown_keys_and_groups_fail_with_hydras_own_words(given: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        composed(given)
    assert said in f"{caught.value} {caught.value.__cause__}"


NAMES = {"model": "world", "dataset": "world", "editor": "kdpo", "setting": "sequential", "sweeps": "adhoc"}


def test_a_cells_directory_is_named_by_its_choices() -> None:
    task = ["T=5", "editor=kdpo", "editor.lr=1e-3", "tracker.mode=online", "seed=7", "dataset.limit=9", "threads=2"]
    directory = cell_directory(Path("runs"), NAMES | {"overrides": overrides(task)}, 5, 7)
    assert str(directory) == "runs/adhoc/world/world/kdpo/sequential-T5/seed7/dataset.limit=9,editor.lr=1e-3"
    assert overrides(list(reversed(task))) == overrides(task)


def test_long_overrides_and_paths_are_hashed() -> None:
    directory = cell_directory(Path("runs"), NAMES | {"overrides": "dataset.path=/data/x.json"}, 5, 7)
    assert len(directory.name) == 12
    assert "/data" not in str(directory)
