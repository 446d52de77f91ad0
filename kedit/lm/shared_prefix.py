"""A beginning that several prompts have in common (IKE's demonstrations, LTE's instruction, few-shot tasks) is read
once: a first pass keeps its keys and values, a second one reads what stands behind it in each row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kedit.lm.generate import left_padded, left_positions
from kedit.lm.intervention import Pass
from kedit.lm.text import Pair, Side

if TYPE_CHECKING:
    from kedit.lm.model import LM

LEAST = 32  # tokens: sharing fewer is not worth a second pass
NEARLY = 0.8  # a row joins if it shares this much of what the others share


@dataclass(frozen=True)
class Shared:
    """Rows whose first `length` tokens are the same, read by the same model."""

    length: int
    rows: Sequence[int]


@dataclass(frozen=True, eq=False)
class ReadBehind:
    """What a pass over the tokens behind the shared ones leaves."""

    hidden: Float[Tensor, "n t d"]
    mask: Int[Tensor, "n s"]  # covers all tokens, shared ones included
    cache: Any


def shared_beginnings(lm: "LM", pairs: Sequence[Pair]) -> list[Shared]:
    """Rows that begin alike and before their answers, at least two together. None if something acts inside the passes,
    which may ask for whole prompts, or if lower layers are cached."""
    if lm.acting_modules or lm.keeps_lower_layers:
        return []
    fit = [i for i, pair in enumerate(pairs) if _can_share(pair)]
    order = sorted(fit, key=lambda i: (pairs[i].reading.variant, str(pairs[i].reading.adapter), pairs[i].ids))
    return [shared for shared in _runs(pairs, order) if (len(shared.rows) - 1) * shared.length >= 2 * LEAST]


def may_pad_inside(lm: "LM") -> bool:
    """Whether padding between the shared tokens and the rest of a row tells nothing: positions are told to the model,
    and neither a window nor a bias (ALiBi) counts the padded places."""
    config = lm.model.config.get_text_config().to_dict()  # type: ignore[operator, union-attr]
    return not config.get("sliding_window") and "alibi" not in str(config)


def _can_share(pair: Pair) -> bool:
    reading = pair.reading
    return pair.start > LEAST and not pair.whole and reading.prefix is None and not reading.readers


def _runs(pairs: Sequence[Pair], order: Sequence[int]) -> Iterator[Shared]:
    rows: list[int] = []
    length = 0
    for i in order:
        common = _common(pairs[rows[-1]], pairs[i], length) if rows else 0
        if rows and common >= max(LEAST, NEARLY * (length if len(rows) > 1 else LEAST)):
            rows.append(i)
            length = common
            continue
        yield Shared(length, rows)
        rows, length = [i], pairs[i].start - 1
    yield Shared(length, rows)


def _common(one: Pair, other: Pair, most: int) -> int:
    """How many tokens both begin with, if they are read alike: at most `most`, and none that predicts an answer."""
    if one.reading.key != other.reading.key:
        return 0
    pairs = zip(one.ids[: min(most, other.start - 1)], other.ids, strict=False)
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], pairs))


@torch.no_grad()
def read_behind(
    lm: "LM", pairs: Sequence[Pair], groups: Sequence[Shared], memo: dict[object, Any], side: Side
) -> ReadBehind:
    """Read what each group shares, then the rest of its rows, group after group, padded on this side."""
    ids, mask = left_padded([pairs[group.rows[0]].ids[: group.length] for group in groups], lm.device)
    who = [pairs[group.rows[0]].reading for group in groups]
    first = Pass(mask.bool(), mask.bool(), False, who)
    positions = left_positions(mask)
    read = lm.body(first, input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
    owner = torch.tensor([g for g, group in enumerate(groups) for _ in group.rows], device=lm.device)
    for layer in read.past_key_values.layers:
        if layer.is_initialized:
            layer.batch_select_indices(owner.to(layer.keys.device))
    rows = [(pairs[row], group.length) for group in groups for row in group.rows]
    ids, behind = left_padded([pair.ids[length:] for pair, length in rows], lm.device)
    if side == "right":
        ids, behind = _moved_left(ids, behind)
    mask = torch.cat([mask[owner], behind], dim=1)
    second = Pass(behind.bool(), behind.bool(), True, [pair.reading for pair, _ in rows], memo)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": left_positions(mask)[:, -ids.shape[1] :]}
    out = lm.body(second, **inputs, past_key_values=read.past_key_values, use_cache=True)
    return ReadBehind(out.last_hidden_state, mask, out.past_key_values)


def _moved_left(ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> tuple[Tensor, Tensor]:
    """Padded on the right instead."""
    order = mask.argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def answer_states(pairs: Sequence[Pair], groups: Sequence[Shared], read: ReadBehind) -> Float[Tensor, "k d"]:
    """The hidden states that predict the answers, row after row, of a pass that was padded on the right."""
    lengths = [len(pair.ids) - group.length for group, pair in _members(pairs, groups)]
    places = [
        (row, length - len(pair.answer) - 1 + j)
        for row, (pair, length) in enumerate(zip(pairs, lengths, strict=True))
        for j in range(len(pair.answer))
    ]
    index = torch.tensor(places, device=read.hidden.device)
    return read.hidden[index[:, 0], index[:, 1]]


def _members(pairs: Sequence[Pair], groups: Sequence[Shared]) -> Iterator[tuple[Shared, Pair]]:
    """The pairs, which stand group after group, each with its group."""
    return zip((group for group in groups for _ in group.rows), pairs, strict=True)


def chunks(groups: Sequence[Shared], pairs: Sequence[Pair], budget: int) -> list[Shared]:
    """Groups whose rows, without what they share, fit a batch of so many tokens."""
    found = []
    for group in groups:
        longest = max(len(pairs[row].ids) for row in group.rows) - group.length
        size = max(1, budget // longest)
        found += [Shared(group.length, group.rows[i : i + size]) for i in range(0, len(group.rows), size)]
    return found


def tokens(group: Shared, pairs: Sequence[Pair]) -> int:
    """That a pass over the group holds at once."""
    longest = max(len(pairs[row].ids) for row in group.rows) - group.length
    return max(group.length, len(group.rows) * longest)
