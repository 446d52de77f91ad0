"""kedit against EasyEdit's own loops, interleaved in one process: python -m benchmarks.peer --easyedit DIR.

DIR is a checkout of github.com/zjunlp/EasyEdit. Only the modules of its two methods are imported, not its package with
all that it needs. Both sides get the same weights, edits and numbers; on a CPU its hard-wired "cuda:N" means the CPU.
Each line: seconds of both (medians), their ratio (median and range), and whether both made the same change.
"""

import argparse
import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from rich.console import Console

from benchmarks.__main__ import COLUMNS, FILE, grid
from benchmarks.bench import Bench, Timing
from benchmarks.shapes import SHAPES, build, material
from kedit.cases import Edit
from kedit.editors import Job
from kedit.editors.finetune.lora import LoRA
from kedit.editors.finetune.per_edit import FineTune
from kedit.losses.cross_entropy import CrossEntropy

SHARED = {"weight_decay": 0.0, "kl_factor": 0.0, "norm_constraint": False, "device": 0, "model_name": "local"}
Change = dict[str, torch.Tensor]


def method(checkout: Path, name: str, device: torch.device) -> ModuleType:
    """The module easyeditor.models.<name>.<name>_main of the checkout."""
    root = checkout / "easyeditor"
    if not (root / "models" / name / f"{name}_main.py").is_file():
        raise SystemExit(
            f"--easyedit {checkout}: no {root / 'models' / name / f'{name}_main.py'}; give a checkout of it"
        )
    for package, folder in (("", root), (".models", root / "models"), (".util", root / "util")):
        empty = sys.modules.setdefault(f"easyeditor{package}", ModuleType(f"easyeditor{package}"))
        empty.__path__ = [str(folder)]
    main: Any = importlib.import_module(f"easyeditor.models.{name}.{name}_main")
    main.torch = OnDevice(device)
    return main  # type: ignore[no-any-return]


class OnDevice:
    """torch, in which every device is this one."""

    def __init__(self, device: torch.device):
        self._device = device

    def device(self, *_: Any) -> torch.device:
        return self._device

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def ft_m(bench: Bench, checkout: Path, steps: int) -> tuple[FineTune, Callable[[Edit], Change]]:
    """Both stop at a loss of 1e-2, which is written into EasyEdit's loop."""
    main = method(checkout, "ft", bench.device)
    module = bench.name.removesuffix(".weight").replace(f".{bench.layer}.", ".{}.")
    numbers = {"layers": [bench.layer], "num_steps": steps, "lr": 1e-4, "rewrite_module_tmp": module}
    hparams = SimpleNamespace(**SHARED, **numbers, batch_size=1, objective_optimization="target_new")

    def theirs(edit: Edit) -> Change:
        request = {"prompt": edit.prompt, "target_new": edit.target_new}
        return {
            name: change.clone()
            for name, change in main.execute_ft(bench.plain.model, bench.lm.text.tokenizer, [request], hparams).items()
        }

    return FineTune(loss=CrossEntropy(), lr=1e-4, steps=steps, stop_loss=1e-2, layers=[bench.layer]), theirs


def lora(bench: Bench, checkout: Path, steps: int) -> tuple[FineTune, Callable[[Edit], Change]]:
    """All layers; EasyEdit draws other numbers, and trains an end-of-text token too, so changes are not compared."""
    main = method(checkout, "lora", bench.device)
    numbers = {"layers": [], "num_steps": steps, "lr": 1e-4, "rank": 8, "lora_alpha": 32, "lora_dropout": 0.1}
    hparams = SimpleNamespace(**SHARED, **numbers, batch_size=1, target_modules=None, lora_type="lora")

    def theirs(edit: Edit) -> Change:
        request = {"prompt": edit.prompt, "target_new": edit.target_new}
        main.execute_lora(bench.plain.model, bench.lm.text.tokenizer, [request], hparams).unload()
        bench.plain.model.gradient_checkpointing_disable()  # type: ignore[operator]  # which it has switched on
        return {}

    adapter = LoRA(rank=8, alpha=32, dropout=0.1)
    return FineTune(loss=CrossEntropy(), lr=1e-4, steps=steps, parameters=None, adapter=adapter), theirs


def compared(
    bench: Bench, editor: FineTune, theirs: Callable[[Edit], Change], edits: Sequence[Edit], repeats: int
) -> tuple[Timing, Timing]:
    """One by one, and side by side, against EasyEdit's loop over the same edits."""
    lm, alone, beside = bench.lm, Timing(), Timing()

    def one_by_one() -> None:
        for edit in edits:
            editor.edit(lm, [edit])
            alone.same &= _alike({name: lm.parameter(name) - w for name, w in lm.changes.originals.items()}, edit)
            lm.restore()
            editor.reset()

    def together() -> None:
        with lm.in_variants(len(edits)):
            editor.edit_side_by_side(lm, [Job(editor.fork(), [edit], i) for i, edit in enumerate(edits)])

    changes: dict[str, Change] = {}

    def _alike(ours: Change, edit: Edit) -> bool:
        pairs = [(ours[name], change) for name, change in changes.get(edit.prompt, {}).items()]
        return all(bool((a - b).norm() <= 1e-3 * b.norm()) for a, b in pairs)

    def peer() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            changes.update((edit.prompt, theirs(edit)) for edit in edits)

    peer()  # warms up
    for _ in range(repeats):
        other = bench.timed(peer)
        alone.add(bench.timed(one_by_one), other)
        beside.add(bench.timed(together), other)
    return alone, beside


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__)
    parser.add_argument("--easyedit", required=True, type=Path, help="a checkout of EasyEdit")
    parser.add_argument("--shapes", nargs="*", default=["llama 16x512, 8k", "gpt2 12x768"], choices=list(SHAPES))
    parser.add_argument("--data", default=str(FILE), help="a file in KnowEdit's form")
    parser.add_argument("--edits", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for shape in given.shapes:
        asked = material(SHAPES[shape], given.data, 20)
        asked.tokenizer.pad_token = asked.tokenizer.eos_token
        bench = Bench(build(SHAPES[shape], asked.tokenizer, "cpu", torch.float32), asked)
        lines = []
        for name, made in (("FT-M", ft_m), ("LoRA, all layers", lora)):
            editor, theirs = made(bench, given.easyedit, given.steps)
            alone, beside = compared(bench, editor, theirs, bench.edits[: given.edits], given.repeats)
            lines += [alone.line(f"{name}: one by one"), beside.line(f"{name}: side by side")]
        titles = ["EasyEdit, s" if column == "plain, s" else column for column in COLUMNS]
        Console(file=sys.stdout, width=120).print(grid(f"{shape}, EasyEdit on the right", titles, lines))


if __name__ == "__main__":
    main()
