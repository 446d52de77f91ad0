"""What comes with the package already trained: kedit/world/shipped/<kind>/<name>/, each with the key that training it
would have (manifest.json). It is used only where training would give the same, so nothing else ever takes its place."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedit.common.cache import MANIFEST, digest, intact
from kedit.common.paths import PACKAGE

log = logging.getLogger(__name__)
SHIPPED = PACKAGE / "world" / "shipped"
INSTEAD = "KEDIT_SHIPPED"  # names another folder; with an empty one everything is trained
LIBRARIES = "versions"  # part of a key: other versions give other bits, but the same scores (make acceptance)


def shipped(kind: str, key: Mapping[str, Any]) -> Path | None:
    """The folder of what `key` describes, if the package has it undamaged."""
    wanted, home = _lasting(key), Path(os.environ.get(INSTEAD) or SHIPPED)
    for folder in sorted((home / kind).glob("*/")):
        if _lasting(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["key"]) != wanted:
            continue
        if intact(folder):
            return folder
        log.warning("the %s that comes with kedit in %s is damaged: it is trained again", kind, folder)
    return None


def _lasting(key: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in key.items() if name != LIBRARIES})
