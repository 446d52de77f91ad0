"""What tests let the workers of kedit.run.launchers run, in processes of their own: nothing heavy is imported."""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Jobs:
    """In place of a sweep's cells: each notes where and when it ran; number `dies` kills its process the first time."""

    folder: Path
    dies: int = -1
    lasts_s: float = 0.05

    def run(self, number: int, overrides: Sequence[str]) -> str:
        began = time.monotonic()
        notes = self.folder / f"{number}-{os.getpid()}.json"
        notes.write_text("killed")
        if number == self.dies and len(list(self.folder.glob(f"{number}-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.lasts_s)
        seen = {"number": number, "devices": os.environ["CUDA_VISIBLE_DEVICES"], "pid": os.getpid()}
        notes.write_text(json.dumps({**seen, "began": began, "ended": time.monotonic()}))
        return " ".join(overrides)

    def notes(self) -> list[dict[str, Any]]:
        """Of those that came to their end, by when they began."""
        texts = [path.read_text() for path in self.folder.glob("*.json")]
        return sorted((json.loads(text) for text in texts if text != "killed"), key=lambda note: note["began"])
