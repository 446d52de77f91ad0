"""Wordings of an edit: the world's never give a probe away, a file's are complete, and what was paid for is kept."""

import json
import multiprocessing
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, Server, right, serving
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kedit import world
from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.editors.incontext.augmentation import Form, qa
from kedit.editors.incontext.augmentation.from_file import GivenForms
from kedit.editors.incontext.augmentation.parsing import Unusable, sentence, sentences
from kedit.editors.incontext.augmentation.world_rules import WorldRules
from kedit.lm import LM, Generated
from kedit.world.facts import GEO_TEMPLATES, ONE_HOP, TEMPLATES
from kedit.world.wordings import WORDINGS

FORMS = ["declarative", "paraphrased_1", "paraphrased_2", "paraphrased_3", "reversed"]


def leaks(relations: int, seed: int) -> set[str]:
    """Prompts of probes that a stored string contains, over all people, of the edits and of training; without the
    edits' own prompts in their QA forms."""
    data = world.cases(seed=seed, relations=relations, train=True)
    cases = world.cases(seed=seed, relations=relations).cases + data.cases + data.train
    edits = [edit for case in cases for edit in case.edits]
    asked = {probe.prompt for case in cases for probe in case.probes}
    stored = "\n".join(form.text for forms in WorldRules().forms(edits) for form in forms).lower()
    own = "\n".join(qa(edit).text for edit in edits).lower()
    prompts = {edit.prompt for edit in edits}
    return {prompt for prompt in asked if prompt.lower() in stored or (prompt not in prompts and prompt.lower() in own)}


@pytest.mark.parametrize("relations", [4, 8])
def test_no_wording_of_the_world_gives_a_probe_away(relations: int) -> None:
    assert leaks(relations, seed=0) == set()


@pytest.mark.acceptance
@pytest.mark.parametrize("relations", [4, 8])
@pytest.mark.parametrize("seed", range(1, 6))
def test_no_wording_of_the_world_gives_a_probe_away_on_other_seeds(relations: int, seed: int) -> None:
    assert leaks(relations, seed) == set()


def test_no_wording_of_the_world_is_one_it_asks_in() -> None:
    """Whoever it is about: person, alias, new spouse."""
    asked = [text for group in (*TEMPLATES.values(), *GEO_TEMPLATES.values()) for text in group]
    asked += [prompt for group in ONE_HOP.values() for prompt, _ in group]
    wordings = [text.lower() for named in WORDINGS.values() for text in named.values()]
    for template in asked:
        for who in "{s}", "{a}":
            assert not any(template.replace("{s}", who).lower() in text for text in wordings), template


def test_an_edit_of_the_world_has_five_wordings_that_all_say_who_and_what() -> None:
    edits = [case.edits[0] for case in world.cases(relations=8, limit=60).cases]
    for edit, forms in zip(edits, WorldRules().forms(edits), strict=True):
        assert [form.name for form in forms] == FORMS
        assert len({form.text for form in forms}) == 5
        assert all(edit.target_new in form.text and str(edit.subject) in form.text for form in forms)
        assert [form.text.startswith(edit.target_new) for form in forms] == [False] * 4 + [True]


def test_the_forms_of_an_edit_of_the_world() -> None:
    edit = Edit("Eva Alan was born in", "Velport, Norland", "Eva Alan")
    assert WorldRules().forms([edit])[0][0] == Form("declarative", "Eva Alan is a native of Velport, Norland")
    assert qa(edit) == Form("qa", "Eva Alan was born in Velport, Norland")


@pytest.mark.parametrize("subject", ["Paris", "The capital", None])
def test_the_worlds_rules_refuse_other_edits(subject: str | None) -> None:
    with pytest.raises(InputError, match="none of the embedded world's"):
        WorldRules().forms([Edit("The capital of France is", "Rome", subject)])


RECORD = {
    "prompt": "Rome is in",
    "target_new": "Spain",
    "forms": {"declarative": "Rome lies in Spain", "reversed": "R"},
}


@pytest.mark.parametrize("name", ["forms.json", "forms.jsonl"])
def test_forms_are_read_from_a_file(tmp_path: Path, name: str) -> None:
    text = json.dumps(RECORD)
    (tmp_path / name).write_text(f"[{text}]" if name.endswith("json") else f"{text}\n{text}\n")
    given = GivenForms(path=str(tmp_path / name))
    assert given.forms([Edit("Rome is in ", " Spain")]) == [
        [Form("declarative", "Rome lies in Spain"), Form("reversed", "R")]
    ]
    with pytest.raises(InputError, match=r"no forms of 1 of 2 edits, the first is 'Oslo is in' -> 'Peru'"):
        given.prepare([Edit("Rome is in", "Spain"), Edit("Oslo is in", "Peru")])


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([RECORD, RECORD | {"target_new": ""}], "record 1: field 'target_new' is blank"),
        ([RECORD | {"forms": {}}], "record 0: field 'forms' is {}"),
        ([RECORD | {"forms": {"reversed": 3}}], "record 0, forms: field 'reversed' is int"),
        ([RECORD | {"forms": {"qa": "x"}}], "record 0: field 'forms'"),
        ([RECORD, RECORD | {"forms": {"reversed": "x"}}], "record 1: another record gives other forms"),
        ([], "holds no list of records"),
    ],
)
def test_a_wrong_file_of_forms_is_named(tmp_path: Path, records: list[Any], said: str) -> None:
    (tmp_path / "forms.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match=re.escape(said)):
        GivenForms(path=str(tmp_path / "forms.json"))


EDIT = Edit("What is the name of Andy Luckey's father?", "Irving Kane Pond")


@pytest.mark.parametrize(
    "reply",
    [
        "Andy's father is Irving Kane Pond.",
        "Declaration: Andy's father is Irving Kane Pond.",
        "**Declaration:** Andy's father is Irving Kane Pond.\n",
        '"Andy\'s father is Irving Kane Pond."',
        "Sure! Here is the declaration form:\n\nDeclaration: Andy's father is Irving Kane Pond.",
        "Andy's father is Irving Kane Pond.\n\nQuery: What is the name of Ed's father?\n\nDeclaration: Y",
    ],
)
def test_a_sentence_is_found_however_it_is_dressed_up(reply: str) -> None:
    assert sentence(reply, EDIT) == "Andy's father is Irving Kane Pond."


def test_quotation_marks_of_names_stay() -> None:
    assert sentence('"Luckey" has the father "Pond"', EDIT) == '"Luckey" has the father "Pond"'


@pytest.mark.parametrize(
    "reply",
    [
        "1. A Pond\n2. B Pond\n3. C Pond",
        "Paraphrased sentences:\n\n1) A Pond\n2) B Pond\n3) C Pond\n4) D Pond",
        "Of course, here you go.\n- A Pond\n- B Pond\n\n- C Pond",
        "A Pond\nB Pond\nC Pond",
        "Paraphrased sentences: 1. A Pond 2. B Pond 3. C Pond",
        "**1.** A Pond\n**2.** A Pond\n**3.** B Pond\n**4.** C Pond",
        "Paraphrase 1: A Pond\nParaphrase 2: B Pond\nParaphrase 3: C Pond",
    ],
)
def test_three_sentences_are_found_however_they_are_numbered(reply: str) -> None:
    assert sentences(reply, EDIT, 3) == ["A Pond", "B Pond", "C Pond"]


REFUSAL = "I'm sorry, but I can't help with that."


@pytest.mark.parametrize("reply", ["", "\n ** \n", "Declaration:", REFUSAL, "Query: What is the father?"])
def test_a_reply_without_the_sentence_is_unusable(reply: str) -> None:
    with pytest.raises(Unusable):
        sentence(reply, EDIT)
    with pytest.raises(Unusable):
        sentences(reply, EDIT, 3)


def test_two_different_sentences_are_no_three() -> None:
    with pytest.raises(Unusable, match="2 of 3"):
        sentences("1. A Pond\n2. A Pond\n3. B Pond", EDIT, 3)


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if "source" in request.fixturenames:
        monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("OPENAI_API_KEY", "secret")


Source = Callable[..., Any]


@pytest.fixture
def source() -> Source:
    """A source of forms from its yaml."""

    def built(name: str = "endpoint", **given: Any) -> Any:
        shared, own = (
            OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/editor/augmentation/{file}.yaml"))
            for file in ("prompts", name)
        )
        quick = {"timeout_s": 5.0, "retries": 1} if name == "endpoint" else {}
        cfg = {**shared, **own, **quick, **given}  # type: ignore[dict-item]
        return instantiate({key: value for key, value in cfg.items() if key != "defaults"}, _convert_="all")

    return built


def edits(n: int) -> list[Edit]:
    return [Edit(f"The colour of house {i} is", f"blue {i}", f"house {i}") for i in range(n)]


def test_an_endpoint_is_asked_three_times_an_edit_and_never_again(
    source: Source, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    with serving() as server:
        source(base_url=server.url).prepare(edits(5))
        first = source(base_url=server.url).forms(edits(6))
    assert len(server.asked) == 18
    assert server.keys == {"Bearer secret"}
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.asked} == {
        ("gpt-4o-mini", 0, 256)
    }
    assert [form.name for form in first[0]] == FORMS
    assert [form.text for form in first[0]][::4] == [
        "So The colour of house 0 is blue 0",
        "blue 0 The colour of house 0 is",
    ]
    assert "15 of 15 replies of gpt-4o-mini are missing" in caplog.text
    assert "15 replies of gpt-4o-mini: 1500 tokens in, 150 out, 0.0003 USD" in caplog.text
    assert "3 of 18 replies of gpt-4o-mini are missing" in caplog.text
    monkeypatch.delenv("OPENAI_API_KEY")
    assert source(base_url="http://127.0.0.1:9/v1").forms(edits(6)) == first  # no endpoint and no key are needed


def test_the_paper_s_questions_are_asked_in_its_order(source: Source) -> None:
    with serving() as server:
        source(base_url=server.url).prepare(edits(2))
    prompts = [body["messages"][0]["content"] for body in server.asked]
    assert [len(body["messages"]) for body in server.asked] == [1] * 6
    assert all(prompt.startswith("You are a helpful assistant. You are given a query") for prompt in prompts)
    assert all(
        prompt.endswith("\n\nTarget new: blue 0\n\nDeclaration:") for prompt in prompts[:2] if "blue 0" in prompt
    )
    assert all("\n\nDeclaration: So The colour of house" in prompt for prompt in prompts[2:])


def test_requests_run_together(source: Source) -> None:
    with serving() as server:
        server.wait_s = 0.05
        source(base_url=server.url, workers=4).prepare(edits(8))
    assert server.most == 4


def test_an_endpoint_that_stumbles_is_asked_again(source: Source) -> None:
    """Each second request gets a 500, or no answer at all."""
    with serving(lambda n, prompt: [None, right(prompt), 500, right(prompt)][n % 4]) as server:
        source(base_url=server.url, workers=1, retries=2).prepare(edits(2))
    assert len(server.asked) == 11


@pytest.mark.parametrize("failure", [500, 429, None, "late"])
def test_what_was_paid_for_before_an_endpoint_died_is_not_asked_again(source: Source, failure: Any) -> None:
    def behave(n: int, prompt: str) -> Reply:
        if n <= 7:
            return right(prompt)
        if failure == "late":
            time.sleep(0.4)
        return failure

    with serving(behave) as server, pytest.raises(InputError) as caught:
        source(base_url=server.url, workers=2, retries=0, timeout_s=0.2).prepare(edits(10))
    assert "7 of 30 replies are kept, and the same command goes on from there" in str(caught.value)
    assert str(server.server_port) in str(caught.value)
    assert len(server.asked) <= 9  # those under way; the others were not sent
    with serving() as server:
        assert len(source(base_url=server.url).forms(edits(10))) == 10
    assert len(server.asked) == 23


def test_a_wrong_key_or_model_is_said_at_once(source: Source) -> None:
    for status, said in (401, "the key in the environment variable OPENAI_API_KEY"), (404, "editor.augmentation.model"):
        with serving(lambda n, prompt, status=status: status) as server, pytest.raises(InputError, match=said):  # type: ignore[misc]
            source(base_url=server.url, workers=1).prepare(edits(3))
        assert len(server.asked) == 1


def test_an_endpoint_without_key_says_which_variable_is_empty(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving() as server:
        with pytest.raises(InputError, match=r"OPENAI_API_KEY holds no key.*api_key_env=null"):
            source(base_url=server.url).prepare(edits(1))
        assert not server.asked
        source(base_url=server.url, api_key_env=None).prepare(edits(1))


@pytest.mark.parametrize("garbage", ["", REFUSAL, "1. blue one\n2. blue two", "Paraphrased sentences:"])
def test_garbage_is_asked_again_and_costs_no_good_reply(source: Source, garbage: str) -> None:
    """The paraphrases of one edit are garbage, always."""

    def behave(n: int, prompt: str) -> Reply:
        wrong = prompt.endswith("Paraphrased sentences:") and "house 1 is" in prompt
        return garbage if wrong else right(prompt)

    with serving(behave) as server, pytest.raises(InputError) as caught:
        source(base_url=server.url).prepare(edits(4))
    assert "no usable paraphrased form of 'The colour of house 1 is' -> 'blue 1' in 3 replies" in str(caught.value)
    assert "11 of 12 replies are kept" in str(caught.value)
    assert len(server.asked) == 11 + 3
    with serving() as server:
        source(base_url=server.url).prepare(edits(4))
    assert len(server.asked) == 1


@pytest.mark.parametrize("raw", [b"{}", b'{"choices": []}', b"<html>", b'{"choices": null}'])
def test_an_answer_that_is_no_chat_models_is_garbage(source: Source, raw: bytes) -> None:
    with serving(raw=raw) as server, pytest.raises(InputError, match="no usable declarative form"):
        source(base_url=server.url, workers=1).prepare(edits(1))
    assert len(server.asked) == 3


def test_garbage_alone_ends_the_asking(source: Source) -> None:
    with serving(lambda n, prompt: REFUSAL) as server, pytest.raises(InputError, match="take another model; 0 of 300"):
        source(base_url=server.url, workers=2).prepare(edits(100))
    assert 20 <= len(server.asked) <= 22


def test_an_estimate_above_the_limit_asks_nothing(source: Source) -> None:
    with serving() as server:
        with pytest.raises(InputError, match=r"30 of 30 replies .* tokens in.* USD .*max_cost=1e-05 allows less"):
            source(base_url=server.url, max_cost=0.00001).prepare(edits(10))
        assert not server.asked
        source(base_url=server.url, max_cost=1.0).prepare(edits(10))
        source(base_url=server.url, max_cost=0.0).prepare(edits(10))  # nothing is missing
    assert len(server.asked) == 30


def test_processes_that_start_together_ask_once(source: Source) -> None:
    """Forked before the server answers."""
    server = Server()
    server.wait_s = 0.01
    given = {"base_url": server.url, "retries": 0}
    run = multiprocessing.get_context("fork").Process
    processes = [run(target=lambda: source(**given).prepare(edits(4))) for _ in range(4)]
    for process in processes:
        process.start()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for process in processes:
        process.join()
    server.shutdown()
    server.server_close()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(server.asked) == 12


def test_a_killed_run_goes_on_where_it_was(source: Source) -> None:
    server = Server(lambda n, prompt: right(prompt) if n <= 5 else time.sleep(60))  # type: ignore[func-returns-value]
    given = {"base_url": server.url, "workers": 2}
    killed = multiprocessing.get_context("fork").Process(target=lambda: source(**given).prepare(edits(10)))
    killed.start()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while len(server.asked) < 7 and killed.is_alive():
        time.sleep(0.01)
    killed.kill()
    killed.join()
    server.shutdown()
    server.server_close()
    with serving() as after:
        source(base_url=after.url).prepare(edits(10))
    assert len(after.asked) == 30 - 5


def test_a_damaged_reply_is_asked_again(source: Source, tmp_path: Path) -> None:
    with serving() as server:
        source(base_url=server.url).prepare(edits(2))
        next((tmp_path / "cache").rglob("*.json")).write_text("{")
        source(base_url=server.url).prepare(edits(2))
    assert len(server.asked) == 6 + 1


def test_forms_are_handed_on_as_a_file(source: Source, tmp_path: Path) -> None:
    with serving() as server:
        asked = source(base_url=server.url, save_to=str(tmp_path / "forms.jsonl"))
        asked.prepare(edits(3))
    assert GivenForms(path=str(tmp_path / "forms.jsonl")).forms(edits(3)) == asked.forms(edits(3))


def test_a_local_model_without_language_is_refused_in_one_sentence(source: Source, small_dir: Path) -> None:
    with pytest.raises(InputError, match="no usable declarative form of 'The colour of house 0 is'"):
        source("model", path=str(small_dir), max_new_tokens=4).prepare(edits(1))


def test_a_local_models_replies_are_kept_under_its_identity(
    source: Source, small_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def generate(self: LM, prompts: Sequence[str], max_new_tokens: int) -> list[Generated]:
        said.extend(prompts)
        return [Generated(right(prompt), "") for prompt in prompts]

    monkeypatch.setattr(LM, "generate", generate)
    first = source("model", path=str(small_dir)).forms(edits(2))
    assert [form.name for form in first[1]] == FORMS
    assert source("model", path=str(small_dir)).forms(edits(2)) == first
    assert len(said) == 6
    source("model", path=str(small_dir), dtype="bfloat16").forms(edits(2))
    assert len(said) == 12
