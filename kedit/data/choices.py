"""The options of conf/dataset/<name>.yaml, for commands that read a data file without running anything."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import yaml

from kedit.common.errors import InputError
from kedit.common.paths import ROOT

FOLDER = ROOT / "conf" / "dataset"


def dataset_options(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What kedit.data.load is called with by `dataset=<name>` and these overrides ("dataset.dedup=first", as on the
    command line of kedit). Raises InputError if there is no such choice or option."""
    options = _merged(name)
    if "parse" not in options:
        raise InputError(f"dataset={name} reads no file; choose from {', '.join(_names())}")
    for override in overrides:
        _override(options, override)
    wanted = {key: value for key, value in options.items() if not key.startswith("_")}
    return wanted | {"parse": _parser(options["parse"])}


def _names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "file" and "parse" in _merged(path.stem))


def _merged(name: str) -> dict[str, Any]:
    """The yaml over those that its `defaults` name; of one that also sets options of other parts, its dataset's."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"dataset={name}: no such choice; choose from {', '.join(_names())}")
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    merged: dict[str, Any] = {}
    for parent in own.pop("defaults", []):
        if parent != "_self_":
            merged = _over(merged, _merged(parent.partition("@")[0]))
    return _over(merged, own.get("dataset", own))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _over(below[key], above[key]) for key in below.keys() & above.keys() if _nested(below, above, key)}
    return {**below, **above, **both}


def _nested(below: Mapping[str, Any], above: Mapping[str, Any], key: str) -> bool:
    return isinstance(below[key], Mapping) and isinstance(above[key], Mapping)


def _override(options: dict[str, Any], override: str) -> None:
    """One option, "dataset.parse.target=alt", is changed in place."""
    key, equals, value = override.partition("=")
    *parents, last = key.split(".")
    if not equals or parents[:1] != ["dataset"]:
        raise InputError(f"{override!r} is no option of a dataset; write e.g. dataset.drop_empty_targets=true")
    node: Any = options
    for parent in parents[1:]:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node or last.startswith("_") or isinstance(node[last], dict):
        names = ", ".join(f"dataset.{name}" for name in options if not name.startswith("_"))
        raise InputError(f"{key}: the dataset has no such option; choose from {names}")
    node[last] = yaml.safe_load(value)


def _parser(spec: Mapping[str, Any]) -> Any:
    """What a yaml with `_target_` (and `_partial_`) makes."""
    module, _, name = str(spec["_target_"]).rpartition(".")
    target = getattr(import_module(module), name)
    options = {key: value for key, value in spec.items() if not key.startswith("_")}
    return partial(target, **options) if spec.get("_partial_") else target(**options)
