"""Special tokens: whatever a tokenizer puts around a text, prompts, answers and windows are the text's own tokens."""

import json
import string
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import SHAPES
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    BertTokenizer,
    ByT5Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)

from kedit.common.errors import InputError
from kedit.lm import LM
from kedit.lm.check import QUESTIONS, check_tokenizer
from kedit.lm.text import Text
from kedit.world import WEIGHTS

PROMPTS = ["Lucy was born in", "Nina"]
ANSWERS = ["Velport, Norland", "Blue Bank"]
END = "<|endoftext|>"
WORLD = json.loads((WEIGHTS / "tokenizer.json").read_text())  # byte-level BPE, BOS is 0
PIECES = ["▁", *string.ascii_letters, *string.digits, *".,?", "▁Lucy", "▁was", "▁born", "▁in"]


def template(*around: str) -> dict[str, Any]:
    """A post-processor: special tokens, and $A for the text."""
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}}
        for part in around
    ]
    special = {END: {"id": END, "ids": [0], "tokens": [END]}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


def world(processor: dict[str, Any] | None = None, spaces: bool = True, **token: Any) -> PreTrainedTokenizerBase:
    """The world's tokenizer with another post-processor, its end-of-text token with other attributes."""
    given = json.loads(json.dumps(WORLD))
    given["post_processor"] = processor
    given["added_tokens"][0] |= token
    given["pre_tokenizer"]["add_prefix_space"] = spaces
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(given)), bos_token=END, eos_token=END)


def bare() -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=world().backend_tokenizer)


def llama(**options: Any) -> PreTrainedTokenizerBase:
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *PIECES])}
    return LlamaTokenizer(vocab=vocabulary, merges=[], **options)


def t5() -> PreTrainedTokenizerBase:
    """SentencePiece's Unigram."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((p, -1.0 - i % 7) for i, p in enumerate(PIECES))]
    return T5Tokenizer(vocab=pieces)


def bert() -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *string.ascii_lowercase, *("##" + c for c in string.ascii_lowercase), *string.digits, *".,?"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


# tokenizer, ids before a text, appended ids, the prompt for text from nothing
TOKENIZERS: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], list[int], list[int], list[int]]] = {
    "BOS": (lambda: world(template(END, "$A")), [0], [], [0]),
    "BOS and EOS": (lambda: world(template(END, "$A", END)), [0], [0], [0]),
    "EOS": (lambda: world(template("$A", END)), [], [0], [0]),
    "two EOS": (lambda: world(template("$A", END, END)), [], [0, 0], [0]),
    "neither": (world, [], [], [0]),
    "no blank is put before a text": (lambda: world(template(END, "$A", END), spaces=False), [0], [0], [0]),
    "EOS that takes blanks": (lambda: world(template("$A", END), lstrip=True, rstrip=True), [], [0], [0]),
    "Llama": (lambda: llama(add_bos_token=True), [1], [], [1]),
    "Llama with EOS": (lambda: llama(add_bos_token=True, add_eos_token=True), [1], [2], [1]),
    "Llama with EOS alone": (lambda: llama(add_bos_token=False, add_eos_token=True), [], [2], [2]),
    "T5": (t5, [], [1], [1]),
    "BERT": (bert, [2], [3], [2]),
    "not fast, appends EOS": (ByT5Tokenizer, [], [1], [1]),
}


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_a_text_is_its_own_tokens_behind_what_is_put_before_it(name: str) -> None:
    make, before, appended, opening = TOKENIZERS[name]
    tokenizer = make()
    text = Text(tokenizer)
    assert tokenizer("Lucy").input_ids == [*before, *own(tokenizer, "Lucy"), *appended]
    assert (text.special_ids, text.appended_ids) == (before, appended)
    for prompt, answer, pair in zip(PROMPTS, ANSWERS, text.pairs(PROMPTS, ANSWERS), strict=True):
        assert pair.ids == [*before, *own(tokenizer, f"{prompt} {answer}")]
        assert pair.prompt == [*before, *own(tokenizer, prompt)]
        assert text.decode(pair.answer).split() == text.decode(own(tokenizer, answer)).split()
    windows = text.windows(["Lucy was born in Norland"], 6)
    assert [token for window in windows for token in window[len(before) :]] == own(
        tokenizer, "Lucy was born in Norland"
    )
    assert all(window[: len(before)] == before for window in windows)
    assert text.prompts([text.opening]) == [opening]
    check_tokenizer(text, name)


def own(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in ("not fast, appends EOS", "BERT")])
def test_offsets_are_those_of_the_text(name: str) -> None:
    make, before, _, _ = TOKENIZERS[name]
    text = Text(make())
    [(ids, characters)] = text.offsets(["Lucy was"], ["Velport"])
    assert ids == text.pairs(["Lucy was"], ["Velport"])[0].ids
    assert characters[: len(before)] == [(0, 0)] * len(before)
    assert characters[-1][1] == len("Lucy was Velport")


def test_scores_do_not_depend_on_what_the_tokenizer_appends() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES["llama"])
    plain, appending = (LM(model, world(template(END, "$A", *end))) for end in ([], [END]))
    assert appending.answer(PROMPTS, ANSWERS) == plain.answer(PROMPTS, ANSWERS)
    assert appending.generate(PROMPTS, 5) == plain.generate(PROMPTS, 5)
    assert appending.perplexity("Lucy was born in Norland.") == plain.perplexity("Lucy was born in Norland.")
    assert torch.equal(appending.encode_texts(["Lucy was"], 9).ids, plain.encode_texts(["Lucy was"], 9).ids)


def test_an_answer_may_end_with_the_end_of_text() -> None:
    """What alignment trains: the answer and the token that ends it."""
    for tokenizer in (world(template(END, "$A", END)), ByT5Tokenizer(), t5()):
        [pair] = Text(tokenizer).pairs(["Lucy"], [f"Bank{tokenizer.eos_token}"])
        assert pair.ids.count(tokenizer.eos_token_id) - pair.prompt.count(tokenizer.eos_token_id) == 1
        assert pair.ids[-1] == tokenizer.eos_token_id


def test_without_bos_and_eos_there_is_no_text_from_nothing() -> None:
    text = Text(bare())
    assert text.pairs(PROMPTS, ANSWERS)[0].start == len(own(bare(), PROMPTS[0]))
    assert text.closing == ""
    with pytest.raises(InputError, match="no BOS and no end-of-text token"):
        _ = text.opening


@pytest.mark.parametrize(("adds_bos", "said"), [(True, "User: Hi Reply:"), (False, f"{END}User: Hi Reply:")])
def test_a_chat_template_s_bos_stays_unless_the_tokenizer_adds_one(adds_bos: bool, said: str) -> None:
    tokenizer = world(template(END, "$A") if adds_bos else None)
    tokenizer.chat_template = "{{ bos_token }}User: {{ messages[0].content }} Reply:"
    text = Text(tokenizer)
    assert text.chat("Hi") == said
    assert text.prompts([text.chat("Hi")])[0].count(0) == 1


def test_a_pad_beyond_the_vocabulary_is_never_read() -> None:
    tokenizer = world(template(END, "$A"))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    torch.manual_seed(0)
    lm = LM(AutoModelForCausalLM.from_config(SHAPES["llama"]), tokenizer)
    assert tokenizer.pad_token_id == 1024
    check_tokenizer(lm.text, "a model")
    assert [len(scored.logprob) for scored in lm.answer(PROMPTS, ANSWERS)] == [
        len(pair.answer) for pair in lm.text.pairs(PROMPTS, ANSWERS)
    ]
    with pytest.raises(InputError, match=r"token '\[PAD\]' with id 1024.* embeddings for 1024 tokens"):
        lm.answer(["Lucy [PAD]"], ["Velport"])


def test_a_rare_merge_is_not_refused_but_regular_ones_are() -> None:
    class Merging(Text):
        """A prompt that ends with one of `these` merges with its answer."""

        these: tuple[str, ...] = ("Hamlet?",)

        def prompts(self, prompts: Any) -> list[list[int]]:
            whole = super().prompts(prompts)
            return [[*ids[:-1], 7] if p.endswith(self.these) else ids for p, ids in zip(prompts, whole, strict=True)]

    text = Merging(world(template(END, "$A")))
    check_tokenizer(text, "a model")
    text.these = tuple(prompt[-5:] for prompt in QUESTIONS)
    with pytest.raises(InputError, match="splits a prompt differently if an answer follows"):
        check_tokenizer(text, "a model")


def test_a_tokenizer_that_makes_one_token_of_each_text_is_refused() -> None:
    whole = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    text = Text(PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="[UNK]"))
    with pytest.raises(InputError, match="splits a prompt differently"):
        check_tokenizer(text, "a model")


def test_words_of_an_empty_or_foreign_vocabulary_are_refused() -> None:
    empty = Text(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>"))
    with pytest.raises(InputError, match="no vocabulary"):
        check_tokenizer(empty, "a model")
    with pytest.raises(InputError, match="1023 tokens, of which 24 lie beyond the 1000"):
        check_tokenizer(Text(world(), vocabulary=1000), "a model")
