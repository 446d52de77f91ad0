"""An artefact of the cache that is trained: once for what it depends on, by all processes that accelerate has launched,
and after a kill from its last checkpoint on."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from kedit.common.cache import cache_folder, cached, digest, sha256

Train = Callable[[Path, Path], None]  # (folder for what is learnt, folder for what a continued training needs)


def code_of(*packages: str) -> str:
    """A hash of all code of these packages of kedit.editors and of this one: other code may learn something else."""
    here = Path(__file__).parent
    files = [file for name in (here.name, *packages) for file in sorted((here.parent / name).glob("*.py"))]
    return digest([sha256(file) for file in files])


def trained_once(kind: str, key: Mapping[str, Any], train: Train, *, cpu: bool) -> Path:
    """The folder that `key` (all that what is learnt depends on) determines; `train` fills it if there is none."""
    scratch = cache_folder() / kind / f".partial-{digest(key)}"  # a killed training continues there
    processes = PartialState(cpu=cpu)
    started = []

    def build(folder: Path) -> None:
        started.extend(broadcast_object_list([True]))
        train(folder, scratch)
        shutil.rmtree(scratch, ignore_errors=True)

    if processes.is_main_process:
        cached(kind, key, build)
        if not started:
            broadcast_object_list([False])
    elif broadcast_object_list([None])[0]:  # the main process has the lock: the others train with it, and no more
        with TemporaryDirectory() as folder:
            train(Path(folder), scratch)
    processes.wait_for_everyone()
    return cached(kind, key, build)
