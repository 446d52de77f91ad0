"""General ability: lm-eval's benchmarks through the edited model itself, as lm-eval's own model would answer them."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPES, TESTS, run_kedit
from made_cells import make_cell
from transformers import AutoModelForCausalLM

from kedit.common.errors import InputError
from kedit.evaluation.measures import lm_eval as measure_module
from kedit.evaluation.measures.chosen import check_measured, named_measures
from kedit.evaluation.measures.lm_eval import LmEval
from kedit.evaluation.measures.perplexity import Perplexity
from kedit.lm import LM, Route
from kedit.reports.table.layout import layout
from kedit.reports.table.show import paper_table
from kedit.results.abilities import abilities
from kedit.results.cells import Cell, find

pytest.importorskip("lm_eval")

SIX = ["hellaswag", "winogrande", "mmlu", "commonsense_qa", "mnli", "sst2"]
NEAR = 1e-4  # nats
ULP = 2**-23  # HFLM returns a float32 sum: of 1000 nats the last place is 6e-5


@pytest.fixture
def small(_world_lm: LM) -> LM:
    """A random Llama with the world's tokenizer."""
    torch.manual_seed(0)
    return LM(AutoModelForCausalLM.from_config(deepcopy(SHAPES["llama"])), _world_lm.text.tokenizer)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def six(test_data: Path) -> LmEval:
    return LmEval(SIX, data=str(test_data), limit=8, bootstrap_iters=100)


def documents(n: int = 6) -> list[dict[str, Any]]:
    cities = ["Ashbrook", "Oakport", "Redford", "Stonehaven"]
    return [
        {"prompt": f"The capital of country {i} is", "choices": cities[i % 4 :] + cities[: i % 4], "answer": i % 3}
        for i in range(n)
    ]


def own(**more: Any) -> LmEval:
    """A task that needs no file."""
    return LmEval(["own"], generated={"own": documents}, **more)


def edit(lm: LM) -> None:
    [weight] = lm.track(["model.layers.1.mlp.down_proj.weight"])
    torch.manual_seed(1)
    weight.data.add_(0.3 * torch.randn_like(weight))


def by_item(items: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(item["task"], item["document"]): item for item in items}


def hf_answers(measure: LmEval, lm: LM) -> tuple[dict[tuple[str, int], list[float]], Mapping[str, Any]]:
    """Log-likelihoods of lm-eval's own model by document, and its results."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=lm.model, tokenizer=lm.text.tokenizer, batch_size=16, device="cpu")
    found: Any = evaluate(
        lm=theirs, task_dict=measure._loaded, limit=measure.limit, bootstrap_iters=100, log_samples=True
    )
    answers = {
        (task, one["doc_id"]): [reply[0][0] for reply in one["resps"]]
        for task, some in found["samples"].items()
        for one in some
    }
    return answers, found["results"]


@pytest.mark.parametrize("edited", [False, True])
def test_answers_are_those_of_lm_evals_own_model(small: LM, six: LmEval, edited: bool) -> None:
    """Log-likelihoods item by item; metrics and standard errors, unless two choices of an item are too near."""
    if edited:
        edit(small)
    found = six(small, "")
    theirs, results = hf_answers(six, small)
    items = by_item(found.items)
    assert items.keys() == theirs.keys()
    pairs = [pair for at in items for pair in zip(items[at]["logprobs"], theirs[at], strict=True)]
    assert all(abs(a - b) < max(NEAR, 2 * ULP * abs(b)) for a, b in pairs)
    near = {at[0] for at, item in items.items() if _nearest(item["logprobs"]) < NEAR}
    sure = [row for row in found.rows if not any(task.startswith(row["group"]) for task in near)]
    assert len(sure) >= 6, near
    for row in sure:
        numbers = results[row["group"]]
        assert row["value"] == pytest.approx(numbers[f"{row['metric']},none"], abs=1e-12)
        assert row["stderr"] == pytest.approx(numbers[f"{row['metric']}_stderr,none"], abs=1e-9)


def _nearest(logprobs: list[float]) -> float:
    ordered = sorted(logprobs)
    return min((b - a for a, b in pairwise(ordered)), default=math.inf)


def test_the_edited_model_is_asked(small: LM) -> None:
    measure = own()
    before = by_item(measure(small, "").items)
    edit(small)
    after = by_item(measure(small, "").items)
    assert all(before[at]["logprobs"] != after[at]["logprobs"] for at in before)
    small.restore()
    assert by_item(measure(small, "").items) == before


def test_what_a_memory_has_nothing_for_is_answered_as_by_the_unedited_model(small: LM) -> None:
    """Bit for bit; what it has something for carries its route."""
    measure = own()
    before = by_item(measure(small, "").items)
    known = documents()[2]["prompt"]

    def route(texts: list[str], keys: list[str]) -> list[Route]:
        return [
            Route(f"New fact: Oakport.\n{t}" if t == known else t, info={"in_scope": int(t == known)}) for t in texts
        ]

    small.route = route
    found = measure(small, "")
    after = by_item(found.items)
    differ = [at for at in before if before[at]["logprobs"] != after[at]["logprobs"]]
    assert differ == [("own", 2)]
    assert after["own", 2]["route"] == {"in_scope": 1}
    [row] = [row for row in found.rows if row.get("main")]
    assert row["routed"] == {"requests": 24, "in_scope": 4, "cut": 0}


def test_the_unedited_models_answers_are_kept_for_every_later_run(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    first = own()(lm, "")
    monkeypatch.setattr("kedit.lm.lm_eval_model.score_continuations", None)
    again = own()(lm, "")
    assert again.rows == first.rows
    assert again.items == first.items


def test_texts_are_generated_until_a_stop_string_and_no_further(lm: LM) -> None:
    from lm_eval.api.instance import Instance

    from kedit.lm.lm_eval_model import LmEvalModel

    def ask(text: str, **options: Any) -> str:
        request = Instance("generate_until", {}, (text, {"until": ["\n"], **options}), 0, ("t", 0, 1))
        return LmEvalModel(lm, lambda kind, requests, compute: compute()).generate_until([request])[0]

    whole = ask("The capital of Arvenia is", max_gen_toks=8)
    assert whole.strip()
    cut = whole.strip()[-1]
    assert ask("The capital of Arvenia is", max_gen_toks=8, until=[cut]) == whole.partition(cut)[0]


def rolling(texts: Sequence[str]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood_rolling", {}, (text,), 0, ("t", i, 1)) for i, text in enumerate(texts)]


def test_texts_longer_than_the_context_have_the_log_likelihoods_of_lm_evals_own_model(lm: LM) -> None:
    """In windows; a gate or a hook sees every token of them as prompt, as it does for perplexity."""
    from lm_eval.models.huggingface import HFLM

    from kedit.lm.lm_eval_model import LmEvalModel

    config = deepcopy(SHAPES["llama"])
    config.max_position_embeddings = 64
    small = LM(AutoModelForCausalLM.from_config(config), lm.text.tokenizer)
    texts = ["The capital of Arvenia is Oakport. " * n for n in (1, 40, 7)]
    theirs = HFLM(pretrained=small.model, tokenizer=small.text.tokenizer, batch_size=2, device="cpu")
    expected = theirs.loglikelihood_rolling(rolling(texts), disable_tqdm=True)
    model = LmEvalModel(small, lambda kind, requests, compute: compute())
    assert len(model._windows(texts[1])) > 1
    assert model.loglikelihood_rolling(rolling(texts)) == pytest.approx(expected, abs=1e-3)
    seen: list[bool] = []

    def change(this: Any, entered: Any, output: Any) -> Any:
        seen.append(bool((this.prompt == this.real).all()))
        return output

    small.intervene("model.layers.0.mlp", change)
    assert model.loglikelihood_rolling(rolling(texts)) == pytest.approx(expected, abs=1e-3)
    assert seen
    assert all(seen)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_without_lm_eval_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs lm-eval; install it with: pip install 'kedit\[lmeval\]'$"):
        own().prepare()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: LmEval(["helaswag"], files={"helaswag": "no.json"}), "no such file"),
        (lambda: own(num_fewshot=6), "own has only 5 documents to take examples from; give at most 5"),
    ],
)
def test_mistakes_are_one_sentence_before_a_model_is_loaded(made: Callable[[], LmEval], said: str) -> None:
    with pytest.raises(InputError, match=said):
        made().prepare()


def test_a_name_that_lm_eval_does_not_have_is_refused_with_those_like_it(tmp_path: Path) -> None:
    path = tmp_path / "helaswag.jsonl"
    path.write_text(json.dumps({"ctx": "a"}))
    with pytest.raises(InputError, match=r"no task 'helaswag'; did you mean .*hellaswag"):
        LmEval(["helaswag"], files={"helaswag": str(path)}).prepare()


def test_a_metric_that_the_task_does_not_have_is_refused(small: LM) -> None:
    with pytest.raises(InputError, match=r"metric.own=f1: choose from acc, acc_norm"):
        own(metric={"own": "f1"})(small, "")


def test_in_a_setting_that_always_restores_benchmarks_are_refused_unless_wanted() -> None:
    with pytest.raises(InputError, match=r"each_restore=true .* or choose setting=sequential"):
        check_measured({"lm_eval": own()}, [True, True])
    check_measured({"lm_eval": own(each_restore=True)}, [True, True])
    check_measured({"perplexity": Perplexity()}, [True])


def test_perplexity_is_the_first_measure() -> None:
    assert list(named_measures(None)) == ["perplexity"]


def test_two_files_for_one_task_are_refused(tmp_path: Path) -> None:
    for name in ("sst2_a.tsv", "sst2_b.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\nfine\t1\n")
    with pytest.raises(InputError, match=r"2 files for sst2 .*files.sst2=FILE"):
        LmEval(["sst2"], data=str(tmp_path)).prepare()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "name", "text", "prompt", "choices"),
    [
        (
            "winogrande",
            "winogrande.json",
            json.dumps(
                [
                    {
                        "instruction": "Please choose the correct answer to fill in the blank to complete the given "
                        "sentence: Sarah was better than Maria so _ got the easy cases.\n\nOption1: Sarah Option2: "
                        "Maria Answer format: option1/option2",
                        "answer": "option2",
                    }
                ]
            ),
            ["Sarah was better than Maria so Sarah", "Sarah was better than Maria so Maria"],
            " got the easy cases.",
        ),
        (
            "commonsense_qa",
            "commonsenseqa.jsonl",
            json.dumps(
                {
                    "question": {"stem": "Where?", "choices": [{"label": x, "text": x * 2} for x in "ABCDE"]},
                    "answerKey": "B",
                }
            ),
            ["Question: Where?\nA. AA\nB. BB\nC. CC\nD. DD\nE. EE\nAnswer:"],
            " A",
        ),
        (
            "mnli",
            "mnli.tsv",
            'sentence1\tsentence2\tgold_label\nA "quote is kept\tIt is\tneutral\n',
            ['A "quote is kept\nQuestion: It is'],
            " True",
        ),
        (
            "sst2",
            "sst2.tsv",
            "sentence\tlabel\nfine film\t1\n",
            ["fine film\nQuestion: Is this sentence positive"],
            " ",
        ),
    ],
)
def test_files_as_they_are_passed_around_get_lm_evals_own_prompts(
    tmp_path: Path, task: str, name: str, text: str, prompt: list[str], choices: str
) -> None:
    (tmp_path / name).write_text(text)
    measure = LmEval([task], data=str(tmp_path))
    measure.prepare()
    [loaded] = measure._tasks_of(task)
    loaded.build_all_requests(limit=1, rank=0, world_size=1)
    asked = [instance.args for instance in loaded.instances]
    assert all(args[0].startswith(prompt[i % len(prompt)]) for i, args in enumerate(asked))
    assert asked[0][1].startswith(choices)


def prompts_of(measure: LmEval, task: str, limit: int | None = None) -> list[str]:
    measure.prepare()
    [loaded] = [one for one in measure._tasks_of(task) if one.task_name.startswith(task)][:1]
    loaded.build_all_requests(limit=limit, rank=0, world_size=1)
    return list(dict.fromkeys(str(instance.args[0]) for instance in loaded.instances))


def test_examples_are_other_documents_of_the_file() -> None:
    measure = own(num_fewshot=3)
    prompts = prompts_of(measure, "own")
    asked = [document["prompt"] for document in documents()]
    for prompt, mine in zip(prompts, asked, strict=True):
        assert prompt.endswith(mine)
        assert sum(prompt.count(other) for other in asked) == 4
        assert prompt.count(mine) == 1
    assert measure.description()["own"]["said"] == "made by kedit, examples from the other questions that are tested"


def test_examples_are_the_same_at_every_test(small: LM) -> None:
    measure = own(num_fewshot=2)
    assert by_item(measure(small, "").items) == by_item(measure(small, "").items)


def test_examples_of_a_file_with_splits_are_of_the_one_that_is_not_tested(tmp_path: Path) -> None:
    def questions(what: str) -> list[dict[str, Any]]:
        return [{"question": f"{what} {i}", "choices": list("wxyz"), "answer": i % 4} for i in range(3)]

    path = tmp_path / "mmlu.json"
    path.write_text(json.dumps({"virology": {"test": questions("asked"), "dev": questions("shown")}}))
    measure = LmEval(["mmlu"], files={"mmlu": str(path)}, num_fewshot=2)
    prompts = prompts_of(measure, "mmlu")
    assert all(prompt.count("shown") == 2 and prompt.count("asked") == 1 for prompt in prompts)
    assert "examples from questions of the file that are not tested" in measure.description()["mmlu"]["said"]


@pytest.mark.parametrize("task", ["hellaswag", "mmlu", "sst2"])
def test_few_shot_answers_are_those_of_lm_evals_own_model(small: LM, test_data: Path, task: str) -> None:
    measure = LmEval([task], data=str(test_data), limit=3, num_fewshot=2, bootstrap_iters=10)
    items = by_item(measure(small, "").items)
    for loaded in measure._loaded["tasks"].values():
        loaded.set_fewshot_seed(seed=measure_module.FEWSHOT_SEED)
    theirs, _ = hf_answers(measure, small)
    assert items.keys() == theirs.keys()
    for at, item in items.items():
        assert item["logprobs"] == pytest.approx(theirs[at], rel=2 * ULP, abs=NEAR)


def test_a_record_unlike_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "mnli.tsv").write_text("sentence1\tsentence2\tgold_label\na\tb\tneutral\na\tb\tperhaps\n")
    with pytest.raises(InputError, match=r"mnli.tsv: record 1 is not in the form of the first one .*perhaps"):
        LmEval(["mnli"], data=str(tmp_path)).prepare()


def test_captions_say_how_much_of_the_published_set_was_asked(test_data: Path) -> None:
    about = LmEval(["hellaswag", "winogrande", "mmlu"], data=str(test_data), limit=30).description()
    assert about["hellaswag"]["said"] == "excerpt: 1000 of 10042 documents, the first 30 of 1000"
    assert about["winogrande"]["said"] == "the first 30 of 1267"
    assert about["mmlu"]["said"].startswith("excerpt: 4 of 57 tasks, 515 of 14042 documents")
    assert about["mmlu"]["n"] == 120


# --- a run ------------------------------------------------------------------------------------------------------------


RUN = ["editor=ft_m", "T=4", "setting.checkpoints=[2]", "eval/measures=world", "eval.fluency_tokens=0", "tracker=none"]
RUN += ["eval.measures.lm_eval.limit=120", "commit_every_s=0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    done = run_kedit(folder, *RUN, KEDIT_CACHE=str(folder / "cache"))  # nobody else writes answers there
    assert done.returncode == 0, done.stderr
    return folder / "runs"


def test_a_run_asks_before_and_at_every_test_and_shows_it(finished: Path) -> None:
    [cell] = find(finished)
    lines = abilities(cell)
    assert lines["T"].tolist() == [0, 2, 4]
    assert lines["edits_so_far"].tolist() == [0, 2, 4]
    assert lines["value"].iloc[0] >= 95
    assert lines["n"].tolist() == [120] * 3
    assert set(cell.measures["group"]) == {"perplexity", "world"}
    assert "world" not in set(cell.rows["group"])  # a measure belongs to no case
    text = (cell.directory / "ability.md").read_text()
    assert "zero-shot; world: N=120, made by kedit, the first 120 of 136" in text
    assert (cell.directory / "ability.png").exists()
    items = [json.loads(line) for line in (cell.directory / "benchmarks.jsonl").read_text().splitlines()]
    assert len(items) == 3 * 120


def killed_run(folder: Path, run: Sequence[str], kills: Sequence[int], cache: Path) -> Path:
    """The run's outputs, after it was killed in writing these steps, each counted from where it began or went on."""
    environment = {**os.environ, "KEDIT_RUNS": str(folder / "runs"), "PYTHONPATH": str(TESTS.parent)}
    environment["KEDIT_CACHE"] = str(cache)
    for nth in kills:
        killed = [sys.executable, str(TESTS / "killed.py"), "rows", str(nth), *run]
        died = subprocess.run(killed, env=environment, cwd=folder, capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
    assert run_kedit(folder, *run, KEDIT_CACHE=str(cache)).returncode == 0
    return folder / "runs"


def assert_same(one: Path, other: Path) -> None:
    [first], [second] = find(one), find(other)
    for name in ("rows.jsonl", "benchmarks.jsonl"):
        assert (first.directory / name).read_text() == (second.directory / name).read_text()


def test_a_run_killed_at_its_test_with_items_on_disk_has_the_same_rows(finished: Path, tmp_path: Path) -> None:
    assert_same(finished, killed_run(tmp_path, RUN, [3], finished.parent / "cache"))


@pytest.mark.acceptance
def test_ability_over_200_edits_is_the_same_after_two_kills(tmp_path: Path) -> None:
    """At the tests after 10 and after 50 edits, whose items are on disk and whose rows are not. Writing begins with the
    unedited model's."""
    run = [*RUN[:1], "T=200", "setting.checkpoints=[10,50,100]", *RUN[3:]]
    cache = tmp_path / "cache"
    assert run_kedit(tmp_path, *run, KEDIT_CACHE=str(cache)).returncode == 0
    (tmp_path / "killed").mkdir()
    assert_same(tmp_path / "runs", killed_run(tmp_path / "killed", run, [11, 41], cache))
    [cell] = find(tmp_path / "runs")
    assert abilities(cell)["T"].tolist() == [0, 10, 50, 100, 200]


# --- a paper's table of benchmarks ------------------------------------------------------------------------------------


def benchmark_cell(runs: Path, values: Mapping[str, tuple[float, float]], editor: str, **meta: Any) -> Cell:
    """A finished cell with these benchmarks, before and after."""
    about = {name: {"n": 400, "num_fewshot": 0, "said": "", "lm_eval": "0.4"} for name in values}
    full = {"setting": "sequential", "measures": {"lm_eval": about}, **meta}
    cell = make_cell(runs, {"reliability": [1.0, 0.5]}, editor=editor, **full)
    shared = {"kind": "benchmark", "scoring": "lm_eval", "metric": "acc", "stderr": 0.02, "n": 400, "main": 1}
    moments = [{"step": 0, "when": "before", "edits_so_far": 0}, {"step": 2, "when": "test", "edits_so_far": 2}]
    moments[1]["T"] = cell.meta["effective_T"]
    with (cell.directory / "rows.jsonl").open("a") as file:
        for name, both in values.items():
            for moment, value in zip(moments, both, strict=True):
                file.write(json.dumps(moment | shared | {"group": name, "value": value}) + "\n")
    return Cell(cell.directory)


THREE = {"hellaswag": (0.76, 0.70), "winogrande": (0.69, 0.68), "mmlu": (0.41, 0.42)}


def numbers_of(known: str, cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    layout_ = layout(known)
    assert layout_
    [grid] = paper_table(layout_, cells, "difference").grids
    return {
        (line.head[0], column[-1]): entry.text
        for line in grid.lines
        for column, entry in zip(grid.columns, line.entries, strict=True)
        if "T=500" not in column and entry.text != "-"
    }


def test_benchmarks_stand_in_the_papers_places_of_their_edits(tmp_path: Path) -> None:
    cell = benchmark_cell(tmp_path, THREE, "kdpo", model="llama2-7b", dataset="zsre", T=100)
    found = numbers_of("kdpo_table3", [cell])
    assert found["KDPO", "HellaSwag"] == "-6.38 (3.92)"  # 70 - 76.38; 1.96 standard errors
    assert found["(unedited)", "HellaSwag"] == "+0.01 (3.92)"
    assert found["KDPO", "Average"] == f"{60 - 62.79:+.2f} (2.26)"
    grid = paper_table(layout("kdpo_table3"), [cell], "ours").grids[0]  # type: ignore[arg-type]
    assert "hellaswag: N=400" in grid.caption
    assert "zero-shot" in grid.caption
    dpo = next(line for line in grid.lines if line.head[0] == "DPO")
    assert dpo.entries[0].hint == "kedit sweeps=kdpo_table3 model=llama2-7b dataset=zsre editor=dpo T=100"


def test_models_without_edits_stand_where_the_paper_prints_them_without_setting(tmp_path: Path) -> None:
    values = {"commonsense_qa": (0.58, 0.57), "mnli": (0.35, 0.36), "mmlu": (0.44, 0.43), "sst2": (0.81, 0.8)}
    cell = benchmark_cell(tmp_path, values, "kedas", model="llama2-7b-chat", dataset="zsre", T=1304)
    aligned = {name: (before, after - 0.02) for name, (before, after) in values.items()}
    other = benchmark_cell(tmp_path, aligned, "post_alignment", model="llama2-7b-chat", dataset="zsre", T=1304)
    found = numbers_of("kedas_table8", [cell, other])
    assert found["(unedited)", "CSQA"] == "+0.01 (3.92)"
    assert found["Alignment, no edits", "CSQA"] == "+0.05 (3.92)"  # 55 - 54.95
    assert found["KEDAS", "SST-2"] == "-1.19 (3.92)"


def test_the_papers_table_of_benchmarks_says_what_was_edited() -> None:
    known = layout("kdpo_table3")
    assert known
    *_, last = paper_table(known, [], "paper").grids
    assert "as printed, after edits of zsre at T=100 and of wikidata_counterfact at T=500;" in last.caption


def test_two_edited_datasets_in_one_place_are_refused(tmp_path: Path) -> None:
    cells = [
        benchmark_cell(tmp_path, THREE, "kdpo", model="llama2-7b", dataset=name, T=100)
        for name in ("zsre", "wikidata_counterfact")
    ]
    known = layout("kdpo_table3")
    assert known
    with pytest.raises(InputError, match="both measure hellaswag after T=100 edits"):
        paper_table(known, cells, "difference")
