"""A value and the type that its option declares: does it fit, and what is said if it does not?"""

import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate
from pydantic import ConfigDict, TypeAdapter, ValidationError

from kedit.common.options import Rule, distinct

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
UNSAID = 1e9  # bounds from here on are said only to a value beyond them
NUMBERS = {int: "a whole number", float: "a number"}
WORDS = {bool: "true or false", str: "a text", type(None): "null"}
YAML_BOOLEANS = ("off", "no", "on", "yes")


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union; of anything else, itself."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [part for member in typing.get_args(annotation) for part in alternatives(member)]
    return [annotation]


def bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def notes(annotation: Any) -> tuple[Any, ...]:
    """What an Annotated type carries."""
    return annotation.__metadata__ if typing.get_origin(annotation) is Annotated else ()


def item_of(annotation: Any) -> Any:
    """The type of a list's items or of a mapping's values; None if it is neither."""
    origin, arguments = typing.get_origin(bare(annotation)), typing.get_args(bare(annotation))
    return arguments[-1] if origin in (Sequence, Mapping, list, dict) and arguments else None


def is_part(annotation: Any) -> bool:
    """Is it something that is built, by a class or a function of its own?"""
    kind = bare(annotation)
    built_in = kind is Any or kind in (*NUMBERS, *WORDS, dict, list)
    return typing.get_origin(kind) is Callable or (isinstance(kind, type) and not built_in)


def fits(annotation: Any, value: Any) -> bool:
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


@cache
def _adapter(annotation: Any) -> Any:
    return TypeAdapter(annotation, config=STRICT)


def shown(value: Any) -> str:
    """A value as the command line has it, on one line."""
    if isinstance(value, str):
        text = f"'{value}'" if _number(value) is not None or not value.isprintable() or not value else value
        text = repr(value) if not value.isprintable() else text
    elif isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, Mapping):
        text = "{" + ",".join(f"{key}:{shown(part)}" for key, part in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ",".join(map(shown, value)) + "]"
    else:
        text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def rule(annotation: Any, value: Any = None) -> str:
    """What fits, in words."""
    every = alternatives(annotation)
    words = [word for part in every for word in _words(part, value)]
    verb = "choose" if all(typing.get_origin(bare(part)) is Literal or part is type(None) for part in every) else "give"
    return f"{verb} {either(list(dict.fromkeys(words)))}"


def either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _words(annotation: Any, value: Any) -> Iterator[str]:
    said, kind = notes(annotation), bare(annotation)
    if chosen := [note.said for note in said if isinstance(note, Rule)]:
        yield chosen[0]
    elif typing.get_origin(kind) is Literal:
        yield from map(shown, typing.get_args(kind))
    elif kind in NUMBERS:
        yield NUMBERS[kind] + _range(said, value)
    elif kind in WORDS:
        yield WORDS[kind]
    elif (item := item_of(annotation)) is not None:
        yield from _container(kind, item, said, value)


def _container(kind: Any, item: Any, said: Sequence[Any], value: Any) -> Iterator[str]:
    what = "pairs {key: value}" if typing.get_origin(kind) in (Mapping, dict) else "a list"
    size = " of at least one" if any(isinstance(note, MinLen) for note in said) else ""
    size += ", all different" if any(isinstance(note, Predicate) and note.func is distinct for note in said) else ""
    inner = max(value, key=_size, default=None) if isinstance(value, list) and value else None
    each = either([word for part in alternatives(item) for word in _words(part, inner)] or ["anything"])
    yield f"{what}{size}, each of them {each}"


def _size(value: Any) -> float:
    return abs(float(value)) if isinstance(value, int | float) else 0.0


def _range(said: Sequence[Any], value: Any) -> str:
    """The bounds, as " of at least 1", " from 0 to 1", " above 0, at most 100"."""
    beyond = isinstance(value, int | float) and abs(value) >= UNSAID
    low, high = _bounds(said, Ge, "ge", -UNSAID), _bounds(said, Le, "le", math.inf if beyond else UNSAID)
    if low and high:
        return f" from {low[0]:g} to {high[0]:.10g}"
    bounds = [f"of at least {bound:g}" for bound in low]
    bounds += [f"above {bound:g}" for bound in _bounds(said, Gt, "gt", -UNSAID)]
    bounds += [f"at most {bound:.10g}" for bound in high]
    bounds += [f"below {bound:.10g}" for bound in _bounds(said, Lt, "lt", math.inf if beyond else UNSAID)]
    return f" {', '.join(bounds)}" if bounds else ""


def _bounds(said: Sequence[Any], kind: type, name: str, unsaid: float) -> list[float]:
    """The bounds of this kind, without those that are too far away to be worth a word."""
    every = [float(getattr(note, name)) for note in said if isinstance(note, kind)]
    return [bound for bound in every if (bound > unsaid if unsaid < 0 else bound < unsaid)]


def hint(annotation: Any, value: Any, name: str) -> str:
    """What was probably meant; empty if nobody can tell."""
    every = [bare(part) for part in alternatives(annotation)]
    choices = _choices(every)
    if isinstance(value, bool) and (word := next((c for c in choices if c in YAML_BOOLEANS), None)):
        return f'; a yaml file needs quotes around "{word}"'
    if isinstance(value, list):
        wrong = next((one for one in value if isinstance(one, str) and one not in choices), "")
        return _nearest(wrong, choices)
    if any(typing.get_origin(part) is Sequence for part in every) and not isinstance(value, Mapping | None):
        return f", as {name}=[{shown(value)}]"
    if isinstance(value, str):
        quoted = any(part in NUMBERS for part in every) and _number(value) is not None
        return "; without quotes" if quoted else _nearest(value, choices)
    return _as_other_number(every, value, name)


def _choices(every: Sequence[Any]) -> list[str]:
    """The words that fit, also as items of a list."""
    inner = [bare(part) for one in every if (item := item_of(one)) is not None for part in alternatives(item)]
    words = [word for one in [*every, *inner] if typing.get_origin(one) is Literal for word in typing.get_args(one)]
    return [word for word in words if isinstance(word, str)]


def _nearest(word: str, choices: Sequence[str]) -> str:
    near = get_close_matches(word.lower(), choices, 1, 0.5) if word else []
    return f"; nearest is {near[0]}" if near else ""


def _as_other_number(every: Sequence[Any], value: Any, name: str) -> str:
    """3.0 where a count belongs, 3 where a text does."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if int in every and float not in every and isinstance(value, float):
        return f", as {int(value)}" if abs(value) < UNSAID and value == int(value) else ""
    return f", in quotes: {name}=\\'{value}\\'" if str in every else ""
