"""A composed config as plain values: what its references name, and what was added to it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kedit.common.dotted import dotted
from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.run.composition import lines_of, nearest
from kedit.run.options import known
from kedit.run.rules import either


def resolved(cfg: DictConfig, names: Mapping[str, Any]) -> dict[str, Any]:
    """The config with all references replaced. Raises InputError if one refers to nothing."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise InputError(_unresolved(error, names)) from error


def _unresolved(error: OmegaConfBaseException, names: Mapping[str, Any]) -> str:
    name, said = str(error.full_key), "; ".join(lines_of(str(error))[:1])
    key = re.search(r"Interpolation key '(.*)' not found", said)
    one, other = name.partition(".")[0], key[1].partition(".")[0] if key else ""
    if key is None or one not in names or other not in names:
        return f"{name}: {said}"
    others = _mentioning(other, rf"^{key[1].rpartition('.')[2]}:")
    ones = [choice for choice in _mentioning(one, "") if choice not in _mentioning(one, rf"\$\{{{other}\.")]
    return (
        f"{one}={names[one]} takes {key[1]}, which {other}={names[other]} does not have; choose another {one} "
        f"({', '.join(ones)}), or {other}={either(others)}"
    )


def _mentioning(group: str, pattern: str) -> list[str]:
    """The choices of a group whose yaml holds this."""
    paths = sorted((ROOT / "conf" / group).glob("*.yaml"))
    return [path.stem for path in paths if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)]


def check_added(task: Sequence[str], config: Mapping[str, Any]) -> None:
    """Raises InputError if the command line adds an option that nothing reads."""
    for override in task:
        key = override.lstrip("+").partition("=")[0]
        if override.startswith("+") and key.partition(".")[0] not in known():
            near = nearest(key, [name for name, _ in dotted(dict(config)) if name != key])
            raise InputError(f"{override}: nothing reads {key}; " + (f"nearest is {near}" if near else "leave it out"))
