"""One shape as kedit and the plain loops have it, and what a line of a table says of both."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch

from benchmarks.flops import Cost
from benchmarks.plain import Plain
from benchmarks.shapes import Material
from kedit.editors.finetune.per_edit import FineTune
from kedit.lm import LM


class Bench:
    """One shape: kedit's LM and the plain loops on a copy of its model (`alone`: on the same)."""

    def __init__(self, lm: LM, material: Material, *, alone: bool = False):
        self.lm, self.material, self.device = lm, material, lm.device
        self.layer = lm.anatomy.layer(21 / 32)
        [self.name] = lm.anatomy.parameters(lm.model, "mlp_out.weight", [self.layer])
        self.plain = Plain(lm.model if alone else deepcopy(lm.model), self.name, lr=1e-4)
        self.edits = material.edits
        self.pairs = lm.text.pairs([e.prompt for e in self.edits], [e.target_new for e in self.edits])
        self.cost = Cost.of(lm, self.layer)

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds: of this process on a CPU, where others may be at work; of the clock elsewhere."""
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        self._wait()
        started = clock()
        run()
        self._wait()
        return clock() - started

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.cuda.synchronize()

    def ids(self, i: int) -> tuple[torch.Tensor, int]:
        pair = self.pairs[i % len(self.pairs)]
        return torch.tensor([pair.ids], device=self.device), pair.start

    def edit(self, editor: FineTune, plain: Callable[[torch.Tensor, int], int], repeats: int) -> "Timing":
        """Edit by edit, kedit and the plain loop, each from the pristine weights."""
        timing = Timing()
        for i in range(repeats + 1):
            edit = self.edits[i % len(self.edits)]
            taken: list[float] = []
            mine = self.timed(lambda edit=edit, taken=taken: taken.append(editor.edit(self.lm, [edit])["steps"]))
            other = self.timed(lambda i=i, taken=taken: taken.append(plain(*self.ids(i))))
            weight, edited = self.lm.model.get_parameter(self.name), self.plain.weight.detach()
            apart = (weight.detach() - edited).norm()
            self.lm.restore()
            timing.same &= taken[0] == taken[1] and bool(apart <= 1e-3 * (edited - weight.detach()).norm())
            self.plain.weight.data.copy_(weight)
            if i:  # the first warms up
                timing.add(mine, other)
                timing.steps += taken[0] / repeats
        return timing

    @property
    def tail(self) -> float:
        """Multiplications of one of kedit's steps."""
        tokens, places = self.lengths
        forward = self.cost.forward(tokens, places, self.layer, matrix=True)
        return forward + self.cost.backward(tokens, places, self.layer)

    def bound(self, forwards: int, backwards: int = 1, ours: int = 1) -> float:
        """Of the ratio: plain whole passes and passes back, against tails."""
        tokens, _ = self.lengths
        back = self.cost.backward(tokens, tokens, self.layer)
        return (forwards * self.cost.forward(tokens, tokens) + backwards * back) / (ours * self.tail)

    @property
    def lengths(self) -> tuple[float, float]:
        """Of an edit, in tokens, and of its answer."""
        return statistics.mean(len(p.ids) for p in self.pairs), statistics.mean(len(p.answer) for p in self.pairs)


@dataclass
class Timing:
    """Seconds of both, by turns."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    same: bool = True  # did both make the same weights or answers?
    steps: float = 0.0  # of an edit, mean

    def add(self, ours: float, theirs: float) -> None:
        self.ours.append(ours)
        self.theirs.append(theirs)

    def line(self, what: str, bound: float | None = None, work: float = 0.0, rate: float = 0.0) -> list[str]:
        """A table's line. `work`: multiplications of kedit's part; `rate`: the machine's in a second."""
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        middle, mine = statistics.median(ratios), statistics.median(self.ours)
        return [
            what,
            f"{mine:.3f}",
            f"{statistics.median(self.theirs):.3f}",
            f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{bound:.2f}" if bound else "",
            f"{100 * middle / bound:.0f} %" if bound else "",
            f"{100 * work / mine / rate:.0f} %" if work else "",
            "yes" if self.same else "NO",
        ]
