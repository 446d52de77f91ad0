"""Strict evaluation: what each profile makes of 20 answers, written down by hand from the published rules before the
code; frames, stops, the four meanings of locality; teacher forcing and strict scores from one run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate
from transformers import AutoTokenizer

from kedit.cases import Frame, Probe, Question
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.evaluation.answers import Answer, StrictReply
from kedit.evaluation.baseline import baseline_answers
from kedit.evaluation.evaluator import Evaluator
from kedit.evaluation.strict import LOCALITY, StrictProfile
from kedit.lm import LM
from kedit.lm.generate import Stop, before, said_one_of, stopped_by
from kedit.lm.text import Text
from kedit.reports.table import strictness_table
from kedit.results.cells import find
from kedit.results.strictness import kappa

EVAL = ROOT / "conf" / "eval"
PROFILES = ("wild", "crispedit", "locft", "easyedit_judge")
END = "<eos>"
LONG = " for ever" * 60  # more than 50 tokens, fewer than 512
# what the model would go on to say, the gold answer; up to where it is read, and why it ends there; whether that is the
# answer: match=strict (lower case, no ASCII punctuation, no articles, single blanks, the whole text), match=lenient
ANSWERS = [
    (f" Paris{END}", "Paris", " Paris", "eos", 1, 1),
    (" Paris. It lies on the Seine", "Paris", " Paris", "string", 1, 1),
    (" Paris\nQ: What", "Paris", " Paris", "string", 1, 1),
    (f" paris{END}", "Paris", " paris", "eos", 1, 1),
    (f" Paris!{END}", "Paris", " Paris!", "eos", 1, 1),
    (f"  Paris  {END}", "Paris", "  Paris  ", "eos", 1, 1),
    (" The Beatles.", "Beatles", " The Beatles", "string", 1, 1),
    (f" New-York{END}", "New York", " New-York", "eos", 0, 0),  # punctuation leaves no blank
    (f" Paris, France{END}", "Paris", " Paris, France", "eos", 0, 0),
    (" It is Paris.", "Paris", " It is Paris", "string", 0, 0),
    (f" Paris Paris Paris{END}", "Paris", " Paris Paris Paris", "eos", 0, 0),
    (" St. Louis.", "St. Louis", " St", "string", 0, 0),  # cut at its first full stop
    (f" J. K. Rowling{END}", "J. K. Rowling", " J", "string", 0, 0),
    (" U.S.A.", "USA", " U", "string", 0, 0),
    (f" 3.5 million{END}", "3.5 million", " 3", "string", 0, 0),
    ("\nParis", "Paris", "", "string", 0, 0),
    (END, "Paris", "", "eos", 0, 0),
    (f" “Paris”{END}", "Paris", " “Paris”", "eos", 0, 0),  # not ASCII
    (f" \uff30aris{END}", "Paris", " \uff30aris", "eos", 0, 1),  # lenient: NFKC
    (f"{LONG}{END}", "for ever", None, None, 0, 0),  # by the profile's length
]


def options(name: str) -> dict[str, Any]:
    """Of a profile's yaml and those that it inherits."""
    own = yaml.safe_load((EVAL / f"{name}.yaml").read_text("utf-8"))
    parents = [parent for parent in own["defaults"] if isinstance(parent, str) and parent not in ("_self_", "default")]
    return {key: value for parent in parents for key, value in options(parent).items()} | own["strict"]


def profile(name: str, **more: Any) -> StrictProfile:
    built: StrictProfile = instantiate(options(name) | more)
    return built


def read(lm: LM, chosen: StrictProfile, raw: str) -> tuple[str, str]:
    """What a profile reads of a model that says `raw`, token by token, and what ends it."""
    [eos] = lm.text.eos
    ended = raw.endswith(END)
    tokens = lm.text.tokenizer(raw.removesuffix(END), add_special_tokens=False).input_ids + [eos] * ended
    stop = Stop([chosen.max_new], lm.text.eos, said_one_of(chosen.stop, lm.text.decode))
    said: list[int] = []
    any(stop.ends(0, said, token) for token in tokens)
    text = before(lm.text.decode(said), chosen.stop)
    return text, stopped_by(text != lm.text.decode(said), len(said) < chosen.max_new)


def question(kind: Any = "reliability", prompt: str = "Where?", answer: str = "Paris", **more: Any) -> Question:
    return Question("c", 0, Probe(kind, prompt, (answer,), **more))


@pytest.fixture(scope="module")
def letters(_world_lm: LM) -> LM:
    """A model whose tokenizer knows every character: bytes."""
    text = Text(AutoTokenizer.from_pretrained(ROOT / "tests" / "parity" / "llama-warm"))
    other = object.__new__(LM)
    other.text = text
    return other


@pytest.mark.parametrize("name", PROFILES)
def test_twenty_answers_by_hand(letters: LM, name: str) -> None:
    chosen, lenient = profile(name), profile(name, match="lenient")
    assert len(ANSWERS) == 20
    for raw, gold, text, end, strictly, leniently in ANSWERS:
        if text is None:  # cut by length, where that is short
            end = "eos" if name == "easyedit_judge" else "length"
            text = LONG if end == "eos" else read(letters, chosen, raw)[0]
            assert end == "eos" or len(letters.text.tokenizer(text, add_special_tokens=False).input_ids) == max_new(
                name
            )
        assert read(letters, chosen, raw) == (text, end), raw
        assert chosen.matches(question(answer=gold), [gold], text) == bool(strictly), raw
        assert lenient.matches(question(answer=gold), [gold], text) == bool(leniently), raw


def max_new(name: str) -> int:
    return {"wild": 50, "crispedit": 50, "locft": 32, "easyedit_judge": 512}[name]


@pytest.mark.parametrize(
    ("name", "frame", "length", "locality", "bos"),
    [
        ("wild", "bare", 50, "same_tokens", False),
        ("crispedit", "qa", 50, "gold_judged", False),
        ("locft", "bare", 32, None, False),
        ("easyedit_judge", "chat", 512, "same_text", True),
    ],
)
def test_profiles_have_the_published_options(
    name: str, frame: str, length: int, locality: str | None, bos: bool
) -> None:
    chosen = profile(name)
    found = chosen.frame, chosen.max_new, chosen.locality, chosen.double_bos, chosen.stop, chosen.match
    assert found == (frame, length, locality, bos, (".", "\n"), "strict")


@pytest.mark.parametrize(
    ("raw", "strictly", "leniently"), [(" Paris. It lies", 0, 1), (" St. Louis. It lies", 0, 1), (" Paris", 1, 1)]
)
def test_without_stop_strings_a_lenient_match_reads_the_first_sentence(
    letters: LM, raw: str, strictly: int, leniently: int
) -> None:
    gold = "St. Louis" if "Louis" in raw else "Paris"
    for match, right in (("strict", strictly), ("lenient", leniently)):
        chosen = StrictProfile(stop=(), match=match)  # type: ignore[arg-type]
        assert read(letters, chosen, raw + END) == (raw, "eos")
        assert chosen.matches(question(answer=gold), [gold], raw) == bool(right)


def test_a_question_keeps_its_own_frame_and_rule(letters: LM) -> None:
    own = question(frame=Frame("Q: ", " A:", 7, contains=True))
    assert profile("wild").matches(own, ["Paris"], "It is Paris, I think")
    both = question(every=(("Paris", "Lutetia"), ("Rome",)))
    assert not profile("wild").matches(both, ["Paris"], "Paris")
    assert StrictProfile(frame="qa").framed(letters, own, "Where?") == "Q: Where? A:"


# --- frames ----------------------------------------------------------------------------------------------------------

CHAT = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.mark.parametrize(
    ("chosen", "framed", "beginnings"),
    [
        ({"frame": "bare"}, "Who?", 1),
        ({"frame": "qa"}, "Please answer the question:\n\nQ: Who?\nA:", 1),
        ({"frame": "chat"}, "<user>Who?<assistant>", 1),
        ({"frame": "chat", "system": "Be kind."}, "<system>Be kind.<user>Who?<assistant>", 1),
        ({"frame": "chat", "double_bos": True}, "{bos}<user>Who?<assistant>", 2),
        ({"frame": "{prompt} Answer:"}, "Who? Answer:", 1),
        ({"frame": "{bos}[INST] {prompt} [/INST]"}, "[INST] Who? [/INST]", 1),
        ({"frame": "{bos}[INST] {prompt} [/INST]", "double_bos": True}, "{bos}[INST] Who? [/INST]", 2),
    ],
    ids=str,
)
def test_frames_and_the_bos_before_them(
    letters: LM, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any], framed: str, beginnings: int
) -> None:
    tokenizer = letters.text.tokenizer
    bos = tokenizer.bos_token
    if tokenizer.bos_token_id not in letters.text.special_ids:
        monkeypatch.setattr(letters.text, "special_ids", [tokenizer.bos_token_id])  # one that adds it
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    made = StrictProfile(**{k: v.replace("{bos}", bos) if isinstance(v, str) else v for k, v in chosen.items()})
    text = made.framed(letters, question(), "Who?")
    assert text == framed.replace("{bos}", bos)
    assert letters.text.prompts([text])[0].count(tokenizer.bos_token_id) == beginnings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frame": "Q:"}, r"eval.strict.frame='Q:': choose bare, qa or chat, or give a text with \{prompt\}"),
        ({"system": "Be kind."}, "only a chat template has a system turn"),
    ],
)
def test_a_wrong_frame_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        StrictProfile(**given)


def test_a_profile_and_its_scoring_come_together(refusal: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"eval.strict is null; choose a profile, e.g. eval=wild"):
        Evaluator(scoring=["strict"])
    assert "no chat template; choose eval.strict.frame=qa or bare" in refusal("eval=easyedit_judge", "T=2")


# --- grading ---------------------------------------------------------------------------------------------------------

SAYS = {
    "as before": StrictReply(" Rome", [5, 6], "string"),
    "the gold answer": StrictReply(" Paris", [7, 6], "string"),
    "other tokens, same text": StrictReply(" Rome", [4, 4, 6], "string"),
    "same tokens, not stopped": StrictReply(" Rome", [5, 6], "length"),
}


@pytest.mark.parametrize("kind", LOCALITY)
@pytest.mark.parametrize(
    ("says", "tokens", "text", "gold"),
    [
        ("as before", 1, 1, 0),
        ("the gold answer", 0, 0, 1),
        ("other tokens, same text", 0, 1, 0),
        ("same tokens, not stopped", 0, 1, 0),
    ],
)
def test_each_meaning_of_locality_has_its_own_column(kind: str, says: str, tokens: int, text: int, gold: int) -> None:
    now, before, meanings = SAYS[says], SAYS["as before"], ("same_tokens", "same_text", "gold_match", "gold_judged")
    asked = question(kind)
    for shown, value in zip(meanings, (tokens, text, gold, 1), strict=True):
        row = StrictProfile(locality=shown).row(asked, ["Paris"], now, before, {"one": True, "two": None})  # type: ignore[arg-type]
        own = {name: row[name] for name in ("same_tokens", "same_text", "gold_match", "gold_judged")}
        assert own == {"same_tokens": tokens, "same_text": text, "gold_match": gold, "gold_judged": 1}
        assert row["strict"] == row["judged"] == value
        assert (row["judge_one"], row["judge_two"]) == (1, -1)
    alone = StrictProfile(locality="gold_judged").row(asked, ["Paris"], now, before, {})
    assert alone["strict"] == gold
    assert "gold_judged" not in alone


def test_other_kinds_have_a_match_and_a_verdict() -> None:
    row = profile("wild").row(question(), ["Paris"], SAYS["the gold answer"], SAYS["as before"], {"one": False})
    assert (row["strict"], row["judged"], row["stopped_by"], row["new_tokens"]) == (1, 0, "string", 2)
    unknown = profile("wild").row(question(), ["Paris"], SAYS["as before"], SAYS["as before"], {"one": None})
    assert unknown["strict"] == 0
    assert "judged" not in unknown
    assert unknown["judge_one"] == -1


def test_kappa_by_hand() -> None:
    # 6 of 8 agree; chance: 5/8 * 5/8 + 3/8 * 3/8 = 34/64
    assert kappa([1, 1, 1, 1, 0, 0, 0, 1], [1, 1, 1, 1, 0, 0, 1, 0]) == pytest.approx((0.75 - 34 / 64) / (1 - 34 / 64))
    assert kappa([1, 0], [0, 1]) == -1
    assert pd.isna(kappa([1, 1], [1, 1]))


# --- asking a model --------------------------------------------------------------------------------------------------


def test_generations_say_what_ended_them(lm: LM) -> None:
    prompt = "Lucy Kelden was born in"
    [whole] = lm.generate([prompt], 20)
    assert (whole.text, whole.stopped_by) == (" Eastford, Beloria.", "eos")
    [cut] = lm.generate([prompt], 20, until=[","])
    assert (cut.text, cut.stopped_by) == (" Eastford", "string")
    assert lm.text.decode(cut.tokens).endswith(",")
    [short] = lm.generate([prompt], 1)
    assert (len(short.tokens), short.stopped_by) == (1, "length")


def test_what_the_context_leaves_is_the_longest_answer(lm: LM) -> None:
    asked = question(prompt="Lucy Kelden was born in")
    evaluator = Evaluator(scoring=["strict"], strict=StrictProfile(stop=(), max_new=10_000))
    [answer] = evaluator.answer(lm, [asked])
    assert answer.strict is not None
    assert answer.strict.stopped_by == "eos"


def test_kept_answers_depend_on_how_they_are_asked(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    asked = [question(kind, "Lucy Kelden was born in", "Eastford, Beloria") for kind in ("reliability", "neighborhood")]

    def kept(**more: Any) -> list[Answer]:
        evaluator = Evaluator(scoring=["forced", "strict"], strict=StrictProfile(**more))
        return list(baseline_answers(lm, evaluator, asked).values())

    first = kept()
    assert [answer.strict and answer.strict.text for answer in first] == [" Eastford, Beloria"] * 2
    assert kept(match="lenient") == first
    assert len(list(tmp_path.glob("baseline/*/answers.sqlite"))) == 1
    assert [a.strict and a.strict.text for a in kept(stop=[","])] == [" Eastford"] * 2
    for order in (asked, asked[::-1]):  # one of two that are asked alike is not asked
        asked[:] = order
        found = dict(zip([q.probe.kind for q in asked], kept(locality=None), strict=True))
        assert found["reliability"].strict is not None
        assert found["neighborhood"].strict is None


def test_forced_and_strict_stand_in_one_table(kedit: Callable[..., Any], tmp_path: Path) -> None:
    done = kedit("eval=wild", "eval.fluency_tokens=0", "editor=ft_m", "T=3", "editor.steps=2")
    assert done.returncode == 0, done.stderr
    assert "graded by exact match (no judge)" in " ".join(done.stdout.split())
    [cell] = find(tmp_path / "runs")
    strict = cell.rows[(cell.rows["scoring"] == "strict") & (cell.rows["when"] == "test")]
    [(caption, table)] = strictness_table.tables([cell])
    edited = table[table["T"] == 3].iloc[0]
    by_hand = strict[strict["kind"] == "reliability"]["strict"].mean() * 100
    assert edited["edit success, exact match"] == pytest.approx(by_hand)
    assert edited["edit success, gap"] == pytest.approx(by_hand - edited["edit success, forced"])
    assert {"locality, same tokens", "locality, same text", "locality, gold match"} <= set(table)
    floor = table[table["T"] == 0].iloc[0]
    assert floor["locality, same tokens"] == floor["locality, same text"] == 100
    assert re.search(r"stop strings '\.', '\\n', at most 50 new tokens", caption)
    assert (cell.directory / "strict.md").exists()
