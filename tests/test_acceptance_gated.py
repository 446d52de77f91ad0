"""`make acceptance`: gated editors on real records, on random models: what `restore` brings back, and what a killed run
continues with. (In the default run: tests/test_records.py and tests/test_gated_runs.py.)"""

import json
import signal
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import SHAPES
from safetensors.torch import load_file
from test_records import editor_of
from test_resume import Run, assert_same, cell, finish, said, start  # noqa: F401
from torch import Tensor
from transformers import AutoModelForCausalLM

from kedit.data import knowedit, load, zsre_mend
from kedit.lm import LM
from kedit.lm.undo import ATTACHED

pytestmark = pytest.mark.acceptance

FILES = {  # below KEDIT_TEST_DATA: the yaml of its dataset
    "knowedit/ZsRE-test-all.json": "zsre",
    "knowedit/recent_train.json": "wikidata_recent",
    "knowedit/train_cf.json": "wikidata_counterfact",
    "knowedit/wikibio-test-all.json": "wikibio",
    "knowedit/wikibio-train-all.json": "wikibio",
    "zsre_mend/zsre_mend_train_1k.json": "zsre_mend",
    "zsre_mend/zsre_mend_eval_portability_gpt4_1037.json": "zsre_mend_portability",
}
ROWS, KILLED_AT = 20, 11  # of a file; at which commit
QUICK = {  # and so that of 20 records some share an entry, are split, or close a memory
    "grace": {"steps": 3, "radius": 1.4},
    "melo": {"steps": 3, "radius": 3.2},
    "wise": {"steps": 3, "sampling.tokens": [2], "save_every": 5, "merge_every": 10},
    "serac": {
        "scope.model": "sentence-transformers/all-MiniLM-L6-v2",
        "scope.training.max_steps": 1,
        "counterfactual.tuner.max_steps": 1,
    },
}
KEPT = {  # of the last commit: entries, and what decides between them
    "grace": {"keys", "radii", "values", "labels", "taught_by"},
    "melo": {"centers", "radii", "points", "blocks", "cluster", "A.0", "B.0"},
    "wise": {"side", "mask", "saved.0", "saved_least"},
    "serac": {"stored.keys"},
}
ENTRIES = {"grace": "keys", "melo": "centers", "wise": "saved_least", "serac": "stored.keys"}
GRID = [(editor, architecture) for editor in QUICK for architecture in ("llama", "gpt2")]


def random_model(architecture: str) -> torch.nn.Module:
    """With weights large enough to tell prompts apart."""
    config = deepcopy(SHAPES[architecture])
    config.update({"max_position_embeddings": 1024, "initializer_range": 0.08})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("editor", "architecture"), GRID)
def test_a_killed_run_on_real_records_continues_to_the_same_rows_and_entries(
    start: Run,  # noqa: F811
    tmp_path: Path,
    test_data: Path,
    lm: LM,
    editor: str,
    architecture: str,
) -> None:
    home, rows, counts = tmp_path / "model", 0, list[int]()
    random_model(architecture).save_pretrained(home)
    lm.text.tokenizer.save_pretrained(home)
    for i, (file, dataset) in enumerate(FILES.items()):
        edits = [f"editor={editor}", "model=local", f"model.path={home}", f"dataset={dataset}", f"T={ROWS}"]
        edits += [f"editor.{key}={value}".replace(" ", "") for key, value in QUICK[editor].items()]
        edits += [f"dataset.path={test_data / file}", f"dataset.limit={ROWS}", "dataset.drop_empty_targets=true"]
        edits += [f"dataset.train_path={test_data / other_than(file)}", "dataset.train_limit=10"]
        edits += [f"setting.checkpoints=[{ROWS // 2}]", "eval.fluency_tokens=0"]
        finish(start(f"straight{i}", edits=edits))
        process = start(f"killed{i}", "commit_every_s=0", edits=edits, killed=("commit", KILLED_AT))
        assert process.wait() == -signal.SIGKILL, said(process)
        assert "continuing after step" in finish(start(f"killed{i}", "commit_every_s=0", edits=edits))
        straight, killed = (cell(tmp_path, f"{name}{i}") for name in ("straight", "killed"))
        assert_same(straight, killed)
        counts.append(entries_of_both(editor, straight, killed))
        assert same(load_file(straight / "model/model.safetensors"), load_file(home / "model.safetensors"))
        rows += len((straight / "rows.jsonl").read_text().splitlines())
    sys.stdout.write(
        f"{editor} on {architecture}: {len(FILES)} files x {ROWS} edits, {rows} rows; entries of a state: {counts}\n"
    )


def other_than(file: str) -> str:
    """Training cases that are no rows of the file."""
    return "knowedit/recent_train.json" if file.startswith("zsre_mend") else "zsre_mend/zsre_mend_train_1k.json"


def entries_of_both(editor: str, one: Path, other: Path) -> int:
    """What two runs keep after the last edit is equal, texts and tensors. Returns how many entries that is."""
    found: dict[str, Tensor] = {}
    for name in ("model", "editor"):
        a, b = (load_file(next(path.glob(f"state/*/{name}.safetensors"))) for path in (one, other))
        assert same(a, b)
        found |= {key.removeprefix(f"{ATTACHED}{editor}."): value for key, value in a.items()}
    texts = [json.loads(next(path.glob("state/*/editor.json")).read_text()) for path in (one, other)]
    assert texts[0] == texts[1]
    assert found.keys() >= KEPT[editor]
    return len(found[ENTRIES[editor]])


# --- restore ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("editor", "architecture"), GRID)
def test_restore_after_real_records_is_exact(test_data: Path, lm: LM, editor: str, architecture: str) -> None:
    """Weights and answers, bit for bit; and the same edits leave the same entries again (the first file's)."""
    small = LM(random_model(architecture), lm.text.tokenizer)  # type: ignore[arg-type]
    original, moved = {name: value.clone() for name, value in small.model.state_dict().items()}, list[int]()
    made = editor_of(editor, small, QUICK[editor])
    for i, file in enumerate(FILES):
        parse = zsre_mend.parse if file.startswith("zsre_mend") else knowedit.parse
        cases = load(parse, path=str(test_data / file), drop_empty_targets=True, limit=ROWS).cases
        asked = [(probe.prompt, probe.answers[0]) for case in cases for probe in case.probes if probe.answers]
        prompts, answers = [prompt for prompt, _ in asked], [answer for _, answer in asked]
        before, states = small.answer(prompts, answers), list[Mapping[str, Tensor | str]]()
        for _ in range(1 if i else 2):
            torch.manual_seed(0)
            for case in cases:
                made.edit(small, case.edits)
            after = small.answer(prompts, answers)
            states.append({**small.state(), **made.state()})
            small.restore()
            made.reset()
            assert small.answer(prompts, answers) == before
            assert not small.changed
            assert not small.attached
            assert not made.state()
            assert same(small.model.state_dict(), original)
        assert len(states[0]) > 0
        assert states[0].keys() == states[-1].keys()
        assert all(equal(states[0][name], states[-1][name]) for name in states[0])
        moved.append(sum(one.logprob != other.logprob for one, other in zip(before, after, strict=True)))
    sys.stdout.write(f"{editor} on {architecture}: answers that {ROWS} edits of a file changed: {moved}\n")
    assert all(moved)


def equal(one: Tensor | str, other: Tensor | str) -> bool:
    return one == other if isinstance(one, str) or isinstance(other, str) else torch.equal(one, other)
