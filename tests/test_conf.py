"""Every yaml composes and fits what it configures; a new one is found by globbing alone, and what it needs in the tree.

What several choices need of each other is read from their yamls: an editor that has the group, a dataset that takes
nothing from the model. Everything else that must be given (`???`) is given a path.
"""

import re
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.run.naming import cell_directory, names_of, overrides
from kedit.run.numbers import described, number_files, said
from kedit.run.options import PARTS, check
from kedit.run.references import resolved

CONF = ROOT / "conf"
EDITORS = sorted(path.stem for path in (CONF / "editor").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
SOURCES = sorted(path for path in CONF.rglob("*.yaml") if path.relative_to(CONF).parts[0] in PARTS)
NUMBERS = sorted((CONF / "hparams").rglob("*.yaml"))


def choice_of(path: Path) -> str:
    """conf/editor/loss/kdpo.yaml as editor/loss=kdpo."""
    return f"{path.relative_to(CONF).parent}={path.stem}"


@cache
def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def is_base(path: Path) -> bool:
    """Only for others to build on: it does not say what it builds, or what it builds that of."""
    texts = [text for text in path.read_text().splitlines() if not text.startswith("#")]
    return any(re.match(r"(_target_|parse): \?\?\?", text) for text in texts)


@cache
def whole(*given: str) -> DictConfig:
    """What these overrides compose, with what Hydra knows of it. Not to be changed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(given), return_hydra_config=True)


def composed(*given: str) -> DictConfig:
    cfg = whole(*given).copy()
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def with_what_is_missing(*given: str) -> DictConfig:
    """With a path for each option that must be given."""
    cfg = composed(*given)
    for name in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, name, "/nowhere")
    return cfg


@cache
def datasets_for(model: str) -> tuple[str, ...]:
    """A dataset that takes nothing from the model, for a model that is not the default one."""
    default = next(entry["model"] for entry in read(CONF / "config.yaml")["defaults"] if "model" in entry)
    free = [p.stem for p in sorted((CONF / "dataset").glob("*.yaml")) if "${model." not in p.read_text()]
    usable = [name for name in free if not is_base(CONF / "dataset" / f"{name}.yaml")]
    return () if model == default else (f"dataset={usable[0]}",)


@cache
def parts_of(editor: str) -> dict[str, str | None]:
    """What an editor's own defaults choose for its parts."""
    entries = read(CONF / "editor" / f"{editor}.yaml").get("defaults", [])
    chosen = {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}
    return {key.removeprefix("override "): value for key, value in chosen.items()}


def editors_with(group: str, name: str) -> tuple[str, ...]:
    """An editor that has a part of editors by its own defaults: with this choice if there is one with it, else without
    settings of its own for another choice."""
    part = group.split("/")[1]
    having = [editor for editor in EDITORS if parts_of(editor).get(part) is not None]
    exact = [editor for editor in having if parts_of(editor)[part] == name]
    assert having, f"no editor of conf/editor has a part {part}"
    neutral = [editor for editor in having if part not in read(CONF / "editor" / f"{editor}.yaml")]
    return (f"editor={[*exact, *neutral, *having][0]}",)


@pytest.mark.parametrize("path", [path for path in SOURCES if not is_base(path)], ids=choice_of)
def test_every_choice_fits_its_target(path: Path) -> None:
    group, name = str(path.relative_to(CONF).parent), path.stem
    needed = (
        datasets_for(name) if group == "model" else editors_with(group, name) if group.startswith("editor/") else ()
    )
    check(resolved(with_what_is_missing(f"{group}={name}", *needed), {}))


def targets(node: Any) -> Iterator[str]:
    """What is built below a node of a config."""
    if isinstance(node, dict):
        yield from [node["_target_"]] if "_target_" in node else []
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(part)


@pytest.mark.parametrize("target", sorted({target for path in SOURCES for target in targets(read(path))} - {"???"}))
def test_every_number_of_a_constructor_has_a_range(target: str) -> None:
    """Its type is one of kedit.common.options, or has bounds of its own: an `int` takes -1, a `float` infinity."""
    built = get_object(target)
    hints = get_type_hints(built.__init__ if isinstance(built, type) else built, include_extras=True)
    given_later = {"cases", "T", "record", "case_id", "dropped", "train", "return"}
    bare = {name: hint for name, hint in hints.items() if name not in given_later and numbers_without_bounds(hint)}
    assert not bare


def numbers_without_bounds(hint: Any) -> bool:
    return hint in (int, float) or (
        get_origin(hint) is not Annotated and any(map(numbers_without_bounds, get_args(hint)))
    )


@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_is_built_from_its_yaml(editor: str) -> None:
    instantiate(composed(f"editor={editor}").editor, _convert_="all")


def test_the_quickstart_composes() -> None:
    """The papers' tables: test_sweeps.py."""
    assert composed("sweeps=quickstart").setting.checkpoints == [10]


# --- numbers of an editor for a model --------------------------------------------------------------------------------


def place_of(path: Path) -> tuple[str, tuple[str, ...], str]:
    """What a file of numbers is named after: the option that they stand below, and the choices that make it."""
    of = path.relative_to(CONF / "hparams").parent
    source = CONF / "editor" / f"{of}.yaml"
    assert source.is_file(), f"{path}: there is no {source}"
    if source.parent == CONF / "editor":
        return "editor", (f"editor={of}",), str(of)
    group = str(source.relative_to(CONF).parent)
    return group.replace("/", "."), (*editors_with(group, source.stem), f"{group}={source.stem}"), str(of)


def name_of(path: Path) -> str:
    return str(path.relative_to(CONF / "hparams").with_suffix(""))


@pytest.mark.parametrize("path", NUMBERS, ids=name_of)
def test_numbers_fit_what_they_are_of(path: Path) -> None:
    option, choices, _ = place_of(path)
    cfg = composed(*choices)
    OmegaConf.update(cfg, option, OmegaConf.load(path), merge=True)
    check(resolved(cfg, {}))


def one_of_each() -> list[Path]:
    """A file of numbers for every editor, part and model."""
    seen: set[str] = set()
    chosen = []
    for path in sorted(NUMBERS, key=lambda path: path.stem == "world"):
        if {str(path.parent), path.stem} - seen:
            seen |= {str(path.parent), path.stem}
            chosen.append(path)
    return chosen


@pytest.mark.parametrize("path", one_of_each(), ids=name_of)
def test_numbers_reach_what_they_are_of(path: Path) -> None:
    option, choices, of = place_of(path)
    given = (*choices, f"model={path.stem}", *datasets_for(path.stem))
    assert number_files(whole(*given).hydra)[f"{of}/{path.stem}"] == (option, path)
    final = OmegaConf.select(composed(*given), option)
    for key, value in OmegaConf.to_container(OmegaConf.load(path)).items():  # type: ignore[union-attr]
        assert isinstance(value, dict) or final[key] == value, key


@pytest.mark.parametrize("path", sorted((CONF / "editor").rglob("*.yaml")), ids=choice_of)
def test_an_editors_own_numbers_come_last_so_that_a_child_inherits_them(path: Path) -> None:
    """A parent's yaml, its numbers, the child's yaml, its numbers. Hydra wants what overrides a choice at the end."""
    of = path.relative_to(CONF / "editor").with_suffix("")
    line = {f"optional /hparams/{of}@_here_": "${model}"}
    entries = [entry for entry in read(path).get("defaults", []) if "override " not in str(entry)]
    entries = [
        entry for entry in entries if "/dataset_hparams/" not in str(entry)
    ]  # of a dataset too: behind the model's
    if path.parent == CONF / "editor" or (CONF / "hparams" / of).is_dir():
        assert entries[-2:] == ["_self_", line]


def numbers(*given: str) -> dict[str, Any]:
    return described(number_files(whole(*given).hydra), resolved(composed(*given), {}))


GPT2 = ("model=gpt2-xl", "dataset=zsre")


def test_the_order_of_numbers(tmp_path: Path) -> None:
    """Parent's yaml, parent's numbers, child's yaml, child's numbers; also in a folder of the user's own."""
    write(tmp_path, "editor/mine.yaml", "defaults: [memit, _self_]\nvalues:\n  lr: 0.7\n")
    found = [f"hydra.searchpath=[{tmp_path}]", "editor=mine", *GPT2]
    editor = composed(*found).editor
    assert (editor.layers, editor["values"].steps) == ([13, 14, 15, 16, 17], 20)  # MEMIT's for GPT-2 XL
    assert (editor.solver.weight, editor["values"].lr) == (20_000, 0.7)  # its solver's; the child's yaml
    whole.cache_clear()
    write(tmp_path, "hparams/mine/gpt2-xl.yaml", "layers: [2]\nvalues:\n  lr: 0.9\n")
    editor = composed(*found).editor
    assert (editor.layers, editor["values"].lr, editor["values"].steps) == ([2], 0.9, 20)
    assert composed(*found, "editor.values.lr=0.1").editor["values"].lr == 0.1
    assert numbers(*found)["numbers"]["mine/gpt2-xl"] == ["editor.layers", "editor.values.lr"]


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_numbers_of_one_editor_for_one_model_come_after_the_editor_and_before_the_command_line() -> None:
    assert composed("editor=kdpo").editor.lr == 5e-4
    assert composed("editor=kdpo", "model=local", "model.path=x", "dataset=zsre").editor.lr == 1e-4
    assert composed("editor=kdpo", "editor.lr=5").editor.lr == 5
    assert composed("editor=ft_m", "editor/loss=kdpo").editor.loss.beta == 0.1


DATASET_NUMBERS = sorted((CONF / "dataset_hparams").rglob("*.yaml"))


@pytest.mark.parametrize("path", DATASET_NUMBERS, ids=lambda path: str(path.relative_to(CONF / "dataset_hparams")))
def test_numbers_of_an_editor_for_a_model_and_a_dataset(path: Path, tmp_path: Path) -> None:
    """They replace those for the model, also in editors that build on it; a dataset may be one of the user's own."""
    editor, model = path.relative_to(CONF / "dataset_hparams").parts[:2]
    children = [name for name in EDITORS if editor in read(CONF / "editor" / f"{name}.yaml").get("defaults", [])]
    base, given = composed(f"editor={editor}", f"model={model}", *datasets_for(model)).editor, read(path)
    write(tmp_path, f"dataset/{path.stem}.yaml", "defaults: [zsre, _self_]\n")
    for name in (editor, *children):
        chosen = (f"hydra.searchpath=[{tmp_path}]", f"editor={name}", f"model={model}", f"dataset={path.stem}")
        own = composed(*chosen).editor
        assert {key: own[key] for key in given} == given != {key: base[key] for key in given}
    whole.cache_clear()


def test_what_a_child_must_not_inherit_its_yaml_says() -> None:
    """KDPO has no norm constraint (its released yamls), EMMET one layer, PMET its own decay, LoRA all layers."""
    qwen, llama = ("model=qwen1.5-7b", "dataset=zsre"), ("model=llama2-7b", "dataset=zsre")
    assert composed("editor=ft_m", *qwen).editor.norm_constraint == 5e-4
    assert composed("editor=kdpo", *qwen).editor.norm_constraint is None
    assert composed("editor=ft_w", *qwen).editor.norm_constraint is None
    assert composed("editor=emmet", "model=llama3-8b", "dataset=zsre").editor.layers is None
    assert composed("editor=pmet", *llama).editor["values"].decay == 0.5
    assert composed("editor=pmet", *GPT2).editor.solver.weight == 6000
    assert composed("editor=lora", *llama).editor.layers is None
    assert composed("editor=adalora").editor.stop_loss is None


def test_whose_numbers_a_cell_has_is_told() -> None:
    """In meta.json, in the caption and in the log; a model that nobody has tuned for is told, too."""
    assert numbers("editor=kdpo") == {"numbers": {"kdpo/world": ["editor.layers", "editor.lr"]}, "untuned": False}
    inherited = numbers("editor=kdpo", *GPT2)
    assert inherited == {"numbers": {"ft_m/gpt2-xl": ["editor.layers"]}, "untuned": False}
    wiki = numbers("editor=ft_mask_para_rand_wiki")["numbers"]
    assert wiki == {
        "ft/world": ["editor.lr", "editor.max_grad_norm"],
        "ft_mask_para/world": ["editor.examples.para.prefixes"],
        "ft_mask_para_rand_wiki/world": ["editor.texts.source"],
    }
    untuned = numbers("editor=swea_os", *GPT2)
    assert untuned == {"numbers": {}, "untuned": True}
    names = {"editor": "kdpo", "model": "gpt2-xl"}
    assert list(said(names, inherited)) == ["editor=kdpo has numbers for model=gpt2-xl from conf/hparams: ft_m/gpt2-xl"]
    assert "layers are taken by relative depth" in next(said(names, untuned))
    assert not list(said({"editor": "kdpo", "model": "world"}, numbers("editor=kdpo")))


# --- Hydra's words, and names of directories -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("editor.lrr=1", ConfigCompositionException, "lrr"),
        ("editor=ftm", MissingConfigException, "ft_m"),
        ("sweeps=kdpo_table0", MissingConfigException, "quickstart"),
        ("colour=blue", ConfigCompositionException, "colour"),
    ],
)
def test_unknown_keys_and_groups_do_not_compose(given: str, error: type[Exception], said: str) -> None:
    """How it is said: test_composition.py."""
    with pytest.raises(error) as caught:
        composed(given)
    assert said in f"{caught.value} {caught.value.__cause__}"


NAMES = {"model": "world", "dataset": "world", "editor": "kdpo", "setting": "sequential", "sweeps": "adhoc"}


def test_a_cells_directory_is_named_by_its_choices() -> None:
    task = ["T=5", "editor=kdpo", "editor.lr=1e-3", "tracker.mode=online", "seed=7", "dataset.limit=9", "threads=2"]
    directory = cell_directory(Path("runs"), NAMES | {"overrides": overrides(task)}, 5, 7)
    assert str(directory) == "runs/adhoc/world/world/kdpo/sequential-T5/seed7/dataset.limit=9,editor.lr=1e-3"
    assert overrides(list(reversed(task))) == overrides(task)
    assert names_of(whole("editor=ft_m").hydra)["editor"] == "ft_m"


LONG = "data/" * 30
READABLE = {  # overrides -> the folder's name; "#": six digits of a hash
    "dataset.path=/data/x.json": "dataset.path=%data%x.json",
    "editor/loss=overtone": "editor-loss=overtone",
    "editor.lr=0.001,editor/loss=overtone": "editor.lr=0.001,editor-loss=overtone",
    f"dataset.path=/{LONG}x.json": "dataset.path=x.json~#",
    f"dataset.path=[/{LONG}x.json,/{LONG}y.json],editor.lr=0.1": "dataset.path=[x.json,y.json],editor.lr=0.1~#",
    f"model.path=/{LONG}": "model.path=data%~#",
    "a=" + "x" * 99: "a=xxxxxxxxxxx..xxxxxxxxxxx~#",
    "a=" + "é" * 99: "a=___________..___________~#",
    "a=b\nc": "a=b_c~#",
    "a=\0": "a=_~#",
    "a=50%,path=x/y": "a=50%,path=y~#",  # not told from path=x%y
    "x-y=1,a/b=2": "x-y=1,a-b=2~#",
    ",".join(f"eval.measures.lm_eval.option{i}=value{i}" for i in range(4)): (
        "option0=value0,option1=value1,option2=value2,option3=value3~#"
    ),
    ",".join(f"option{i}=value{i}" for i in range(9)): (
        "option0=value0,option1=value1,option2=value2,option3=value3,option4=val..~#"
    ),
}


@pytest.mark.parametrize("text", READABLE)
def test_long_overrides_and_paths_have_readable_names(text: str) -> None:
    directory = cell_directory(Path("runs"), NAMES | {"overrides": text}, 5, 7)
    assert re.sub("(?<=~)[0-9a-f]{6}$", "#", directory.name) == READABLE[text]
    assert len(directory.name) <= 80
    assert directory.parent.name == "seed7"


def test_two_paths_with_one_last_part_are_two_cells() -> None:
    names = (NAMES | {"overrides": f"dataset.path=/{LONG}{folder}/x.json"} for folder in "ab")
    assert len({cell_directory(Path("runs"), name, 5, 7) for name in names}) == 2


def test_a_cell_whose_directory_an_older_kedit_named_by_a_hash_is_continued_there(tmp_path: Path) -> None:
    text = "dataset.path=/data/x.json"
    older = tmp_path / "adhoc/world/world/kdpo/sequential-T5/seed7" / sha256(text.encode()).hexdigest()[:12]
    older.mkdir(parents=True)
    assert cell_directory(tmp_path, NAMES | {"overrides": text}, 5, 7) == older


WRONG = ["..", "../..", "../x", "a/../../b", "/etc", "~", "~/x", "", ".", "a\nb", "a\0", "a//b"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("option", ["editor", "model", "dataset", "setting", "sweeps", "T", "seed"])
def test_no_cell_lies_outside_of_the_runs(option: str, wrong: str) -> None:
    """T and seed are numbers by then, and have a word in front of them."""
    names = NAMES | {"overrides": ""} | ({option: wrong} if option in NAMES else {})
    with pytest.raises(InputError, match=f"^{option}="):
        cell_directory(Path("/runs"), names, wrong if option == "T" else 5, wrong if option == "seed" else 7)
