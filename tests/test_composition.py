"""A command line that cannot be composed: what is said about it, and what is found in folders of the user's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.run.composition import composed, nearest
from kedit.run.naming import names_of
from kedit.run.references import check_added, resolved

SAID = {
    # choices
    "editor=rnome": "editor=rnome: no such choice; nearest is rome or r_rome; kedit --help lists all",
    "editor=": "editor=: no such choice; kedit --help lists all",
    "eval=rnome": "eval=rnome: no such choice; choose crispedit, default, easyedit",
    "sweeps=kdpo_table0": "sweeps=kdpo_table0: no such choice; nearest is kdpo_table",
    "editor/loss=nope": "editor/loss=nope: no such choice; choose cross_entropy, dpo, kdpo",
    "hydra/launcher=nope": "hydra/launcher=nope: no such choice; choose",
    "editor/solver=rank_one": "editor/solver: editor=kdpo has no such part; choose another editor",
    "editor@foo=rome": "editor@foo: editor=kdpo has no such part",
    "editor=null": "editor=null: a run needs one choice of editor; kedit --help lists all",
    "tracker=null": "tracker=null: a run needs one choice of tracker; choose none or wandb",
    "~setting": "~setting: a run needs one choice of setting; choose blocks, incremental",
    "editor=lora editor/adapter=null": "editor/adapter=null: a run needs one choice of editor/adapter; '~",
    "eval/measures=[perplexity,lm_eval] eval.measures.lm_eval.files.sst2=a": "write +eval.measures.lm_eval.files.sst2=",
    "editor=[ft_m,rome]": "a run has one editor; for a cell of each write -m editor=ft_m,rome",
    "+editor=rome": "+editor=rome: a run has its editor already; write editor=rome, without +",
    # options
    "editor.lrr=1": "editor.lrr: editor=kdpo has no such option; nearest is editor.lr",
    "editor=rome editor.lr=1": "editor.lr: editor=rome has no such option; nearest is editor.values.lr",
    "editor=kedas editor.k=2": "editor.k: editor=kedas has no such option; nearest is editor.memory.k",
    "lr=3": "lr: a run has no such option; nearest is editor.lr",
    "steps=3": "steps: a run has no such option; nearest is ",
    "model.name=x": "model.name: model=world has no such option",
    "T.x=3": "T.x: a run has no such option",
    "editor.loss={a:1}": "editor.loss.a: editor=kdpo has no such option",
    "+editor.lr=3": "+editor.lr=3: there is this option already; write editor.lr=3, without +",
    "~editor.nope": "~editor.nope: Could not delete",
    "editor.layers.x=3": "editor.layers.x=3: ",
    "editor.layers={a:3}": "editor.layers={a:3}: Cannot merge",
    # the form of what is given
    "ft_m": "ft_m: not name=value; write editor=ft_m",
    "blocks": "blocks: not name=value; write setting=blocks",
    "nonsense": "nonsense: not readable as name=value",
    "editor.lr=[1": "editor.lr=[1: not readable as name=value",
    "editor=rome=1": "editor=rome=1: not readable as name=value",
    "T=10,20": "T=10,20: several values need -m, which runs a cell for each; a list is written T=[10,20]",
    "T=range(1,3)": "T=range(1,3): several values need -m",
    "hydra.searchpath=x": "hydra.searchpath takes a list of folders",
    "hydra.searchpath=[/nope] editor=mine": "hydra.searchpath names /nope, which is no folder",
}


@pytest.mark.parametrize("given", SAID)
@pytest.mark.filterwarnings("ignore:provider=hydra.searchpath")
def test_what_is_said_in_one_sentence(given: str) -> None:
    with pytest.raises(InputError) as caught:
        composed([given] if given in ("nonsense", "") else given.split())
    text = str(caught.value)
    assert SAID[given] in text
    assert "\n" not in text
    assert "/conf" not in text.replace(str(ROOT), "")


def test_the_nearest_option_is_one_of_the_same_part() -> None:
    names = ["eval.k", "editor.prompt.k", "editor.memory.k", "editor.steps", "T"]
    assert nearest("editor.k", names) in ("editor.memory.k", "editor.prompt.k")
    assert nearest("k", names) == "eval.k"
    assert nearest("editor.stps", names) == "editor.steps"
    assert nearest("colour", names) == ""


@pytest.mark.parametrize("model", ["local", "gpt2-xl"])
def test_which_dataset_goes_with_which_model(model: str) -> None:
    cfg = composed([f"model={model}"], return_hydra_config=True)
    names = names_of(cfg.hydra)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    with pytest.raises(InputError) as caught:
        resolved(cfg, names)
    assert str(caught.value).startswith(f"dataset=world takes model.people, which model={model} does not have; ")
    assert "counterfact" in str(caught.value)
    assert str(caught.value).endswith("or model=world")


def test_a_reference_to_nothing() -> None:
    cfg = composed(["editor.lr=${nope}"])
    with pytest.raises(InputError, match=r"editor\.lr: Interpolation key 'nope' not found"):
        resolved(cfg, {})


def test_what_nothing_reads_is_not_added() -> None:
    config = resolved(composed([]), {})
    check_added(["+editor.foo=1", "++editor.lr=3", "+T=3", "T=3"], config)  # its constructor refuses editor.foo
    for wrong in ("+foo=1", "++lr=3", "+editr.lr=3"):
        with pytest.raises(InputError, match="nothing reads"):
            check_added([wrong], config)


# --- folders ---------------------------------------------------------------------------------------------------------


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_a_folder_of_ones_own_is_searched_beside_kedits(tmp_path: Path) -> None:
    write(tmp_path, "editor/mine.yaml", "defaults: [rome, _self_]\ndepth: 0.5\n")
    write(tmp_path, "sweeps/ours.yaml", "# @package _global_\nT: 7\n")
    cfg = composed([f"hydra.searchpath=[{tmp_path}]", "editor=mine", "sweeps=ours"])
    assert (cfg.editor.depth, cfg.T) == (0.5, 7)
    assert composed([f"hydra.searchpath=[{tmp_path}]", "sweeps=quickstart"]).seed == 101


def test_no_folder_of_the_checkout_hides_an_option(tmp_path: Path) -> None:
    """runs/ lies beside sweeps/."""
    assert composed(["runs=elsewhere"]).runs == "elsewhere"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("config", ["runs=elsewhere"]).runs == "elsewhere"


@pytest.mark.parametrize(
    ("place", "folder"), [("mine.yaml", "."), ("editor/mine.yaml", "."), ("conf/editor/mine.yaml", "conf")]
)
def test_an_editor_of_ones_own_that_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, folder: str
) -> None:
    write(tmp_path, place, "defaults: [ft_m, _self_]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        composed(["editor=mine"])
    assert str(caught.value).startswith("editor=mine: no such choice; ")
    assert str(caught.value).endswith(f"--config-dir {folder}")
    write(tmp_path, "editor/mine.yaml", "defaults: [ft_m, _self_]\n")
    composed([f"hydra.searchpath=[{tmp_path}]", "editor=mine"])


def test_a_yaml_of_ones_own_that_is_wrong(tmp_path: Path) -> None:
    found = [f"hydra.searchpath=[{tmp_path}]", "editor=mine"]
    write(tmp_path, "editor/mine.yaml", "defaults: [memitt, _self_]\n")
    with pytest.raises(InputError, match=r"editor=memitt \(in the defaults of editor/mine.yaml\): no such choice"):
        composed(found)
    write(tmp_path, "editor/mine.yaml", "a: [1\n")
    with pytest.raises(InputError) as caught:
        composed(found)
    assert "expected ',' or ']'" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- grids -----------------------------------------------------------------------------------------------------------


def test_a_grid_names_the_cell_that_lacks_an_option(refusal: Callable[..., str], tmp_path: Path) -> None:
    said = refusal("-m", "editor=ft_m,rome", "editor.lr=1e-3,1e-4")
    assert said.startswith("the cell editor=rome editor.lr=0.001")
    assert said.endswith("editor.lr: editor=rome has no such option; nearest is editor.values.lr")
    assert not list((tmp_path / "runs").rglob("*"))


def test_what_a_grid_shares_is_composed_with_the_default_editor(refusal: Callable[..., str]) -> None:
    said = refusal("-m", "editor=rome,memit", "editor.values.lr=0.1")
    assert said.endswith("which has no such option; write ++editor.values.lr=")
    said = refusal("-m", "editor=rome,ft_m", "editor.values.lr=0.1")
    assert said == "editor.values.lr: editor=ft_m has no such option; nearest is editor.lr"


def test_runs_can_be_given_on_the_command_line(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert refusal("runs=mine/out", "T=0").startswith("T=0: give")
    assert refusal("runs=mine/out", "dataset.limit=0").startswith("dataset.limit=0: give")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
