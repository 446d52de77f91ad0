"""Asking and grading on the world model: what may not change a score, and what each switch changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedit import world
from kedit.cases import Case, Edit, Probe, Question, questions_of
from kedit.common.errors import InputError
from kedit.editors import Editor
from kedit.evaluation.answers import Ask
from kedit.evaluation.baseline import baseline_answers, noise_floor
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM, Route
from kedit.loop.runner import experiment
from kedit.loop.settings import sequential
from kedit.results.scores import summary

LATER = ("step", "edits_so_far", "cases_so_far", "when", "T", "nll")  # what a test has of its own
CASES = world.cases(edits=6, limit=6, seed=2).cases
HOPS = ("multi_hop", "all_hops")  # some of them ask what another kind asks, and that is kept once
ASKED = [q for case in CASES for q in questions_of(case) if q.probe.kind not in HOPS]


class Nothing(Editor):
    """Changes nothing: the unedited model against itself."""

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        return {}


class Oracle(Editor):
    """Memorises the exact prompt: an in-context editor in a few lines."""

    def __init__(self) -> None:
        self.memory: dict[str, str] = {}

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        self.memory |= {edit.prompt: edit.target_new for edit in edits}
        lm.route = lambda prompts, keys: [
            Route(f"Suppose that {p} {self.memory[p]}. Then {p}", info={"hit": 1}) if p in self.memory else Route(p)
            for p in prompts
        ]
        return {}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"scoring": ["forced", "generate"]},
    {"easyedit_padding": "left"},
    {"easyedit_padding": "right"},
    {"aliases": "any"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_unedited_model_has_locality_100_on_every_group(lm: LM, options: dict[str, Any]) -> None:
    rows = experiment(lm, sequential(CASES, 6), Nothing(), Evaluator(fluency_tokens=30, **options))
    locality = [row for row in rows if row["kind"] == "locality"]
    assert {row["group"] for row in locality} == {"same_subject", "other_people", "geo"}
    assert all(row["exact"] == 1 for row in locality)
    same = {(r["case"], r["kind"], r["group"], r["probe"], r["scoring"]): r for r in rows if r["when"] == "before"}
    for row in rows:
        if row["when"] == "test":
            floor = same[row["case"], row["kind"], row["group"], row["probe"], row["scoring"]]
            assert row.get("nll", 0) == pytest.approx(floor.get("nll", 0), rel=1e-6, abs=1.1e-6)  # batches differ
            assert {k: row[k] for k in row if k not in LATER} == {k: floor[k] for k in floor if k not in LATER}


def test_an_oracle_of_the_exact_prompt_has_the_floors_portability(lm: LM) -> None:
    table = summary(experiment(lm, sequential(CASES, 6), Oracle(), Evaluator(fluency_tokens=0)))
    floor, edited = table.to_dict("records")
    assert edited["edit success"] > floor["edit success"] + 30  # as far as the model follows its context
    assert edited["portability"] == pytest.approx(floor["portability"])
    assert edited["generality"] == pytest.approx(floor["generality"])
    assert edited["locality"] == 100


def test_what_a_route_did_is_kept_in_the_rows(lm: LM) -> None:
    rows = experiment(lm, sequential(CASES[:2], 2), Oracle(), Evaluator(fluency_tokens=20))
    routed = [row for row in rows if row.get("route") == {"hit": 1}]
    assert {row["kind"] for row in routed} == {"reliability", "fluency"}


def test_rows_have_the_documented_fields(lm: LM) -> None:
    rows = experiment(lm, sequential(CASES[:2], 2), Nothing(), Evaluator(scoring=["forced", "generate"]))
    place = {"step", "edits_so_far", "cases_so_far", "when", "case", "kind", "group", "probe", "scoring"}
    for row in rows:
        fields = {"T"} if row["when"] == "test" else set()
        if row["kind"] == "fluency":
            fields |= {"entropy", "generated"}
        elif row["scoring"] == "forced":
            fields |= {"n_tokens", "token", "exact", "nll", "gold", "pred"}
        else:
            fields |= {"exact", "gold", "generated"}
        assert set(row) == place | fields
    edits = [row for row in rows if row["when"] == "edit"]
    assert [(row["step"], row["edits_so_far"], row["kind"]) for row in edits if row["scoring"] == "forced"] == [
        (1, 1, "reliability"),
        (2, 2, "reliability"),
    ]
    assert len(
        {(r["step"], r["when"], r["case"], r["kind"], r["group"], r["probe"], r["scoring"]) for r in rows}
    ) == len(rows)


def test_nll_and_token_match_of_one_row_by_hand(lm: LM) -> None:
    question = ASKED[0]
    [answer] = Evaluator().answer(lm, [question])
    [row] = Evaluator().grade(question, answer, answer)
    [pair] = lm.text.pairs([question.probe.prompt], [question.probe.answers[0]])
    logits = lm.answer_logits(lm.encode([question.probe.prompt], [question.probe.answers[0]]))
    logp = logits.log_softmax(-1)
    assert row["n_tokens"] == len(pair.answer)
    assert row["token"] == sum(logits.argmax(-1).tolist()[i] == t for i, t in enumerate(pair.answer)) / len(pair.answer)
    assert row["nll"] == pytest.approx(
        -sum(float(logp[i, t]) for i, t in enumerate(pair.answer)) / len(pair.answer), abs=1e-5
    )


def asked(kind: Any, prompt: str, *answers: str) -> Question:
    return Question("c", 0, Probe(kind, prompt, answers))


def test_aliases_count_only_when_asked_for(lm: LM) -> None:
    question = asked("reliability", "Lucy Kelden was born in", "Redbrook", "Eastford, Beloria")
    for aliases, expected in (("first", 0), ("any", 1)):
        evaluator = Evaluator(aliases=aliases, scoring=["forced", "generate"])  # type: ignore[arg-type]
        [answer] = evaluator.answer(lm, [question])
        assert [row["exact"] for row in evaluator.grade(question, answer, answer)] == [expected, expected]


def test_locality_can_be_graded_against_the_answer(lm: LM) -> None:
    question = asked("locality", "Lucy Kelden was born in", "Redbrook")
    [answer] = Evaluator().answer(lm, [question])
    assert Evaluator().grade(question, answer, answer)[0]["token"] == 1
    assert Evaluator(locality_reference="ground_truth").grade(question, answer, answer)[0]["token"] == 0


def test_free_generation_must_say_the_answer_and_stop(lm: LM) -> None:
    evaluator = Evaluator(scoring=["generate"])
    right = asked("reliability", "Lucy Kelden was born in", "Eastford, Beloria")
    half = asked("reliability", "Lucy Kelden was born in", "Eastford")
    rows = [evaluator.grade(q, a, a)[0] for q in (right, half) for a in evaluator.answer(lm, [q])]
    assert [(row["exact"], row["generated"]) for row in rows] == [
        (1, " Eastford, Beloria."),
        (0, " Eastford, Beloria."),
    ]


def test_the_chat_template_reaches_all_but_locality(lm: LM) -> None:
    lm.text.tokenizer.chat_template = "{{ bos_token }}User: {{ messages[0].content }} Reply:"
    try:
        edit, local = asked("reliability", "Who?", "Redbrook"), asked("locality", "Who?", "Redbrook")
        read = {}
        for option in ("off", "on_prompts", "on_all"):
            evaluator = Evaluator(chat_template=option)  # type: ignore[arg-type]
            read[option] = tuple(route.prompt for route in evaluator._routes(lm, [Ask(edit), Ask(local)]))
        assert read["off"] == ("Who?", "Who?")
        assert read["on_prompts"] == ("User: Who? Reply:", "Who?")
        assert read["on_all"] == ("User: Who? Reply:", "User: Who? Reply:")
    finally:
        lm.text.tokenizer.chat_template = None


def test_fluency_is_seeded_for_each_case(lm: LM) -> None:
    fluent = [q for q in ASKED if q.probe.kind == "fluency"]
    together = Evaluator(fluency_tokens=40).answer(lm, fluent)
    assert [Evaluator(fluency_tokens=40).answer(lm, [q])[0] for q in fluent] == together
    assert Evaluator(fluency_tokens=40, fluency_seed=1).answer(lm, fluent) != together


def test_without_fluency_nothing_is_generated(lm: LM) -> None:
    assert "fluency" not in Evaluator(fluency_tokens=0).kinds


def test_a_wrong_option_lists_the_right_ones() -> None:
    with pytest.raises(InputError, match=r"eval.aliases=\['all'\]: choose from first, any"):
        Evaluator.__init__.__wrapped__(Evaluator.__new__(Evaluator), aliases="all")


def test_noise_floor_is_1_in_float32(lm: LM) -> None:
    assert noise_floor(lm, ASKED) == 1


# --- the unedited model's answers ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting(Evaluator):
    asked = 0

    def answer(self, lm: LM, asked: Sequence[Question]) -> list[Any]:
        type(self).asked += len(asked)
        return super().answer(lm, asked)


def test_pristine_answers_are_asked_once_and_shared(lm: LM, cache: Path) -> None:
    Counting.asked = 0
    evaluator = Counting(fluency_tokens=20)
    first = baseline_answers(lm, evaluator, ASKED[:30])
    lm.token_budget, budget = 100, lm.token_budget
    assert baseline_answers(lm, evaluator, ASKED[:30]) == first
    lm.token_budget = budget
    assert Counting.asked == 30
    baseline_answers(lm, evaluator, ASKED)
    assert Counting.asked == len(ASKED)
    baseline_answers(lm, Counting(fluency_tokens=30), ASKED[:1])  # another option that changes an answer
    assert Counting.asked == len(ASKED) + 1


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """A digit of one answer."""
    content = bytearray(file.read_bytes())
    at = content.index(b'"logprob": [') + len('"logprob": [') + 4
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [cut, flip, lambda file: file.write_bytes(b""), lambda file: file.write_bytes(b"{" * 5000), Path.unlink],
    ids=["cut off", "flipped", "empty", "garbage", "deleted"],
)
def test_damaged_baseline_answers_are_asked_again(lm: LM, cache: Path, damage: Callable[[Path], object]) -> None:
    Counting.asked = 0
    evaluator = Counting(fluency_tokens=0)
    first = baseline_answers(lm, evaluator, ASKED[:5])
    [kept] = cache.glob("baseline/*/answers.sqlite")
    damage(kept)
    second = baseline_answers(lm, evaluator, ASKED[:5])
    assert [answer.forced[0].pred for answer in second.values()] == [a.forced[0].pred for a in first.values()]
    again = Counting.asked - 5
    assert again == (1 if damage is flip else 5)
    assert baseline_answers(lm, evaluator, ASKED[:5]) == second
    assert Counting.asked == 5 + again


def test_a_model_without_identity_leaves_nothing_in_the_cache(shaped: LM, cache: Path) -> None:
    baseline_answers(shaped, Evaluator(fluency_tokens=0), ASKED[:3])
    assert not list(cache.glob("baseline/*"))


def test_case_ids_keep_questions_apart() -> None:
    twin: Case = replace(CASES[0], id="other")
    assert set(questions_of(CASES[0])).isdisjoint(questions_of(twin))
