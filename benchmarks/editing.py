"""Edits: kedit against plain loops that run the whole model at every step and hold a second one."""

import subprocess
import sys

import torch
from torch.nn import functional

from benchmarks.bench import Bench, Timing
from kedit.editors.finetune.lora import LoRA
from kedit.editors.finetune.per_edit import FineTune
from kedit.losses import Loss
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.dpo import DPO
from kedit.losses.kdpo import KDPO


def editing(bench: Bench, repeats: int, rate: float) -> list[list[str]]:
    """Each method's line."""

    def tuner(loss: Loss, steps: int, cycles: int = 1) -> FineTune:
        return FineTune(loss=loss, lr=1e-4, steps=steps, cycles=cycles, layers=[bench.layer])

    plain = bench.plain
    apart = "KDPO, plain with chosen and rejected in passes of their own"
    methods = [  # plain's forwards and backwards at a step, and kedit's tails
        ("FT-M, 25 steps", tuner(CrossEntropy(), 25), lambda i, s: plain.ft_m(i, s, 25), (1, 1, 1)),
        ("KDPO", tuner(KDPO(0.1), 8, 3), lambda i, s: plain.kdpo(i, s, 8, 3, 0.1), (2, 1, 1)),
        (apart, tuner(KDPO(0.1), 8, 3), lambda i, s: plain.kdpo(i, s, 8, 3, 0.1, separately=True), (4, 2, 1)),
        ("DPO", tuner(DPO(0.1), 6, 3), lambda i, s: plain.dpo(i, s, 6, 3, 0.1), (4, 2, 2)),
    ]
    lines = []
    for what, editor, loop, passes in methods:
        timing = bench.edit(editor, loop, repeats)
        work = timing.steps * passes[-1] * bench.tail
        lines.append(timing.line(what, bench.bound(*passes), work, rate))
    return lines


def adapters(bench: Bench, repeats: int, rate: float) -> list[str]:
    """LoRA on the last third of the layers, merged after the edit."""
    n = bench.lm.anatomy.n_layers
    layers = list(range(n - n // 3, n))
    adapter = LoRA(rank=8, alpha=32, merge=True)
    editor = FineTune(loss=CrossEntropy(), lr=1e-4, steps=25, parameters=None, adapter=adapter, layers=layers)
    originals = {name: p.detach().clone() for name, p in bench.plain.model.named_parameters()}
    timing = Timing()
    for i in range(repeats + 1):
        torch.manual_seed(0)
        mine = bench.timed(lambda i=i: editor.edit(bench.lm, [bench.edits[i % len(bench.edits)]]))
        torch.manual_seed(0)
        other = bench.timed(lambda i=i: bench.plain.lora(*bench.ids(i), 25, 8, 32, layers))
        edited, plain = dict(bench.lm.model.named_parameters()), dict(bench.plain.model.named_parameters())
        apart = sum(float((edited[name] - plain[name]).norm() ** 2) for name in originals) ** 0.5
        change = sum(float((plain[name] - weight).norm() ** 2) for name, weight in originals.items()) ** 0.5
        timing.same &= apart <= 1e-2 * change  # peft begins with zeros, and Adam divides by what is nearly none
        bench.lm.restore()
        for name, parameter in bench.plain.model.named_parameters():
            parameter.data.copy_(originals[name])
        if i:
            timing.add(mine, other)
    tokens, places = bench.lengths
    back = tokens * len(layers) * bench.cost.layer
    whole = bench.cost.forward(tokens, tokens) + tokens * bench.cost.head + back
    tail = bench.cost.forward(tokens, places, layers[0]) + places * bench.cost.head + back
    return timing.line("LoRA on the last third of the layers, 25 steps", whole / tail, 25 * tail, rate)


def fairness(bench: Bench, repeats: int) -> Timing:
    """The plain loop's steps (ours) beside the bare pass, pass back and Adam that they consist of (theirs)."""
    ids, start = bench.ids(0)
    weight = bench.plain.weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=0.0)

    def bare() -> None:
        for _ in range(25):
            logits = bench.plain.model(input_ids=ids, use_cache=False).logits
            optimizer.zero_grad()
            functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:]).backward()
            optimizer.step()

    timing = Timing()
    for _ in range(repeats):
        theirs = bench.timed(bare)
        timing.add(bench.timed(lambda: bench.plain.ft_m(ids, start, 25)), theirs)
        bench.plain.weight.data.copy_(bench.lm.model.get_parameter(bench.name))
        weight.requires_grad_(True)
    weight.requires_grad_(False)
    return timing


def memory(shape: str, data: str) -> list[str]:
    """Growth of the memory over that after loading, as a share of the model's bytes, each in a process alone."""
    shares = []
    for who in ("kedit", "plain"):
        command = [sys.executable, "-m", "benchmarks.memory", who, shape, data]
        shares.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
    return ["KDPO: memory that an edit adds, in models", f"{shares[0]:.3f}", f"{shares[1]:.3f}", *[""] * 5]
