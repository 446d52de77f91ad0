"""Every tokenisation rule: the one blank before an answer, where the answer's tokens are, padding, chat templates.

The rule is the field's, EasyEdit's among others: prompt + " " + answer, tokenised together; the answer begins after as
many tokens as the prompt alone has. It holds for byte-level and SentencePiece tokenizers, with and without BOS.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kedit.common.errors import InputError
from kedit.lm.route import Reading

Side = Literal["left", "right"]
Mask = Literal["positional", "token_membership", "none"]
SAMPLES = ("The capital of France is Paris.", "a b c", "1 2 3", "x")  # to see what a tokenizer adds to a text


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and its answer as one token sequence; the answer is `ids[start:]`. `reading`: what it is read with.

    `whole`: a text that has no prompt of its own; interventions see all of it as one.
    """

    ids: list[int]
    start: int
    reading: Reading = field(default_factory=Reading)
    whole: bool = False

    @property
    def answer(self) -> list[int]:
        return self.ids[self.start :]

    @property
    def prompt(self) -> list[int]:
        return self.ids[: self.start]

    def predicted(self, mask: Mask) -> list[int]:
        """Which tokens a batch lists: the answer's; every token that also occurs in the answer, wherever it stands
        (as the released code of standard fine-tuning masks); or all but the first."""
        if mask == "positional":
            return list(range(self.start, len(self.ids)))
        found = range(1, len(self.ids))
        return list(found) if mask == "none" else [t for t in found if self.ids[t] in self.answer]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Padded pairs. The k answer tokens of all n rows are listed in reading order: token `gold[j]` is predicted at
    position (`row[j]`, `col[j]`), so logits are needed at these k places only."""

    pairs: Sequence[Pair]
    ids: Int[Tensor, "n t"]
    mask: Bool[Tensor, "n t"]  # real tokens
    row: Int[Tensor, " k"]
    col: Int[Tensor, " k"]
    gold: Int[Tensor, " k"]
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def in_prompt(self) -> Bool[Tensor, "n t"]:
        """The prompts' tokens, without soft prompts; found once for all passes over the batch."""
        if "in_prompt" not in self._known:
            self._known["in_prompt"] = self._find_prompts()
        return self._known["in_prompt"]

    def _find_prompts(self) -> Bool[Tensor, "n t"]:
        prefixes = [0 if p.reading.prefix is None else len(p.reading.prefix) for p in self.pairs]
        ends = [len(p.ids) if p.whole else p.start for p in self.pairs]
        spans = list(zip(prefixes, ends, strict=True))
        begin, end = torch.tensor(spans, device=self.mask.device).unbind(1)
        place = self.mask.cumsum(-1)
        return self.mask & (place > begin[:, None]) & (place <= end[:, None])

    @property
    def first(self) -> Int[Tensor, " n"]:
        """The column of each row's first token."""
        return self.mask.long().argmax(-1)

    def all(self, which: Bool[Tensor, " k"]) -> Bool[Tensor, " n"]:
        """Rows of which this holds for every answer token."""
        return self.sum((~which).float()) == 0

    def rows_of(self, rows: Int[Tensor, " m"]) -> tuple["Batch", Int[Tensor, " l"]]:
        """Some rows, in ascending order, and the places of their answer tokens among the k; padded as before."""
        kept = torch.isin(self.row, rows.to(self.row.device))
        places = kept.nonzero()[:, 0]
        row = torch.searchsorted(rows.to(self.row.device), self.row[places])
        pairs = [self.pairs[i] for i in rows.tolist()]
        here = rows.to(self.ids.device)
        return Batch(pairs, self.ids[here], self.mask[here], row, self.col[places], self.gold[places]), places

    def mean(self, values: Float[Tensor, " k"]) -> Float[Tensor, " n"]:
        """Mean over each row's answer tokens."""
        return self.sum(values) / self.sum(torch.ones_like(values))

    def sum(self, values: Float[Tensor, " k"]) -> Float[Tensor, " n"]:
        """Sum over each row's answer tokens."""
        return values.new_zeros(len(self.ids)).index_add(0, self.row, values)


def collate(
    pairs: Sequence[Pair],
    pad: int,
    side: Side,
    device: torch.device,
    out: torch.device | None = None,
    mask: Mask = "positional",
) -> Batch:
    """Pad pairs to one length on `side`; ids go to `device`, what is compared with logits to `out` (default: there)."""
    longest = max(len(pair.ids) for pair in pairs)
    ids = torch.full((len(pairs), longest), pad)
    real = torch.zeros(len(pairs), longest, dtype=torch.bool)
    row: list[int] = []
    col: list[int] = []
    for i, pair in enumerate(pairs):
        shift = longest - len(pair.ids) if side == "left" else 0
        ids[i, shift : shift + len(pair.ids)] = torch.tensor(pair.ids)
        real[i, shift : shift + len(pair.ids)] = True
        places = [shift + at - 1 for at in pair.predicted(mask)]
        row += [i] * len(places)
        col += places
    rows, cols = torch.tensor(row, dtype=torch.long), torch.tensor(col, dtype=torch.long)
    row_of, col_of, gold = (part.to(out or device) for part in (rows, cols, ids[rows, cols + 1]))
    return Batch(pairs, ids.to(device), real.to(device), row_of, col_of, gold)


class Text:
    """A tokenizer with kedit's rules.

    A text is its own tokens behind what the tokenizer puts before every text (BOS, [CLS], ...); what the tokenizer
    would append (EOS, [SEP], ...) is left out, because an answer continues its prompt. `keep_edge_spaces` imitates the
    reference framework, which tokenises prompt and answer as the file has them: a blank at either edge then doubles
    the one between them. Default: edge blanks are removed and there is exactly one. `vocabulary`: how many token ids
    the model embeds (None: all that occur). Raises InputError if the tokenizer's special tokens stand inside a text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, keep_edge_spaces: bool = False, vocabulary: int | None = None
    ):
        self.tokenizer, self.keep_edge_spaces = tokenizer, keep_edge_spaces
        self.vocabulary = sys.maxsize if vocabulary is None else vocabulary
        self.special_ids, self.appended_ids = special_tokens_around(tokenizer)
        self.eos = frozenset() if tokenizer.eos_token_id is None else frozenset([tokenizer.eos_token_id])
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id)  # what is embedded there is never read
        self.pad: int = next((pad for pad in pads if pad is not None and 0 <= pad < self.vocabulary), 0)

    def pairs(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Pair]:
        """Token sequences of prompt + " " + answer. Raises InputError if the answer or the prompt has no token."""
        if not prompts:
            return []
        starts = [len(ids) for ids in self.prompts(prompts)]
        texts = [self._prompt(p) + " " + self._answer(a) for p, a in zip(prompts, answers, strict=True)]
        pairs = [Pair(ids, start) for ids, start in zip(self._encode(texts), starts, strict=True)]
        for prompt, answer, pair in zip(prompts, answers, pairs, strict=True):
            if not answer.strip() or not pair.answer:
                raise InputError(
                    f"answer {answer!r} of prompt {prompt!r} has no token; give a non-empty answer or drop the probe"
                )
            if pair.start == 0:
                raise InputError(
                    f"prompt {prompt!r} has no token, so there is nothing to predict {answer!r} from; give a prompt"
                )
        return pairs

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text as it is."""
        return self._encode([text])[0]

    def prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt."""
        return self._encode([self._prompt(p) for p in prompts]) if prompts else []

    def offsets(
        self, prompts: Sequence[str], answers: Sequence[str] | None = None
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The tokens of each prompt (with its answer), and which of its characters each token holds (start, end)."""
        if not self.tokenizer.is_fast:
            raise InputError(
                f"{type(self.tokenizer).__name__} does not tell which characters a token holds, so subjects cannot be "
                "found; give a model with a fast tokenizer"
            )
        texts = [self._prompt(p) for p in prompts]
        if answers is not None:
            texts = [f"{text} {self._answer(a)}" for text, a in zip(texts, answers, strict=True)]
        encoded = self.tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
        before = [(0, 0)] * len(self.special_ids)
        return [
            (self._embedded([*self.special_ids, *ids], text), [*before, *characters])
            for text, ids, characters in zip(texts, encoded.input_ids, encoded.offset_mapping, strict=True)
        ]

    def windows(self, texts: Sequence[str], size: int) -> list[list[int]]:
        """All tokens of each text, in order, in sequences of at most `size`; each of them begins with what the
        tokenizer puts before every text."""
        opening, windows = self.special_ids, []
        step = max(1, size - len(opening))
        for ids in self._encode(list(texts)):
            own = ids[len(opening) :]
            windows += [opening + own[i : i + step] for i in range(0, len(own), step)]
        return windows

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        own = self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids if texts else []
        return [self._embedded([*self.special_ids, *ids], text) for text, ids in zip(texts, own, strict=True)]

    def _embedded(self, ids: list[int], text: str) -> list[int]:
        """`ids`. Raises InputError if the model has no embedding for one of them."""
        if max(ids, default=0) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"{text[:80]!r} contains the token {token!r} with id {max(ids)}, but the model has embeddings for "
                f"{self.vocabulary} tokens only; remove it, or give the tokenizer that belongs to the model"
            )
        return ids

    def _prompt(self, prompt: str) -> str:
        return prompt if self.keep_edge_spaces else prompt.rstrip(" ")

    def _answer(self, answer: str) -> str:
        return answer if self.keep_edge_spaces else answer.strip()

    @property
    def opening(self) -> str:
        """A prompt for text from nothing: what the tokenizer puts before every text alone, else its end-of-text token.
        Raises InputError if it has neither."""
        if self.special_ids:
            return ""
        token = self.tokenizer.eos_token or self.tokenizer.bos_token
        if token is None or len(self.prompts([token])[0]) != 1:
            raise InputError(
                "the tokenizer has no BOS and no end-of-text token, so the model cannot write text from nothing"
            )
        return str(token)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @property
    def closing(self) -> str:
        """The end-of-text token as text; empty if the tokenizer has none."""
        return str(self.tokenizer.eos_token or "")

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self.tokenizer.chat_template is not None

    def chat(self, prompt: str, double_bos: bool = False, system: str | None = None) -> str:
        """`prompt` as one user turn of the tokenizer's chat template, after a `system` turn if there is one, ready for
        the answer.

        The text is tokenised again with special tokens: the template's own BOS is removed if the tokenizer adds one
        (with `double_bos`, as in the reference's code, it is kept).
        """
        if not self.chats:
            raise InputError(
                "eval.chat_template is on, but the model's tokenizer has no chat template; set eval.chat_template=off"
            )
        turns = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        return text if double_bos else self.without_bos(text)

    def without_bos(self, text: str) -> str:
        """`text` without the BOS that it begins with, if the tokenizer adds one itself."""
        bos, adds_bos = self.tokenizer.bos_token, self.tokenizer.bos_token_id in self.special_ids
        return text.removeprefix(bos) if bos and adds_bos else text


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before every text, and those that it appends."""
    for sample in SAMPLES:
        own = tokenizer(sample, add_special_tokens=False).input_ids
        whole = tokenizer(sample).input_ids
        starts = [i for i in range(len(whole) - len(own) + 1) if whole[i : i + len(own)] == own]
        if own and not starts:
            raise InputError(
                f"{type(tokenizer).__name__} tokenises {sample!r} differently if it adds its special tokens, so "
                "prompts and answers cannot be told apart; give a model with another tokenizer"
            )
        if own:
            return whole[: starts[0]], whole[starts[0] + len(own) :]
    return tokenizer("").input_ids, []  # it has no token for any of the samples
