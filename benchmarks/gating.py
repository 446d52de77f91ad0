"""Editors that act inside a pass against plain loops over the same formulas: one edit of an empty store.

The plain loop runs the whole model at every step, one row after another, with logits at every position. Both begin with
the same values, blocks and masks, which a file gives.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.bench import Bench, Timing
from benchmarks.plain_gated import PlainGrace, PlainMelo, PlainWise
from kedit.cases import Edit
from kedit.editors.gated.base import Gated
from kedit.editors.gated.grace import GRACE
from kedit.editors.gated.loc_prompts import Given
from kedit.editors.gated.melo import MELO
from kedit.editors.gated.wise import WISE
from kedit.lm.matrices import activation, widths_of
from kedit.losses.cross_entropy import CrossEntropy

OUTSIDE = "The capital of Japan is Tokyo"
CONTEXTS = ["{}", *(f"{word} am here to tell you that. {{}}" for word in "ABCDEFGHIJ")]  # 11, as WISE has them
MARGINS = [5.0, 20.0, 10.0]


def gating(bench: Bench, repeats: int, steps: int = 20) -> list[list[str]]:
    """Seconds of an edit of so many steps."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        return [part(bench, repeats, steps, Path(folder)) for part in (grace, melo, wise)]


def compared(
    bench: Bench, repeats: int, editor: Gated, plain: Callable[[Edit], Tensor], part: str, what: str
) -> list[str]:
    """`plain` makes an edit of an empty store and returns what the store's tensor `part` must be then."""
    timing = Timing()
    for i in range(repeats + 1):
        edit, made = bench.edits[i % len(bench.edits)], list[Tensor]()
        mine = bench.timed(lambda edit=edit: editor.edit(bench.lm, [edit]))
        other = bench.timed(lambda edit=edit, made=made: made.append(plain(edit)))
        ours = editor.store(bench.lm)[part].float()
        timing.same &= bool((ours - made[0]).norm() <= 1e-3 * made[0].norm())
        bench.lm.restore()
        if i:  # the first warms up
            timing.add(mine, other)
    return timing.line(what)


def ids_of(bench: Bench, edit: Edit) -> tuple[Tensor, int]:
    [pair] = bench.lm.text.pairs([edit.prompt], [edit.target_new])
    return torch.tensor([pair.ids], device=bench.device), pair.start


def grace(bench: Bench, repeats: int, steps: int, folder: Path) -> list[str]:
    editor = GRACE(steps=steps, lr=1.0, radius=1.0)
    module = editor.module(bench.lm)
    value = torch.rand(widths_of(bench.lm.model.get_submodule(module))[1], device=bench.device)
    save_file({"values": value[None]}, folder / "values.safetensors")
    editor.initial_values = str(folder / "values.safetensors")
    model = deepcopy(bench.lm.model)

    def plain(edit: Edit) -> Tensor:
        loop = PlainGrace(model, module, lr=1.0, steps=steps, radius=1.0, values=[value])
        loop.edit(*ids_of(bench, edit))
        return torch.stack(loop.values)

    return compared(bench, repeats, editor, plain, "values", f"GRACE, {steps} steps")


def melo(bench: Bench, repeats: int, steps: int, folder: Path) -> list[str]:
    editor = MELO(loss=CrossEntropy(), steps=steps, lr=1e-3, radius=0.5, rank=2, part="mlp_in", depth=35 / 48)
    adapted = editor.adapted(bench.lm)
    starts = [torch.rand(widths_of(bench.lm.model.get_submodule(name))[0], 2, device=bench.device) for name in adapted]
    save_file({f"A.{i}": start[None] for i, start in enumerate(starts)}, folder / "blocks.safetensors")
    editor.initial_blocks = str(folder / "blocks.safetensors")
    model = deepcopy(bench.lm.model)

    def plain(edit: Edit) -> Tensor:
        settings = {"lr": 1e-3, "steps": steps, "radius": 0.5, "scale": 1.0}
        loop = PlainMelo(model, editor.module(bench.lm), adapted, [starts], **settings)
        loop.edit(*ids_of(bench, edit))
        return loop.blocks[0][0][0][None]

    return compared(bench, repeats, editor, plain, "A.0", f"MELO, {steps} steps")


def wise(bench: Bench, repeats: int, steps: int, folder: Path) -> list[str]:
    editor = wise_of(steps)
    module, lm = editor.module(bench.lm), bench.lm
    mask = torch.rand(lm.model.get_submodule(module).weight.shape, device=bench.device) < 0.2  # type: ignore[arg-type]
    save_file({"masks": mask[None].float()}, folder / "masks.safetensors")
    editor.masks = str(folder / "masks.safetensors")
    model, function = deepcopy(lm.model), activation(lm.model)
    outside = torch.tensor(lm.text.prompts([OUTSIDE]), device=bench.device)

    def plain(edit: Edit) -> Tensor:
        settings = {"lr": 0.1, "weight_decay": 0.0, "steps": steps, "margins": MARGINS, "clamp": 1.0}
        loop = PlainWise(model, module, function, mask, **settings)
        loop.edit([ids_of(bench, row) for row in in_contexts(edit)], outside)
        return loop.side

    return compared(bench, repeats, editor, plain, "side", f"WISE, {len(CONTEXTS)} + 1 rows, {steps} steps")


def wise_of(steps: int) -> WISE:
    return WISE(
        loss=CrossEntropy(),
        loc_prompts=Given(texts=[OUTSIDE]),
        steps=steps,
        lr=0.1,
        weight_decay=0.0,
        mask_ratio=0.2,
        norm_constraint=1.0,
        margins=MARGINS,
        ratio=0.88,
        context_templates=CONTEXTS,
        distance_over="all",
        loss_denominator="tokens_and_one",
    )


def in_contexts(edit: Edit) -> Sequence[Edit]:
    return [Edit(context.replace("{}", edit.prompt), edit.target_new) for context in CONTEXTS]
