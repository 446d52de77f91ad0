"""Every option is checked before anything is loaded or made: one sentence with its name, its value and what to do."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Done
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kedit.common.errors import InputError
from kedit.papers import KEYS
from kedit.run.cell import one_sentence
from kedit.run.composition import composed
from kedit.run.naming import names_of
from kedit.run.options import TableKey, check, check_layers
from kedit.run.references import resolved

LOCAL = "model=local model.path=/nowhere dataset=zsre"
WIDE = 10**30
FINE_TUNE = "kedit.editors.finetune.FineTune"

# choices -> option=value -> a part of what is said, behind the option's name and value
WRONG: dict[str, dict[str, str]] = {
    "": {
        "T=true": "a whole number of at least 1 or all",
        "T=0": "of at least 1",
        "T=-3": "of at least 1",
        "T=1.5": "of at least 1",
        "T=10.0": "as 10",
        "T=1e3": "as 1000",
        "T=many": "or all",
        "T=All": "nearest is all",
        "T=null": "or all",
        "T=[1,2]": "or all",
        "T=nan": "or all",
        f"T={WIDE}": "from 1 to 2147483647",
        "seed=x": "a whole number of at least 0",
        "seed=null": "of at least 0",
        "seed=-1": "of at least 0",
        "seed=0.5": "of at least 0",
        "seed=true": "of at least 0",
        "seed=4294967296": "below 4294967296",
        "seed=../..": "of at least 0",
        "save=maybe": "true or false",
        "save=no": "true or false",
        "save=1": "true or false",
        "save=null": "true or false",
        "keep_state=on": "true or false",
        "threads=0": "from 1 to 1024",
        "threads=-2": "from 1 to 1024",
        "threads=1000000": "from 1 to 1024",
        "threads=two": "or null",
        "commit_every_s=-1": "a number of at least 0",
        "commit_every_s=soon": "a number of at least 0",
        "commit_every_s=inf": "a number from 0",
        "runs=null": "a folder",
        "runs=3": "in quotes",
        "runs=''": "a folder",
        "runs='~/out'": "$HOME",
        'runs="a\nb"': "a folder",
        "n_edits=0": "of at least 1",
        "editor.lr=abc": "a number above 0, at most 100",
        "editor.lr=-1": "above 0",
        "editor.lr=0": "above 0",
        "editor.lr=nan": "above 0",
        "editor.lr=inf": "above 0",
        "editor.lr=1e300": "at most 100",
        "editor.lr='1e-3'": "without quotes",
        "editor.lr=true": "above 0",
        "editor.lr=null": "above 0",
        "editor.lr=[1e-3]": "above 0",
        "editor.steps=0": "of at least 1",
        "editor.steps=2.5": "of at least 1",
        "editor.steps=8.0": "as 8",
        "editor.steps=true": "of at least 1",
        f"editor.steps={WIDE}": "to 2147483647",
        "editor.cycles=-1": "of at least 1",
        "editor.batch_size=0": "of at least 1",
        "editor.delta_times=0.5": "of at least 1",
        "editor.stop_loss=-0.1": "a number of at least 0 or null",
        "editor.stuck_loss=off": "or null",
        "editor.norm_constraint=0": "above 0",
        "editor.norm_constraint=false": "above 0",
        "editor.weight_decay=power": "or power_law",
        "editor.weight_decay=-0.1": "of at least 0 or power_law",
        "editor.mask=positonal": "nearest is positional",
        "editor.mask=false": "choose positional, token_membership or none",
        "editor.layers=3": "editor.layers=[3]",
        "editor.layers=[]": "different layers",
        "editor.layers=[3,3]": "different layers",
        "editor.layers=[-1]": "different layers",
        "editor.layers=[1.0]": "different layers",
        "editor.layers=['3']": "different layers",
        "editor.layers=[[3]]": "different layers",
        "editor.layers=all": "different layers",
        "editor.layers=[true]": "different layers",
        "editor.depth=1.5": "a number of at least 0, below 1",
        "editor.depth=-0.1": "of at least 0",
        "editor.parameters=mlp_uot": "mlp_out",
        "editor.loss=overtone": "editor/loss=overtone",
        "editor.loss=null": "_target_",
        "editor.loss.beta=0": "above 0",
        "editor.adapter=lora": "editor/adapter=lora",
        "editor=null": "a run needs one",
        "eval=null": "a run needs one",
        "eval.kinds=[]": "at least one",
        "eval.kinds=reliability": "eval.kinds=[reliability]",
        "eval.kinds=[reliabilty]": "nearest is reliability",
        "eval.kinds=[locality,locality]": "at least one",
        "eval.scoring=[]": "at least one",
        "eval.scoring=[generated]": "forced, generate or strict",
        "eval.aliases=al": "choose first or any",
        "eval.chat_template=false": 'a yaml file needs quotes around "off"',
        "eval.chat_template=on": "choose off, on_prompts or on_all",
        "eval.locality_reference=pre_modl": "nearest is pre_model",
        "eval.routed_by=null": "choose prompt",
        "eval.double_bos=yes": "true or false",
        "eval.easyedit_padding=middle": "choose left, right or null",
        "eval.fluency_tokens=-5": "of at least 0",
        "eval.fluency_tokens=1.5": "of at least 0",
        "eval.fluency_top_k=0": "of at least 1",
        "eval.fluency_seed=-1": "of at least 0",
        "eval.each_edit=[speed]": "each of them reliability",
        "eval.each_step=reliability": "eval.each_step=[reliability]",
        "tracker.mode=offlin": "nearest is offline",
        "tracker.mode=null": "choose offline, online or disabled",
        "tracker.project=2026": "in quotes",
        "tracker.init_timeout=0": "above 0",
        "tracker.finish_timeout=-1": "above 0",
        "model.token_budget=0": "of at least 1",
        "model.token_budget=many": "of at least 1 or null",
        "model.people=7": "an even number",
        "model.people=0": "an even number",
        "model.relations=9": "from 1 to 8",
        "model.width=100": "a multiple of 8",
        "model.layers=0": "from 1 to 64",
        "model.world_seed=-1": "of at least 0",
        "model.steps=x": "of at least 1",
        "dataset.limit=-3": "of at least 1 or null",
        "dataset.limit=0": "of at least 1",
        "dataset.train_people=-1": "of at least 0",
        "setting.batch_size=0": "of at least 1",
        "setting.checkpoints=10": "setting.checkpoints=[10]",
        "setting.checkpoints=[0]": "of at least 1",
        "setting.checkpoints=[5,5]": "different",
        "setting.short=shrink": "choose error or cap",
    },
    LOCAL: {
        "model.path=null": "a path",
        "model.path=7": "in quotes",
        "model.path=???": "is missing",
        "model.dtype=float33": "nearest is float32",
        "model.dtype=int8": "choose float32",
        "model.dtype=Tensor": "choose float32",
        "model.dtype=16": "choose float32",
        "model.device_map=gpu": "a device map",
        "model.device_map=0": "a device map",
        "model.padding_side=top": "choose left or right",
        "model.keep_mb=-1": "of at least 0",
        "model.trust_remote_code=yes": "true or false",
        "model.keep_edge_spaces=2": "true or false",
        "model.revision=null": "a name",
        "dataset.dedup=frist": "nearest is first",
        "dataset.order_seed=x": "of at least 0 or null",
        "dataset.order_seed=-1": "of at least 0",
        "dataset.limit=2.5": "of at least 1",
        "dataset.path=[a]": "a path or null",
        "dataset.train_path=[1]": "a path",
        "dataset.train_overlap=false": "choose drop or keep",
        "dataset.drop_empty_targets=maybe": "true or false",
        "dataset.parse.first_locality_only=1": "true or false",
        "dataset.parse=knowedit": "_target_",
    },
    "editor=memit": {
        "editor.values.steps=0": "of at least 1",
        "editor.values.lr=-0.5": "above 0",
        "editor.values.clamp=0": "above 0",
        "editor.values.decay=-1": "of at least 0",
        "editor.values.sites=block": "editor.values.sites=[block]",
        "editor.values.sites=[blok]": "each of them",
        "editor.values.loss_layer=-1": "from 0",
        "editor.values.loss_layer=[3]": "or null",
        "editor.solver=rank_one": "editor/solver=rank_one",
        "editor.solver.weight=0": "above 0",
        "editor.spread=evn": "nearest is even",
        "editor.n_layers=0": "of at least 1",
        "editor.keys.occurrence=second": "choose first, last or all",
        "editor.context_templates={}": "a list",
        "editor.sampling.lengths=[10,5]": "[tokens, how many]",
        "editor.sampling.words=The": "a list",
        "editor.statistics.tokens=-5": "of at least 0",
        "editor.statistics.window=0": "of at least 1",
        "editor.statistics.files=[a]": "pairs",
    },
    "editor=alphaedit": {"editor.solver.relative=0": "true or false", "editor.solver.l2=-1": "of at least 0"},
    "editor=lora": {
        "editor.adapter.rank=0": "from 1 to 65536",
        "editor.adapter.alpha=1.5": "of at least 1",
        "editor.adapter.dropout=1": "below 1",
        "editor.adapter.merge=x": "true or false",
        "editor.adapter.target_modules=3": "a name",
    },
    "editor=ft_mask_para_rand_wiki": {
        "editor.epochs=0": "of at least 1",
        "editor.schedule=linear": "choose constant or cosine",
        "editor.mixed_precision=false": 'quotes around "no"',
        "editor.gradient_accumulation=0": "of at least 1",
        "editor.checkpoint_s=-1": "of at least 0",
        "editor.examples.rand.n=0": "of at least 1",
        "editor.examples.rand=null": "_target_",
        "editor.texts.gamma=2": "from 0 to 1",
        "editor.texts.per_edit=0": "of at least 1",
    },
    "editor=kedas": {
        "editor.memory.k=0": "of at least 1",
        "editor.memory.encoder=null": "a name",
        "editor.memory.approximate_from=0": "of at least 1",
        "editor.inject=0": "of at least 1",
        "editor.aligned_when=alway": "nearest is always",
        "editor.prompt.template=hello": "{facts} and {query}",
        "editor.filter.threshold=1.5": "from 0 to 1",
        "editor.filter.training.lr=0": "above 0",
        "editor.filter.training.validation=1": "below 1",
        "editor.filter.pairs.mined=-1": "of at least 0",
        "editor.alignment.max_tokens=0": "of at least 1",
        "editor.alignment.tuner.lr=fast": "above 0",
        "editor.alignment.tuner.adapter.rank=-1": "from 1 to 65536",
        "editor.alignment.conversations.rounds=0": "of at least 1",
        "editor.alignment.conversations.facts=[2]": "from 0 to 1",
        "editor.alignment.conversations.draws={in_scope:-1}": "of at least 0",
        "editor.filter=none": "editor/filter=any_form, cross_encoder or released, or null",
    },
    "editor=kn": {"editor.threshold=2": "from 0 to 1", "editor.attributed=new": "choose old or end_of_text"},
    "editor=swea_os": {"editor.points=0": "of at least 1", "editor.lr=x": "above 0", "editor.start=inf": "a number"},
    "editor=ft_m_overtone": {"editor.loss.lam=2": "from 0 to 1", "editor.loss.reduction=max": "choose mean or sum"},
    "sweeps=kdpo_table1": {
        "table.number=0": "of at least 1",
        "table.rows=model": "table.rows=[model]",
        "table.columns=[metrc]": "each of them model",
        "table.without=3": "a list",
        "table.paper=null": "a name",
    },
}
ROWS = [(choices, given, said) for choices, rows in WRONG.items() for given, said in rows.items()]


@cache
def base(choices: str) -> tuple[Any, dict[str, str]]:
    cfg = composed(choices.split(), return_hydra_config=True)
    names = names_of(cfg.hydra)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg, names


def config(choices: str, given: str = "") -> dict[str, Any]:
    """What these choices compose, with an option as the command line reads it."""
    cfg, names = base(choices)
    cfg = cfg.copy()
    if given:
        override = OverridesParser.create().parse_override(given)
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return resolved(cfg, names)


def test_there_are_enough_of_them() -> None:
    assert len(ROWS) >= 120


@pytest.mark.parametrize(("choices", "given", "said"), ROWS, ids=[f"{c.rpartition('=')[2]} {g}" for c, g, _ in ROWS])
def test_a_wrong_value_is_one_sentence(choices: str, given: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        check(config(choices, given))
    text, name = str(caught.value), given.partition("=")[0]
    assert text.startswith(name)
    assert said in text.removeprefix(name)
    assert "\n" not in text
    assert len(text) < 400


RIGHT = {
    "": "T=all T=1 seed=0 editor.lr=1 editor.lr=1e-3 editor.stop_loss=null editor.stop_loss=0 editor.layers=null "
    "editor.layers=[0,3] editor.weight_decay=power_law editor.depth=0 threads=2 eval.chat_template=off runs=a/b "
    "eval.each_edit=[] eval.fluency_tokens=0 commit_every_s=0 dataset.limit=3 setting.checkpoints=[1,2] save=true",
    LOCAL: "model.device_map=cuda:1 model.device_map={a:0} dataset.train_path=a dataset.train_path=[a,b] "
    "dataset.order_seed=3 model.dtype=bfloat16 model.token_budget=9",
    "editor=memit": "editor.values.loss_layer=2 editor.statistics.files={0:a} editor.context_templates=['{}']",
    "editor=ft_mask": "editor.mixed_precision=no editor.mixed_precision=bf16 editor.max_grad_norm=1",
    "editor=kedas": "editor.filter=null editor.alignment=null editor.filter.threshold=1 editor.memory.k=9",
    "sweeps=kdpo_table1": "table.number=2 table.rows=[model,T]",
}


@pytest.mark.parametrize("choices", RIGHT)
def test_right_values_are_taken(choices: str) -> None:
    for given in RIGHT[choices].split():
        check(config(choices, given))


@pytest.mark.parametrize(
    ("choices", "given", "layers"),
    [
        ("", "editor.layers=[9]", 4),
        ("", "editor.layers=[0,4]", 4),
        ("editor=memit", "editor.values.loss_layer=7", 7),
        ("editor=memit", "editor.statistics.files={0:a,12:b}", 12),
        ("editor=alphaedit", "editor.solver.files={4:a}", 4),
        ("editor=kedas", "editor.alignment.tuner.layers=[30]", 4),
    ],
)
def test_a_layer_that_the_model_lacks(choices: str, given: str, layers: int) -> None:
    with pytest.raises(InputError, match=rf"layers 0 to {layers - 1}; choose from these") as caught:
        check_layers(config(choices, given), layers)
    assert str(caught.value).startswith(given.partition("=")[0])
    check_layers(config(choices, given), 50)


@pytest.mark.parametrize(
    ("choices", "given", "said"),
    [
        ("editor=rome", "editor.layers=[0,1]", "editor.layers=[0, 1]: RankOne changes one layer"),
        ("editor=rome editor.layers=null", "editor.n_layers=2", "editor.n_layers=2: RankOne changes one layer"),
        ("editor=adalora", "editor.steps=20", "leave no step of total_steps=20"),
        ("editor=ft_mask", "editor.parameters=null", "one of the two is trained"),
        ("eval=rome", "eval.kinds=[consistency]", "add fluency"),
    ],
)
def test_options_that_do_not_go_together(choices: str, given: str, said: str) -> None:
    whole = config(choices, given)
    check(whole)
    with pytest.raises(Exception, match=r".") as caught, one_sentence():
        instantiate(whole[given.partition(".")[0]], _convert_="all")
    assert said in str(caught.value)


class OwnEditor:
    """An editor of the user's own whose types nobody can resolve."""

    def __init__(self, *, rate: "Nowhere", size: int): ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": "nowhere.Editor"}, "editor._target_=nowhere.Editor: cannot be imported"),
        ({"_target_": "kedit.editors.locate.Lokate"}, "cannot be imported"),
        ({"_target_": 3}, "cannot be imported"),
        ({"_target_": "???"}, "is only a base for others"),
        ({"_target_": "test_options.OwnEditor", "rate": 1}, "editor.size is missing"),
        ({"_target_": "test_options.OwnEditor", "rate": 1, "size": 2, "sise": 2}, "nearest is editor.size"),
        ({"_target_": "test_options.OwnEditor", "rate": {"_target_": "nope"}, "size": 2}, "editor.rate._target_=nope"),
        (
            {
                "_target_": "kedit.editors.finetune.FineTune",
                "lr": 1,
                "steps": 1,
                "loss": {"_target_": "kedit.cases.Case"},
            },
            "editor.loss: kedit.cases.Case is no Loss; choose another with editor/loss=",
        ),
    ],
)
def test_what_cannot_be_built(node: dict[str, Any], said: str) -> None:
    whole = config("") | {"editor": node}
    with pytest.raises(InputError) as caught:
        check(whole)
    assert said in str(caught.value)


def test_a_target_whose_types_cannot_be_resolved_is_left_alone() -> None:
    check(config("") | {"editor": {"_target_": "test_options.OwnEditor", "rate": "x", "size": None}})


def test_the_keys_of_a_table_are_those_of_the_papers() -> None:
    assert list(TableKey.__args__) == KEYS


# --- through the command ---------------------------------------------------------------------------------------------

REFUSED = {
    "T=true": "T=true: give",
    "seed=x": "seed=x: give",
    "save=maybe": "save=maybe: give true or false",
    "editor=rnome": "editor=rnome: no such choice; nearest is rome",
    "editor.lrr=1": "editor.lrr: editor=kdpo has no such option; nearest is editor.lr",
    "model=local": "dataset=world takes model.people, which model=local does not have",
}
AT_WORK = {
    "dataset.limit=-3": "dataset.limit=-3: give",
    "tracker.mode=offlin": "nearest is offline",
    "editor.layers=[9]": "editor.layers=[9]: the model has layers 0 to 3",
    "+foo=1": "+foo=1: nothing reads foo",
}


@pytest.mark.parametrize("given", REFUSED)
def test_the_command_refuses(kedit: Callable[..., Done], tmp_path: Path, given: str) -> None:
    done = kedit(given)
    assert done.returncode == 1
    assert REFUSED[given] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*")) or list(tmp_path.rglob("*")) == [tmp_path / "runs"]


@pytest.mark.parametrize("given", AT_WORK)
def test_the_command_refuses_before_the_cell_is_made(refusal: Callable[..., str], tmp_path: Path, given: str) -> None:
    said = refusal(given)
    assert AT_WORK[given] in said
    assert "\n" not in said
    assert not list((tmp_path / "runs").iterdir())
