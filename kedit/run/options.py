"""Every option is checked against the type that its constructor declares, before anything is loaded or made.

The options that belong to no constructor are the fields of `General`. What several options must be together, and what
is in the files that they name, the constructors check themselves.
"""

import inspect
import pkgutil
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from kedit.common.errors import InputError, first_line
from kedit.common.options import Amount, Count, Folder, InModel, Name, OneOrMore, Seed
from kedit.common.paths import ROOT
from kedit.run.naming import REFERRED
from kedit.run.rules import alternatives, bare, either, fits, hint, is_part, item_of, notes, rule, shown

PARTS = ("model", "dataset", "editor", "setting", "eval", "tracker")  # each is built by what its `_target_` names
TARGET, PARTIAL, MISSING = "_target_", "_partial_", "???"
Horizon = Count | Literal["all"]
TableKey = Literal["model", "setting", "T", "dataset", "editor", "metric"]


@dataclass(frozen=True)
class TableOptions:
    """How a sweep's table is laid out."""

    paper: Name
    number: Count
    rows: OneOrMore[TableKey]
    columns: OneOrMore[TableKey]
    without: Sequence[Mapping[str, Any]] | None = None
    notes: Sequence[str] | None = None
    same_as: Mapping[str, str] | None = None
    scored_as: Literal["kdpo", "kdpo_released"] | None = None  # the reading of the paper's metrics
    benchmarks: Mapping[str, str] | None = None


@dataclass(frozen=True)
class GpuOptions:
    """hydra/launcher=gpus."""

    per_cell: Count
    workers: Count
    attempts: Count


@dataclass(frozen=True)
class Hints:
    """What is printed below the table of a sweep that is no paper's."""

    look_at: Sequence[str] | None = None
    next: Sequence[str] | None = None  # commands to go on with


HINTS = set(Hints.__annotations__)


@dataclass(frozen=True)
class General:
    """The options of a run that belong to no part of it."""

    T: Horizon
    seed: Seed
    runs: Folder
    threads: Annotated[int, Ge(1), Le(1024)] | None
    save: bool | Literal["adapter"]
    keep_state: bool
    parallel: Count | Literal["auto"]
    commit_every_s: Amount
    keep_model: bool = True
    n_edits: Horizon | None = None


GENERAL = (*General.__annotations__, "gpus")  # the options that belong to no part of a run


@dataclass(frozen=True)
class Option:
    """A value, its dotted name as on the command line, and the type that is declared for it."""

    name: str
    annotation: Any
    value: Any


def known() -> tuple[str, ...]:
    """The names of all that a run reads."""
    return (*PARTS, *GENERAL, *REFERRED, "table", "hydra")


def check(config: Mapping[str, Any]) -> None:
    """Raises InputError: one sentence about the first option of a resolved config that is wrong."""
    _check(options(config))


def check_part(name: str, node: Any) -> None:
    """The same of one part."""
    _check(_part(name, node))


def check_arguments(name: str, target: Any, given: Mapping[str, Any]) -> None:
    """The same of what a constructor is given; `name` is said in front of each argument."""
    _check(_arguments(name, target, given))


def check_general(config: Mapping[str, Any]) -> None:
    """The same of what needs no import of what the parts are built by."""
    _check(_general(config))


def _check(every: Iterable[Option]) -> None:
    for option in sorted(every, key=lambda option: option.name.count(".")):  # what others refer to comes first
        if not fits(option.annotation, option.value):
            raise InputError(_wrong(option.name, option.annotation, option.value))


def check_layers(config: Mapping[str, Any], n_layers: int) -> None:
    """Raises InputError if an option names a layer that the model does not have."""
    for option in options(config):
        beyond = [layer for layer in _layers(option.annotation, option.value) if layer >= n_layers]
        if beyond:
            raise InputError(
                f"{option.name}={shown(option.value)}: the model has layers 0 to {n_layers - 1}; choose from these"
            )


def layer_count(model: Mapping[str, Any]) -> int | None:
    """Layers of the model that these options load, without loading it: its option `layers`, or what the config at its
    `path` says. None if that cannot be told."""
    if "layers" in model:
        return int(model["layers"])
    from kedit.lm.layer_count import layers_at

    return layers_at(**{name: model[name] for name in ("path", "revision", "trust_remote_code") if name in model})


def options(config: Mapping[str, Any]) -> Iterator[Option]:
    """Every option with its type. Raises InputError if something is built by nothing, or without what it needs."""
    yield from _general(config)
    for name in PARTS:
        yield from _part(name, config.get(name))


def _general(config: Mapping[str, Any]) -> Iterator[Option]:
    yield from _arguments("", General, {name: config[name] for name in General.__annotations__ if name in config})
    if "gpus" in config:
        yield from _arguments("gpus", GpuOptions, config["gpus"])
    if config.get("table") is not None:
        yield from _arguments("table", Hints if set(config["table"]) <= HINTS else TableOptions, config["table"])


def _part(name: str, node: Any) -> Iterator[Option]:
    if not isinstance(node, Mapping) or TARGET not in node:
        raise InputError(f"{name}={shown(node)}: a run needs one; choose it with {name}=, kedit --help lists all")
    yield from _node(name, node)


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and TARGET in value


def _node(name: str, node: Mapping[str, Any], declared: Any = Any) -> Iterator[Option]:
    """The options of what a `_target_` builds."""
    target = _target(name, node[TARGET])
    wanted = [bare(part) for part in alternatives(declared) if is_part(part) and isinstance(bare(part), type)]
    built = _built(target)
    if built and wanted and not node.get(PARTIAL) and not issubclass(built, tuple(wanted)):
        raise InputError(f"{name}: {node[TARGET]} is no {wanted[0].__name__}; choose another with {_group(name)}=")
    given = {key: value for key, value in node.items() if not (str(key).startswith("_") and str(key).endswith("_"))}
    yield from _arguments(name, target, given, complete=not node.get(PARTIAL))


def _target(name: str, path: Any) -> Any:
    if path == MISSING:
        raise InputError(f"{_group(name)}: what was chosen is only a base for others; choose one that builds on it")
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"{name}.{TARGET}={shown(path)}: cannot be imported ({first_line(error)}); give package.module.Class of a "
            "package that is installed or on PYTHONPATH"
        ) from error


def _built(target: Any) -> type | None:
    """The class of what it builds, where that is known."""
    built = target if isinstance(target, type) else _hints(target).get("return")
    return built if isinstance(built, type) else None


def _hints(target: Any) -> dict[str, Any]:
    """Types by argument; none for a target whose annotations cannot be resolved."""
    try:
        constructor = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
        return typing.get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _arguments(name: str, target: Any, given: Mapping[str, Any], complete: bool = True) -> Iterator[Option]:
    """The options of one constructor. `complete`: nothing else is handed to it later."""
    if not isinstance(given, Mapping):
        raise InputError(f"{name}={shown(given)}: give {{{', '.join(inspect.signature(target).parameters)}}}")
    known, hints = inspect.signature(target).parameters, _hints(target)
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values()):
        for key in given:
            if key not in known:
                raise InputError(_unknown(name, str(key), target, list(known)))
    needed = [
        key for key, p in known.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    for key in needed:
        if (complete and key not in given) or given.get(key) == MISSING:
            said = rule(hints[key]) if key in hints and not is_part(hints[key]) else "give it"
            raise InputError(f"{_dotted(name, key)} is missing; {said}, with {_dotted(name, key)}=")
    for key, value in given.items():
        yield from _values(_dotted(name, key), hints.get(key, Any), value)


def _values(name: str, annotation: Any, value: Any) -> Iterator[Option]:
    """A value as one option; something built, or a list or mapping of such, as the options below it."""
    every = alternatives(annotation)
    containers = [
        part for part in every if (item := item_of(part)) is not None and any(map(is_part, alternatives(item)))
    ]
    if _is_node(value):
        yield from _node(name, value, annotation)
    elif containers and isinstance(value, Mapping):
        for key, part in value.items():
            yield from _values(_dotted(name, key), item_of(containers[0]), part)
    elif any(map(is_part, every)):
        plain = [part for part in every if not is_part(part)]
        if not any(fits(part, value) for part in plain):
            raise InputError(_no_part(name, annotation, value))
    elif annotation is not Any:
        yield Option(name, annotation, value)


def _layers(annotation: Any, value: Any) -> Iterator[int]:
    """The layers that a value names."""
    for part in alternatives(annotation):
        if any(isinstance(note, InModel) for note in notes(part)):
            yield from [value] if isinstance(value, int) else []
        elif isinstance(value, Mapping) and (arguments := typing.get_args(bare(part))):
            yield from (layer for key in value for layer in _layers(arguments[0], key))
        elif isinstance(value, Sequence) and not isinstance(value, str) and (item := item_of(part)) is not None:
            yield from (layer for one in value for layer in _layers(item, one))


# --- what is said ----------------------------------------------------------------------------------------------------


def _wrong(name: str, annotation: Any, value: Any) -> str:
    return f"{name}={shown(value)}: {rule(annotation, value)}{hint(annotation, value, name)}"


def _unknown(name: str, key: str, target: Any, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1, 0.5)
    remedy = f"nearest is {_dotted(name, near[0])}" if near else f"it has {', '.join(known) or 'none'}"
    return f"{_dotted(name, key)}: {getattr(target, '__name__', target)} has no such option; {remedy}"


def _no_part(name: str, annotation: Any, value: Any) -> str:
    """A plain value where something is built."""
    group = _group(name)
    choices = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    nothing = ", or null for none" if any(bare(part) is type(None) for part in alternatives(annotation)) else ""
    if isinstance(value, str) and choices:
        wanted = value if value in choices else either(choices)
        return f"{name}={shown(value)}: a part is chosen with a slash: {group}={wanted}{nothing}"
    return f"{name}={shown(value)}: give a part, with a {TARGET} that builds it{nothing}"


def _group(name: str) -> str:
    return name.replace(".", "/")


def _dotted(name: str, key: Any) -> str:
    return f"{name}{key}" if name == "--" else f"{name}.{key}" if name else str(key)
