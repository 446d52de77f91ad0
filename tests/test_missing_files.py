"""What is missing, or too long for the model, is said in one flat sentence before anything is loaded or made."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS, run_kedit
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from odd_files import FLAT, FORMS, KNOWEDIT, MEND, ROME, SIMPLE, text
from omegaconf import DictConfig

import kedit.run.main  # noqa: F401 (the resolvers of conf/)
from kedit.cases import check_subjects
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.data import load
from kedit.data.choices import dataset_options
from kedit.data.files import dataset_of
from kedit.data.records import find_field
from kedit.lm.sentence_encoder import MINILM
from kedit.run.cell import assemble, one_sentence, run
from kedit.run.naming import names_of

SNIPPETS = "attribute_snippets.json: no such file; get ROME's reference texts for consistency from https://rome"
RAND = "editor=ft_mask_para_rand"
ZSRE = ["dataset=zsre", f"dataset.path={TESTS / 'data' / 'zsre.json'}"]
RELEASED = ["model=local", "model.path=x", *ZSRE, "editor=lte", "editor/alignment/conversations=released"]
# overrides, and which file the sentence names
SWEEPS = {
    "ft_editing_table2 zsre_mend": (["sweeps=ft_editing_table2", "dataset=zsre_mend"], "zsre_mend_eval.json"),
    "ft_editing_table2 counterfact": (["sweeps=ft_editing_table2", "dataset=counterfact"], "multi_counterfact.json"),
    "random facts": (
        ["sweeps=ft_editing_table2", "dataset=counterfact", RAND],
        r"missing too: .*counterfact-train.json",
    ),
    "ft_editing_table3": (["sweeps=ft_editing_table3", "dataset=counterfact"], "/counterfact.json"),
    "ft_editing_table4": (["sweeps=ft_editing_table4", "dataset=world"], SNIPPETS),
    "ft_editing_table5": (["sweeps=ft_editing_table5", RAND], "multi_counterfact.json"),
    "ft_editing_table6": (["sweeps=ft_editing_table6", "editor=ft_m"], "multi_counterfact.json"),
    "ft_editing_table7": (["sweeps=ft_editing_table7", "editor=ft_m"], "_eval.json|counterfact.json"),
    "ft_editing_table8": (["sweeps=ft_editing_table8", "editor=ft_m"], "/counterfact.json: no such file"),
    "ft_editing_table9": (["sweeps=ft_editing_table9", "dataset=world"], SNIPPETS),
    "overtone_table1": (
        ["sweeps=overtone_table1", "dataset=zsre_mend_portability"],
        "zsre_mend_eval_portability_gpt4.json",
    ),
    "kedas_table4": (["sweeps=kedas_table4", "editor=ft_m"], "ZsRE-test-all.json of the hub dataset zjunlp/KnowEdit"),
    "kdpo_table1": (["sweeps=kdpo_table1", "dataset=wikibio"], "wikibio-test-all.json of the hub dataset"),
    "conversations": (
        RELEASED,
        "editor.alignment.conversations.path is null: LTE's released conversations are not part of kedit",
    ),
    "a conversations' file": (
        [*RELEASED, "editor.alignment.conversations.path=lte.json"],
        "lte.json: no such file; give it with editor.alignment.conversations.path=FILE, or set editor/alignment/conv",
    ),
    "instructions": (
        ["editor=lte", "editor.alignment.conversations.general=general.jsonl"],
        "general.jsonl: no such file; .*editor.alignment.conversations.general=null",
    ),
    "general prompts": (
        ["editor=kedas", "editor.filter.pairs.general=general.jsonl"],
        "general.jsonl: no such file; give general prompts with editor.filter.pairs.general=FILE, or set",
    ),
    "SERAC's scope classifier": (
        ["model=local", "model.path=x", *ZSRE, "editor=serac", "editor.scope.model=nowhere/none"],
        r"editor.scope.model=nowhere/none: the scope classifier's encoder cannot be loaded .*pip install",
    ),
    "SERAC's second model": (
        ["editor=serac", f"editor.scope.model={MINILM}", "editor.counterfactual.path=nowhere/none"],
        r"editor.counterfactual.path=nowhere/none: SERAC's second model cannot be had",
    ),
    "a filter": (["editor=kedas", "editor.filter.trained=nowhere"], "editor.filter.trained=nowhere: no model there"),
    "wordings": (
        ["editor=kedas", "editor/augmentation=file", "editor.augmentation.path=forms.jsonl"],
        "forms.jsonl: no such file; give it with editor.augmentation.path=FILE",
    ),
    "texts": (
        ["editor=ft_mask_para_rand_wiki", "editor.texts.source=nowhere.txt"],
        "the corpus nowhere.txt is no file",
    ),
    "a training file": (
        [*ZSRE, RAND, "dataset.train_path=[nope.json]"],
        "nope.json: no such file; give it with dataset.train_path=FILE",
    ),
}


@pytest.fixture
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def config(*overrides: object) -> DictConfig:
    return compose("config", ["model=world", "tracker=none", *map(str, overrides)], return_hydra_config=True)


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("what", SWEEPS)
def test_a_missing_file_is_said_before_anything_is_loaded(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDIT_DATA", str(tmp_path))
    overrides, said = SWEEPS[what]
    with pytest.raises(CompactHydraException) as caught, one_sentence():
        assemble(config(*overrides))
    message = str(caught.value)
    assert re.search(said, message), message
    assert "\n" not in message
    assert "instantiat" not in message
    assert len(message) < 700
    if str(tmp_path) in message:
        assert f"put it into {tmp_path}, the folder that KEDIT_DATA names" in message


def test_the_command_says_it_too(tmp_path: Path) -> None:
    given = ["sweeps=ft_editing_table4", "model=world", "dataset=world", "editor=ft_m", "T=2"]
    done = run_kedit(tmp_path, *given, KEDIT_DATA=str(tmp_path / "files"))
    assert done.returncode == 1
    assert SNIPPETS in done.stderr
    assert "set eval.consistency=null to leave consistency out" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "runs").rglob("seed*"))


@pytest.mark.usefixtures("_hydra")
def test_what_is_trained_already_needs_no_conversations(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    with one_sentence():
        ready = [f"editor.alignment.trained={tmp_path}", f"editor.memory.encoder={MINILM}", "T=2"]
        assert assemble(config(*RELEASED, *ready)).editor.alignment.fit_report()


# --- texts that the model cannot read --------------------------------------------------------------------------------

LONG = "word " * 700
TOO_LONG = {
    "the edit's prompt": (SIMPLE | {"prompt": "Ada Ling " + LONG}, "prompt"),
    "the target": (SIMPLE | {"target_new": LONG}, "target_new"),
    "an old answer": (SIMPLE | {"ground_truth": [LONG]}, r"ground_truth\[0\]"),
    "a paraphrase": (KNOWEDIT | {"rephrase_prompt": LONG}, "rephrase_prompt"),
    "a locality question": (
        KNOWEDIT | {"locality": {"Forgetfulness": [{"prompt": LONG, "ground_truth": "x"}]}},
        r"locality.Forgetfulness\[0\].prompt",
    ),
    "a template": (
        ROME | {"requested_rewrite": ROME["requested_rewrite"] | {"prompt": "{} " + LONG}},
        "requested_rewrite.prompt",
    ),
    "a neighbour": (FLAT | {"locality_prompt": LONG}, "locality_prompt"),
    "an unrelated question": (MEND | {"loc": "nq question: " + LONG}, "loc"),
}


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("what", TOO_LONG)
def test_a_text_that_is_too_long_is_refused_before_the_cell_is_made(what: str, tmp_path: Path) -> None:
    record, field = TOO_LONG[what]
    file = tmp_path / "data.json"
    good = next(each for each in (ROME, FLAT, MEND, SIMPLE) if each.keys() <= record.keys())
    file.write_bytes(text(good, record))
    kinds = "eval.kinds=[reliability,generality,locality,portability]"
    cfg = config(f"dataset={dataset_of(file)}", f"dataset.path={file}", "editor=ft_m", "setting=single", kinds)
    cfg.runs = str(tmp_path / "runs")
    HydraConfig.instance().set_config(cfg)
    with pytest.raises(InputError, match=rf"data.json: record 1, field '{field}': the prompt .* tokens, .*\(512\)"):
        run(cfg, names_of(cfg.hydra))
    assert not (tmp_path / "runs").exists()


def test_what_an_editor_cannot_find_is_named(tmp_path: Path) -> None:
    """The record, its field, and how it differs from what is in the prompt."""
    file = tmp_path / "data.json"
    for subject, hint in {
        "Bo Hart": "where the editor looks for it; correct",
        "ada ling": "it stands there in other letter case",
        "Ada Ling ": "it stands there without the blanks at its edges",
    }.items():
        file.write_bytes(text(SIMPLE, SIMPLE | {"prompt": "The home of Ada Ling", "subject": subject}))
        dataset = load(**dataset_options("knowedit") | {"path": str(file)})
        with pytest.raises(InputError, match=rf"data.json: record 1, field 'subject': the subject .*{hint}"):
            check_subjects(dataset.cases, dataset.where)
    file.write_bytes(text(SIMPLE | {"prompt": "K\u00f6ln is in", "subject": "Ko\u0308ln"}))
    dataset = load(**dataset_options("knowedit") | {"path": str(file)})
    with pytest.raises(InputError, match="they differ in their Unicode normal form"):
        check_subjects(dataset.cases, dataset.where)


@pytest.mark.parametrize("form", FORMS)
def test_every_text_of_a_case_is_found_in_its_record(form: str, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(text(FORMS[form]))
    [case] = load(**dataset_options(dataset_of(file)) | {"path": str(file)}).cases
    found: dict[str, Any] = {probe.prompt: find_field(file, 0, probe.prompt, "Ada Ling") for probe in case.probes}
    assert None not in {field for prompt, field in found.items() if not prompt.endswith("bakes?")}
    assert find_field(file, 0, "nowhere") is find_field(file, 1, "nowhere") is None
