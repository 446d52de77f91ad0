"""Upload what was tracked offline, or never arrived: python -m kedit.sync [SWEEP or DIRECTORY].

Wraps `wandb sync`, one call a cell: a run of wandb lies in parts where a cell was continued, and they belong together.
What is uploaded has wandb's own mark (<run>.wandb.synced) and is skipped the next time.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kedit.common.errors import InputError
from kedit.common.paths import sweep_folder
from kedit.common.terminal import use_safe_output
from kedit.loop.tracker import unreachable
from kedit.results.cell_files import is_running

State = Literal["uploaded", "uploaded before", "still running", "failed"]
NO_KEY, TORN = "No API key configured", "the file ends with an incomplete record"  # the words of `wandb sync`
WANDB = [sys.executable, "-m", "wandb"]


@dataclass(frozen=True)
class Synced:
    """What became of one directory's parts."""

    directory: Path
    state: State
    parts: int
    said: str = ""  # where it can be seen, or what went wrong


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(
        prog="python -m kedit.sync",
        description="Upload the wandb runs of a sweep, or of all cells below a directory, that are not on the server.",
    )
    parser.add_argument("place", nargs="?", default="quickstart", help="default: quickstart")
    parser.add_argument("--jobs", type=int, default=4, help="cells at a time")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for a cell")
    given = parser.parse_args()
    states: list[State] = []
    try:
        for one in sync(sweep_folder(given.place), given.jobs, given.timeout):
            states.append(one.state)
            sys.stdout.write(f"{one.state}: {one.directory} ({one.parts} part{'s' * (one.parts != 1)}){_tail(one)}\n")
            sys.stdout.flush()
    except InputError as error:
        sys.exit(str(error))
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    sys.stdout.write(f"{len(states)} run{'s' * (len(states) != 1)}: {', '.join(counts)}\n")
    sys.exit(int("failed" in states))


def _tail(one: Synced) -> str:
    return f": {one.said}" if one.said else ""


def sync(root: Path, jobs: int = 4, timeout: float = 600.0) -> Iterator[Synced]:
    """Upload every directory's parts below `root`. Raises InputError where there is none, or no server, or no key."""
    found = parts_below(root)
    if not found:
        raise InputError(f"{root}: no wandb run there; was it run with tracker=wandb?")
    if any(not _marked(part) for parts in found.values() for part in parts) and (url := unreachable()):
        raise InputError(f"{url}: no server answers, nothing was uploaded; try again later, or set WANDB_BASE_URL")
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for one in pool.map(lambda item: _sync(item[0], item[1], timeout), found.items()):
            if NO_KEY in one.said:
                raise InputError("wandb has no API key, nothing was uploaded; run `wandb login`, or set WANDB_API_KEY")
            yield one


def parts_below(root: Path) -> dict[Path, list[Path]]:
    """The .wandb files of each directory, oldest first; without those of no byte, left by killed runs."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob("wandb/*run-*/*.wandb"), key=lambda path: path.parent.name.rpartition("run-")[2]):
        if path.stat().st_size:
            found.setdefault(path.parents[2], []).append(path)
    return dict(sorted(found.items()))


def _sync(directory: Path, parts: Sequence[Path], timeout: float) -> Synced:
    """Its parts that are not on the server, one after another; at the first that fails the rest waits."""
    new = [part for part in parts if not _marked(part)]
    if not new:
        return Synced(directory, "uploaded before", len(parts))
    if is_running(directory):
        return Synced(directory, "still running", len(new))
    said = ""
    for i, part in enumerate(new):
        said = _upload(part, timeout)
        if not _marked(part):
            return Synced(directory, "failed", len(new) - i, _error(said))
    seen = re.search(r"https?://\S+/runs/\S+", said)
    return Synced(directory, "uploaded", len(new), seen.group() if seen else "")


def _upload(part: Path, timeout: float) -> str:
    """What `wandb sync` says. The end of a killed run's part is torn: all before it is uploaded, and it is marked."""
    command = [*WANDB, "sync", "--yes", "--include-online", str(part.resolve())]
    cell = part.parents[2]  # wandb leaves logs where it runs
    nothing = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, cwd=cell, stdin=nothing, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"error: not done after {timeout:g} s"
    said = done.stderr + done.stdout
    if TORN in said:
        part.with_suffix(".wandb.synced").touch()
    return said


def _marked(part: Path) -> bool:
    return part.with_suffix(".wandb.synced").exists()


def _error(text: str) -> str:
    """The last line that says what is wrong, else the last."""
    lines = [line.removeprefix("wandb: ").strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"error|fail|unauthor|denied|invalid", line, re.IGNORECASE)]
    return (wrong or lines or ["wandb sync said nothing"])[-1]


if __name__ == "__main__":
    main()
