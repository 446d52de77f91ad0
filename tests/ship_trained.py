"""Writes what comes with kedit already trained: python tests/ship_trained.py (about ten minutes on one core).

It trains LTE's alignment for the embedded world anew and puts it, in float16, into kedit/world/shipped/, with the key
that says what it is for. Needed when something that it depends on has changed (test_shipped.py then fails).
"""

import json
import os
import sys
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import TemporaryDirectory

from peft.utils import CONFIG_NAME
from safetensors import safe_open
from safetensors.torch import save_file

from kedit.common.cache import MANIFEST, sha256
from kedit.editors.training import shipped

EDITORS = {"alignment": "lte"}  # kind -> the editor that trains it


def main() -> None:
    home = shipped.SHIPPED
    for kind, editor in EDITORS.items():
        with TemporaryDirectory() as scratch:
            ship(trained(editor, kind, Path(scratch)), home / kind / f"{editor}-world")


def trained(editor: str, kind: str, scratch: Path) -> Path:
    """The folder of the cache in which a run of this editor has put what it has learnt."""
    from kedit.run.main import main as kedit

    os.environ |= {shipped.INSTEAD: str(scratch / "nothing")}
    os.environ |= {"KEDIT_RUNS": str(scratch / "runs"), "KEDIT_CACHE": str(scratch / "cache")}
    sys.argv = ["kedit", f"editor={editor}", "T=1", "dataset.limit=1", "eval.fluency_tokens=0", "tracker=none"]
    kedit()
    [folder] = [path for path in (scratch / "cache" / kind).iterdir() if path.is_dir()]
    return folder


def ship(learnt: Path, home: Path) -> None:
    """Copy it with its weights in float16 and a manifest of the new files."""
    rmtree(home, ignore_errors=True)
    copytree(learnt, home)
    for file in home.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            half = {name: weights.get_tensor(name).half() for name in weights.keys()}  # noqa: SIM118
            metadata = weights.metadata()
        save_file(half, file, metadata=metadata)
        file.chmod(0o644)
    _forget_the_machine(home / CONFIG_NAME)
    manifest = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = {name: sha256(home / name) for name in manifest["files"]}
    (home / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{home}: {sum(file.stat().st_size for file in home.iterdir()):,} bytes\n")


def _forget_the_machine(config: Path) -> None:
    """An adapter's config names its base model by a path; the key says by hash which one it is."""
    said = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": "kedit/world/weights"}
    config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
