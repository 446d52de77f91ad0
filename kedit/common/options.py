"""Types of options: what a constructor's argument may be, declared where the argument stands.

kedit.run.options checks a whole config against them before anything is loaded or made. The bounds say most types in
words; where they do not say enough, a `Rule` does.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate

T = TypeVar("T")
LARGEST = 2**31 - 1  # count; a larger one is a slip of the finger


@dataclass(frozen=True)
class Rule:
    """What a value must be, in the words that follow "give"."""

    said: str


@dataclass(frozen=True)
class InModel:
    """Marks a layer's index: the model must have this layer."""


def distinct(values: Sequence[Hashable]) -> bool:
    return len(set(values)) == len(values)


def without_control_characters(text: str) -> bool:
    return not any(ord(character) < 32 or ord(character) == 127 for character in text)


def matches(pattern: str) -> Predicate:
    return Predicate(lambda text: re.fullmatch(pattern, text) is not None)


def has_fields(*names: str) -> Predicate:
    """A template of str.format with exactly these fields."""

    def fits(template: str) -> bool:
        try:
            return {name for _, name, _, _ in Formatter().parse(template) if name is not None} == set(names)
        except ValueError:
            return False

    return Predicate(fits)


def _not_home(folder: str) -> bool:
    return not folder.startswith("~")


Count = Annotated[int, Ge(1), Le(LARGEST)]
CountOrNone = Annotated[int, Ge(0), Le(LARGEST)]  # zero: none
Seed = Annotated[int, Ge(0), Lt(2**32)]
Rate = Annotated[float, Gt(0), Le(100)]  # a learning rate
Positive = Annotated[float, Gt(0), Le(1e9)]
Amount = Annotated[float, Ge(0), Le(1e9)]  # zero: nothing of it
Factor = Annotated[float, Ge(-1e9), Le(1e9)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]

Shares = Annotated[Sequence[Share], MinLen(1)]
Rank = Annotated[int, Ge(1), Le(65_536)]

Several = Annotated[Sequence[T], Predicate(distinct)]  # each once, or none
OneOrMore = Annotated[Sequence[T], MinLen(1), Predicate(distinct)]
Layer = Annotated[int, Ge(0), Le(9999), InModel()]
Layers = Annotated[Sequence[Layer], MinLen(1), Predicate(distinct), Rule("a list of different layers, e.g. [3]")]

Text = Annotated[str, MinLen(1)]
PathText = Annotated[str, MinLen(1), Predicate(without_control_characters), Rule("a path")]
Name = Annotated[str, MinLen(1), Predicate(without_control_characters), Rule("a name")]
Url = Annotated[
    str, matches(r"https?://[^\s/]+/(\S*/)?[^\s/?#]+"), Rule("an address of a file, http(s)://HOST/.../FILE")
]
Sha256 = Annotated[str, matches("[0-9a-f]{64}"), Rule("a sha256 of 64 hexadecimal digits")]
Folder = Annotated[
    str,
    MinLen(1),
    Predicate(without_control_characters),
    Predicate(_not_home),
    Rule("a folder ($HOME/... for one in your home: ~ is not expanded)"),
]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
DeviceMap = Annotated[
    str,
    matches(r"auto|balanced|balanced_low_0|sequential|cpu|mps|meta|(cuda|xpu|npu|hpu)(:\d+)?"),
    Rule("a device map of accelerate, e.g. auto, cpu or cuda:0"),
]
ModelPart = Annotated[
    str,
    matches(r"model|(mlp_out|attn_out|mlp|attn|block)(\.[\w.]+)?"),
    Rule("model, block, attn, mlp, attn_out, mlp_out, one of these with .weight"),
]
