"""A run that is killed (SIGKILL) inside a write: python tests/killed.py WHERE NTH [OVERRIDE ...].

WHERE is what is being written when it dies: rows (half a line), state (half a tensor file), commit (before the rename
that makes a commit count), meta (half a file).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

from kedit.loop import journal
from kedit.run import main as run


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nth(call: Any, n: int, last: Any, name: str = "") -> Any:
    """`call`, but the n-th time (onto a file of this name) `last` with the same arguments, and death."""
    seen = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += not name or any(isinstance(arg, Path) and arg.name == name for arg in args)
        if seen == n:
            last(*args, **kwargs)
            die()
        return call(*args, **kwargs)

    return counted


def half_a_line(self: journal.Journal, step: Any, rows: Any) -> None:
    with open(self.directory / journal.ROWS, "a") as file:
        file.write('{"step": 3, "case": "wor')


def half_a_tensor_file(tensors: Any, filename: Path) -> None:
    Path(filename).write_bytes(b"\x40\x00\x00\x00")


def half_a_text(path: Path, text: str) -> None:
    path.with_name(f".{path.name}.new").write_text(text[: len(text) // 2])


def main() -> None:
    where, n = sys.argv[1], int(sys.argv[2])
    sys.argv[1:3] = []
    if where == "rows":
        journal.Journal.write = nth(journal.Journal.write, n, half_a_line)  # type: ignore[method-assign]
    elif where == "state":
        safetensors.torch.save_file = nth(safetensors.torch.save_file, n, half_a_tensor_file)
    elif where == "commit":
        os.replace = nth(os.replace, n, lambda *_: None, "commit.json")
    elif where == "meta":
        journal.write_text = nth(journal.write_text, n, half_a_text, journal.META)
    run.main()


if __name__ == "__main__":
    main()
