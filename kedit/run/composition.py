"""Composing a config, and one sentence about what is wrong if it cannot be composed.

Hydra's own messages name its files and search path; these name the option, what it lacks and what is nearest.
"""

import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kedit.common.dotted import dotted
from kedit.common.errors import InputError, first_line
from kedit.common.paths import ROOT
from kedit.run.rules import either

CONF = str(ROOT / "conf")
FULL_ERROR = "HYDRA_FULL_ERROR"
RAW = os.environ.get(FULL_ERROR) == "1"  # the user wants stack traces
GROUPS = ("editor", "model", "dataset", "setting", "eval", "tracker", "sweeps")
FEW = 12  # choices that are all listed


def composed(overrides: Sequence[str], **more: Any) -> DictConfig:
    """The config that these overrides make, outside of a run. Raises InputError."""
    with initialize_config_dir(CONF, version_base="1.3"):
        try:
            return compose("config", list(overrides), **more)
        except Exception as error:
            raise InputError(explained(error, overrides)) from error


@contextmanager
def command_line() -> Iterator[None]:
    """Around Hydra's main: a command line that cannot be composed ends in one sentence and exit status 1."""
    os.environ[FULL_ERROR] = "1"  # Hydra hands its exceptions over instead of printing them
    try:
        yield
    except Exception as error:
        at_work = any(frame.f_code.co_name == "run_job" for frame, _ in traceback.walk_tb(error.__traceback__))
        if RAW or (at_work and not isinstance(error, HydraException)):
            raise
        sys.exit(str(error) if at_work else explained_anew(error))
    finally:
        os.environ[FULL_ERROR] = "1" if RAW else "0"


def explained_anew(error: Exception) -> str:
    """`explained`, after Hydra has ended: for the command line as Hydra reads it."""
    given = get_args_parser().parse_args()
    folders = [f"hydra.searchpath=[{given.config_dir}]"] if given.config_dir and Path(given.config_dir).is_dir() else []
    with initialize_config_dir(CONF, version_base="1.3"):
        return explained(error, [*given.overrides, *folders])


def explained(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence about what is wrong with these overrides, or with a yaml that they name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_choice(error, overrides)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if wrong := _wrong_choice(overrides):
        return wrong
    text = str(error or error.__cause__)
    if found := re.match(r"Could not override '([^']*)'", text):
        full = str(getattr(error.__cause__, "full_key", None) or "")
        return _no_option(full if full.startswith(found[1]) else found[1], overrides)
    if found := re.match(r"Ambiguous value for argument '(.*)'|Sweep parameters '(.*)' requires", text):
        given = found[1] or found[2]
        name, _, value = given.partition("=")
        return f"{given}: several values need -m, which runs a cell for each; a list is written {name}=[{value}]"
    if found := re.search(r"Either remove \+ prefix: '(.*)'", text):
        return f"+{found[1]}: there is this option already; write {found[1]}, without +"
    if text.startswith("hydra.searchpath must be a list"):
        return "hydra.searchpath takes a list of folders: hydra.searchpath=[FOLDER]"
    if found := re.match(r"Error merging override (.*)", text):
        return f"{found[1]}: {first_line(error.__cause__ or error)}; give the same kind of value as the option has"
    return f"{_culprit(overrides)}{'; '.join(lines_of(text))}"


def lines_of(text: str) -> list[str]:
    """What a message says, without the address of a manual and OmegaConf's types."""
    lines = [line.strip() for line in text.split("\n") if line.strip(" ^\n")]
    return [line for line in lines if not re.match(r"See https|object_|reference_|Error parsing override", line)]


def _culprit(overrides: Sequence[str]) -> str:
    """The first override that nothing can be composed of, in front of what is wrong with it."""
    for override in overrides:
        try:
            compose("config", [override])
        except Exception:  # whatever it is, it is about this override
            return f"{override}: "
    return ""


def _unreadable(error: OverrideParseException) -> str:
    groups = [group for group in GROUPS if error.override in group_options(group)]
    if groups:
        return f"{error.override}: not name=value; write {groups[0]}={error.override}"
    said = "; ".join(lines_of(str(error)))
    return f"{error.override}: not readable as name=value ({said}); put a value with special characters in quotes"


# --- a choice that does not exist ------------------------------------------------------------------------------------


def _no_choice(error: MissingConfigException, overrides: Sequence[str]) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    parent = re.match(r"In '(.*?)'", str(error))
    source = f" (in the defaults of {parent[1]}.yaml)" if parent and f"{group}={name}" not in overrides else ""
    folders = [str(folder) for folder in _searched(overrides)]
    absent = [
        f"; hydra.searchpath names {folder}, which is no folder" for folder in folders if not Path(folder).is_dir()
    ]
    remedy = _own_file(group, name, [".", "conf", *folders]) or _choices(group, name)
    return f"{group}={name}{source}: no such choice; {remedy}{''.join(absent)}"


def _searched(overrides: Sequence[str]) -> list[Any]:
    """The folders of hydra.searchpath."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [override.value() for override in parsed if override.key_or_group == "hydra.searchpath"]
    return [folder for value in values if isinstance(value, list) for folder in value]


def _own_file(group: str, name: str, folders: Sequence[str]) -> str:
    """What to do with a yaml of the user's own that lies where it is not looked for."""
    for folder in folders if name else []:
        if Path(folder, group, f"{name}.yaml").is_file():
            return f"{Path(folder, group, name)}.yaml is found with --config-dir {folder}"
        if Path(folder, f"{name}.yaml").is_file():
            home = Path(folder, group)
            return f"{Path(folder, name)}.yaml must lie in a folder {home}: move it there and add --config-dir {folder}"
    return ""


def _choices(group: str, name: str = "") -> str:
    known = group_options(group)
    near = get_close_matches(name, known, 3, 0.5)
    if len(known) <= FEW:
        return f"choose {either(known)}" if known else f"there is no group {group}"
    listed = f"nearest is {either(near)}; " if near else ""
    return f"{listed}kedit --help lists all {len(known)}"


def group_options(group: str) -> list[str]:
    """The choices of a group; empty if there is no such group."""
    return list(GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG))


def _wrong_choice(overrides: Sequence[str]) -> str:
    """A group that is given no choice, several, or as something to add; empty if there is none such."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        if not group_options(group) or override.is_sweep_override():
            continue
        value = override.value()
        if override.is_add() or override.is_force_add():
            return f"{override.input_line}: a run has its {group} already; write {group}={value}, without +"
        if (override.is_delete() and "/" not in group) or (value is None and not override.is_delete()):
            remedy = f"'~{group}' leaves it out" if "/" in group else _choices(group)
            return f"{override.input_line}: a run needs one choice of {group}; {remedy}"
        if isinstance(value, list) and _culprit([str(override.input_line)]):  # eval/measures takes a list
            several = ",".join(map(str, value))
            return f"{override.input_line}: a run has one {group}; for a cell of each write -m {group}={several}"
    return ""


# --- an option that does not exist -----------------------------------------------------------------------------------


def _no_option(key: str, overrides: Sequence[str]) -> str:
    """`key` is no option of what the other overrides choose; in a grid, of what one of its cells chooses."""
    part = re.split(r"[./@]", key)[0]
    for choice in _swept(part, overrides):
        config = _chosen([*(o for o in overrides if not o.startswith(f"{part}=")), choice])
        if key not in _names(config):
            return _lacking(key, part, config)
    config = _chosen(overrides)
    if _swept(part, overrides):
        common = config.hydra.runtime.choices[part]
        return f"{key}: what all cells share is composed with {part}={common}, which has no such option; write ++{key}="
    return _lacking(key, part, config)


def _lacking(key: str, part: str, config: DictConfig) -> str:
    choice = config.hydra.runtime.choices.get(part)
    owner = f"{part}={choice}" if choice else "a run"
    if group_options(key.partition("@")[0]):
        return f"{key}: {owner} has no such part; choose another {part}, or leave it out"
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else None
    if isinstance(parent, DictConfig) and not parent and "." in key.rpartition(".")[0]:
        return f"{key}: nothing of that name is set yet; write +{key}="
    near = nearest(key, _names(config))
    return f"{key}: {owner} has no such option; " + (f"nearest is {near}" if near else "kedit --cfg job lists all")


def _names(config: DictConfig) -> list[str]:
    """Values of all options, and of what they are in."""
    own = {name: node for name, node in OmegaConf.to_container(config, resolve=False).items() if name != "hydra"}  # type: ignore[union-attr]
    return [name for name, _ in dotted(own)]


def _swept(part: str, overrides: Sequence[str]) -> list[str]:
    """The choices of a part that a grid runs, as overrides."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    axes = [o for o in parsed if o.key_or_group == part and o.is_sweep_override()]
    return [f"{part}={value}" for axis in axes for value in axis.sweep_string_iterator()]


def nearest(key: str, names: Sequence[str]) -> str:
    """The option with the same last name, else with a similar name; empty if there is none."""
    last = key.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    inside = [name for name in same if name.partition(".")[0] == key.partition(".")[0]]
    similar = get_close_matches(key, names, 1, 0.6)
    return next(iter([*sorted(inside, key=len), *sorted(same, key=len), *similar]), "")


def _chosen(overrides: Sequence[str]) -> DictConfig:
    """What is composed of the choices of groups alone."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    groups = [o for o in parsed if not o.is_sweep_override()]
    lines = [o.input_line for o in groups if group_options(o.key_or_group) or o.key_or_group == "hydra.searchpath"]
    try:
        return compose("config", [line for line in lines if line], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        return compose("config", return_hydra_config=True)
