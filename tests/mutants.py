"""Do the tests notice faults? python tests/mutants.py [NUMBER ...] plants each of mutants.yaml in a copy of kedit.

One line each: killed, or SURVIVED; exit status 1 if one survives, or no longer fits the code. `make mutants` runs all.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    """One fault: `old`, which stands in `file` once, becomes `new`; of `tests` at least one must fail."""

    what: str
    file: str
    old: str
    new: str
    tests: str

    def plant(self, copy: Path) -> bool:
        """False if it does not fit the code."""
        path = copy / self.file
        text = path.read_text("utf-8")
        path.write_text(text.replace(self.old, self.new), "utf-8")
        return text.count(self.old) == 1

    def verdict(self, copy: Path) -> str:
        """What the tests say of the copy."""
        if not self.plant(copy):
            return "DOES NOT FIT"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *self.tests.split()]
        done = subprocess.run(
            command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, encoding="utf-8"
        )
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        return f"killed by {failed[0]}" if done.returncode == 1 and failed else "SURVIVED"


def main() -> None:
    mutants = [Mutant(**one) for one in yaml.safe_load((ROOT / "tests" / "mutants.yaml").read_text("utf-8"))]
    chosen = [int(number) for number in sys.argv[1:]] or range(len(mutants))
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in chosen:
            copy = Path(folder, str(number))
            for name in filter(None, files.stdout.split("\0")):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
            verdict = mutants[number].verdict(copy)
            failed += not verdict.startswith("killed")
            sys.stdout.write(f"{number:2d}  {mutants[number].what}: {verdict}\n")
            sys.stdout.flush()
    sys.exit(f"{failed} of {len(chosen)} survived, or do not fit" if failed else 0)


if __name__ == "__main__":
    main()
