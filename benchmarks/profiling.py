"""Where kedit's time goes: self time of torch's operators, by what they do; the rest is Python between them."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench import Bench
from kedit.editors.finetune.per_edit import FineTune
from kedit.losses.kdpo import KDPO

PARTS = {
    "matrix products": ("mm", "addmm", "bmm", "matmul", "linear", "baddbmm"),
    "attention": ("_scaled_dot_product", "scaled_dot_product", "_flash_attention", "_efficient_attention"),
    "softmax and the loss": ("softmax", "log_softmax", "log_sigmoid", "nll_loss", "cross_entropy", "gather", "argmax"),
    "Adam": ("lerp", "addcdiv", "addcmul", "sqrt", "_foreach", "_fused"),
    "copies and new tensors": ("copy", "clone", "cat", "empty", "zero", "fill", "index", "slice", "contiguous", "_to_"),
}


def part(operator: str) -> str:
    """Which of PARTS an operator of torch belongs to: "aten::addmm" is a matrix product."""
    name = operator.rpartition("::")[2]
    for what, beginnings in PARTS.items():
        if name.startswith(beginnings):
            return what
    return "norms, activations, rotations, additions"


def shares(run: Callable[[], object]) -> Counter[str]:
    """Of the whole time of `run`, in per cent, by part."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as made, torch.profiler.record_function("whole"):
        run()
    events = made.key_averages()
    [whole] = [event for event in events if event.key == "whole"]
    found: Counter[str] = Counter()
    for event in events:
        name = "Python and torch's dispatch" if event.key == "whole" else part(event.key)
        found[name] += 100 * event.self_cpu_time_total / whole.cpu_time_total
    return found


def profiled(bench: Bench) -> list[list[str]]:
    """A line for each part: a KDPO edit, and the answers after it."""
    editor = FineTune(loss=KDPO(0.1), lr=1e-4, steps=8, cycles=3, layers=[bench.layer])
    questions = bench.material.questions
    asked = [p for p, _ in questions], [a for _, a in questions]

    def edit() -> None:
        editor.edit(bench.lm, bench.edits[:1])
        bench.lm.restore()

    edited = shares(edit)
    bench.lm.cache_lower_layers([bench.name], *asked)
    scored = shares(lambda: bench.lm.answer(*asked))
    return [[name, f"{edited[name]:.0f} %", f"{scored[name]:.0f} %"] for name, _ in (edited + scored).most_common()]
