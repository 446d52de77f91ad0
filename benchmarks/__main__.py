"""kedit against plain loops, interleaved in one process: `make bench`.

Each line: seconds of both (median), their ratio (median and range), the bound of the ratio by counting multiplications,
and whether both gave the same weights or answers.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from benchmarks.flops import Cost
from benchmarks.plain import Plain
from kedit import world
from kedit.cases import Edit
from kedit.data import knowedit, load
from kedit.editors.adapters import LoRA
from kedit.editors.finetune import FineTune
from kedit.lm import LM
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.dpo import DPO
from kedit.losses.kdpo import KDPO

ROOT = Path(__file__).parents[1]
SMALL = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 16, "num_attention_heads": 8}
SHAPES: dict[str, PretrainedConfig] = {
    "llama 16x512, 8k": LlamaConfig(**SMALL, vocab_size=8192),
    "llama 16x512, 128k": LlamaConfig(**SMALL, vocab_size=128_256),
    "gpt2 12x768": GPT2Config(),
}
BIG = {
    "llama2-7b": LlamaConfig(),
    "llama3-8b": LlamaConfig(vocab_size=128_256, intermediate_size=14_336, num_key_value_heads=8),
}


class Bench:
    """One shape: kedit's LM and the plain loops on a copy of its model (`alone`: on the same)."""

    def __init__(
        self, config: PretrainedConfig, edits: Sequence[Edit], device: str, dtype: torch.dtype, *, alone: bool = False
    ):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype).to(device)
        self.lm = LM(model, world.load().text.tokenizer)
        self.layer = self.lm.anatomy.layer(21 / 32)
        [self.name] = [n for n in self.lm.anatomy.parameters(model, "mlp_out.weight", [self.layer])]
        self.plain = Plain(model if alone else deepcopy(model), self.name, lr=1e-4)
        self.edits, self.device = edits, device
        self.pairs = self.lm.text.pairs([e.prompt for e in edits], [e.target_new for e in edits])
        self.cost = Cost.of(self.lm, self.layer)

    def timed(self, run: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def ids(self, i: int) -> tuple[torch.Tensor, int]:
        pair = self.pairs[i % len(self.pairs)]
        return torch.tensor([pair.ids], device=self.device), pair.start

    def edit(
        self, editor: FineTune, plain: Callable[[torch.Tensor, int], int], repeats: int
    ) -> tuple[list, list, bool]:
        """Seconds of each, and whether both left the same weights."""
        ours, theirs, same = [], [], True
        for i in range(repeats + 1):
            edit = self.edits[i % len(self.edits)]
            taken: list[float] = []
            mine = self.timed(lambda edit=edit, taken=taken: taken.append(editor.edit(self.lm, [edit])["steps"]))
            other = self.timed(lambda i=i, taken=taken: taken.append(plain(*self.ids(i))))
            weight, edited = self.lm.model.get_parameter(self.name), self.plain.weight.detach()
            apart = (weight.detach() - edited).norm()
            self.lm.restore()
            same &= taken[0] == taken[1] and bool(apart <= 1e-3 * (edited - weight.detach()).norm())
            self.plain.weight.data.copy_(weight)
            if i:  # the first warms up
                ours.append(mine)
                theirs.append(other)
        return ours, theirs, same

    def bound(self, forwards: int, backwards: int = 1, ours: int = 1) -> float:
        """Of the ratio: plain whole passes and passes back, against tails."""
        tokens = statistics.mean(len(p.ids) for p in self.pairs)
        places = statistics.mean(len(p.answer) for p in self.pairs)
        plain = forwards * self.cost.forward(tokens, tokens) + backwards * self.cost.backward(
            tokens, tokens, self.layer
        )
        tail = self.cost.forward(tokens, places, self.layer, matrix=True) + self.cost.backward(
            tokens, places, self.layer
        )
        return plain / (ours * tail)


def editing(bench: Bench, repeats: int) -> list[list[str]]:
    def tuner(loss: object, steps: int, cycles: int = 1) -> FineTune:
        return FineTune(loss=loss, lr=1e-4, steps=steps, cycles=cycles, layers=[bench.layer])

    plain = bench.plain
    lines = []
    for what, editor, loop, bound in [
        ("FT-M, 25 steps", tuner(CrossEntropy(), 25), lambda i, s: plain.ft_m(i, s, 25), bench.bound(1)),
        ("KDPO", tuner(KDPO(0.1), 8, 3), lambda i, s: plain.kdpo(i, s, 8, 3, 0.1), bench.bound(2)),
        (
            "KDPO, chosen and rejected apart",
            tuner(KDPO(0.1), 8, 3),
            lambda i, s: plain.kdpo(i, s, 8, 3, 0.1, separately=True),
            bench.bound(4, 2),
        ),
        ("DPO", tuner(DPO(0.1), 6, 3), lambda i, s: plain.dpo(i, s, 6, 3, 0.1), bench.bound(4, 2, 2)),
    ]:
        lines.append(line(what, *bench.edit(editor, loop, repeats), bound))
    return lines


def adapters(bench: Bench, repeats: int) -> list[str]:
    """LoRA on the last third of the layers, merged after the edit."""
    n = bench.lm.anatomy.n_layers
    layers = list(range(n - n // 3, n))
    adapter = LoRA(rank=8, alpha=32, merge=True)
    editor = FineTune(loss=CrossEntropy(), lr=1e-4, steps=25, parameters=None, adapter=adapter, layers=layers)
    originals = {name: p.detach().clone() for name, p in bench.plain.model.named_parameters()}
    ours, theirs, same = [], [], True
    for i in range(repeats + 1):
        torch.manual_seed(0)
        mine = bench.timed(lambda i=i: editor.edit(bench.lm, [bench.edits[i % len(bench.edits)]]))
        torch.manual_seed(0)
        other = bench.timed(lambda i=i: bench.plain.lora(*bench.ids(i), 25, 8, 32, layers))
        plain = bench.plain.model.state_dict()
        same &= all(torch.allclose(w, plain[name], atol=2e-5) for name, w in bench.lm.model.state_dict().items())
        bench.lm.restore()
        for name, parameter in bench.plain.model.named_parameters():
            parameter.data.copy_(originals[name])
        if i:
            ours.append(mine)
            theirs.append(other)
    tokens, places = len(bench.pairs[0].ids), len(bench.pairs[0].answer)
    back = tokens * len(layers) * bench.cost.layer
    whole = bench.cost.forward(tokens, tokens) + tokens * bench.cost.head + back
    tail = bench.cost.forward(tokens, places, layers[0]) + places * bench.cost.head + back
    return line("LoRA, last third, 25 steps", ours, theirs, same, whole / tail)


def scoring(
    bench: Bench, repeats: int, questions: Sequence[tuple[str, str]], prompts: Sequence[str]
) -> list[list[str]]:
    """Before and after an edit; pooled against one at a time."""
    lm, plain = bench.lm, bench.plain
    pairs = lm.text.pairs(*map(list, zip(*questions, strict=True)))
    encoded = [(torch.tensor([pair.ids], device=bench.device), pair.start) for pair in pairs]
    asked = [p for p, _ in questions], [a for _, a in questions]
    times: dict[str, tuple[list[float], list[float]]] = {n: ([], []) for n in ("before", "after", "second")}
    same = True
    for i in range(repeats + 1):
        lm.keep_below([])
        said: list = []
        before = bench.timed(lambda said=said: (lm.keep_below([bench.name], *asked), said.append(lm.answer(*asked))))
        theirs = bench.timed(lambda said=said: said.append([plain.score(*one) for one in encoded]))
        with torch.no_grad():
            lm.track([bench.name])[0].mul_(1.5)
            plain.weight.mul_(1.5)
        after = bench.timed(lambda said=said: said.append(lm.answer(*asked)))
        theirs_after = bench.timed(lambda said=said: said.append([plain.score(*one) for one in encoded]))
        lm.restore()
        plain.weight.data.copy_(lm.model.get_parameter(bench.name))
        same &= [s.pred for s in said[0]] == said[1] and [s.pred for s in said[2]] == said[3]
        if i:
            for name, mine, other in [
                ("before", before, theirs),
                ("after", after, theirs_after),
                ("second", after, theirs + theirs_after),  # its answers before are kept on disk
            ]:
                times[name][0].append(mine)
                times[name][1].append(other)
    tokens, places = sum(len(p.ids) for p in pairs), sum(len(p.answer) for p in pairs)
    whole, tail = bench.cost.forward(tokens, tokens), bench.cost.forward(tokens, places, bench.layer)
    bounds = {"before": whole / bench.cost.forward(tokens, places), "after": whole / tail, "second": 2 * whole / tail}
    n = len(questions)
    names = {"before": f"{n} answers before", "after": f"{n} answers after", "second": "both, of a second editor"}
    lines = [line(names[name], *times[name], same, bounds[name]) for name in times]
    return [*lines, fluency(bench, max(2, repeats // 2), prompts)]


def fluency(bench: Bench, repeats: int, prompts: Sequence[str]) -> list[str]:
    ours, theirs = [], []
    ids = [torch.tensor([i], device=bench.device) for i in bench.lm.text.prompts(prompts)]
    seeds = list(range(len(prompts)))
    for _ in range(repeats):
        ours.append(bench.timed(lambda: bench.lm.generate(prompts, max_tokens=100, top_k=5, seeds=seeds, stop=False)))
        theirs.append(bench.timed(lambda: [bench.plain.generate(i, 100 - i.shape[1], top_k=5) for i in ids]))
    return line(f"{len(prompts)} fluency texts of 100 tokens", ours, theirs, True, float("nan"))


def line(what: str, ours: list[float], theirs: list[float], same: bool, bound: float) -> list[str]:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median(ratios)
    return [
        what,
        f"{statistics.median(ours):.3f}",
        f"{statistics.median(theirs):.3f}",
        f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        "-" if bound != bound else f"{bound:.2f}",
        "yes" if same else "NO",
    ]


def fairness(bench: Bench, repeats: int) -> list[str]:
    """The plain loop's step beside the bare pass, pass back and Adam that it consists of."""
    ids, start = bench.ids(0)
    weight = bench.plain.weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=0.0)

    def bare() -> None:
        for _ in range(25):
            logits = bench.plain.model(input_ids=ids, use_cache=False).logits
            optimizer.zero_grad()
            functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:]).backward()
            optimizer.step()

    bares, plains = [], []
    for _ in range(repeats):
        bares.append(bench.timed(bare))
        plains.append(bench.timed(lambda: bench.plain.ft_m(ids, start, 25)))
        bench.plain.weight.data.copy_(bench.lm.model.get_parameter(bench.name))
        weight.requires_grad_(True)
    weight.requires_grad_(False)
    return line("(plain FT-M beside its bare steps)", bares, plains, True, float("nan"))


def memory(shape: str, data: str) -> list[str]:
    """Growth of the memory over that after loading, as a share of the model's bytes, each in a process alone."""
    shares = []
    for who in ("kedit", "plain"):
        command = [sys.executable, "-m", "benchmarks.memory", who, shape, data]
        shares.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
    return ["KDPO: memory growth / model", f"{shares[0]:.3f}", f"{shares[1]:.3f}", "-", "-", "-"]


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """The machine's, in 10⁹ multiplications and additions a second."""
    a = torch.randn(1024, 1024, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(4):
            a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 4 * 1024**3 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200, help="of the ZsRE file that are scored")
    parser.add_argument("--data", default=str(ROOT / "tests/data/zsre.json"), help="a file in KnowEdit's form")
    parser.add_argument("--shapes", nargs="*", help="some of the shapes")
    given = parser.parse_args()
    torch.set_num_threads(1 if given.device == "cpu" else 8)
    dtype = getattr(torch, given.dtype)
    cases = load(knowedit.parse, path=given.data).cases[: given.rows]
    edits = [case.edits[0] for case in cases]
    questions = [(p.prompt, p.answers[0]) for case in cases for p in case.probes if p.answers]
    rate = matmul_rate(given.device, dtype)
    shapes = SHAPES if given.device == "cpu" else BIG
    for name, config in shapes.items():
        if given.shapes and name not in given.shapes:
            continue
        bench = Bench(config, edits, given.device, dtype)
        table = Table(title=f"{name}, {given.dtype}, {given.device}; matmul {rate:.0f} G multiply-adds/s")
        for column in ("", "kedit, s", "plain, s", "ratio (range)", "bound", "same"):
            table.add_column(column, justify="left" if not column else "right")
        rows = [*editing(bench, given.repeats), adapters(bench, given.repeats), fairness(bench, given.repeats)]
        if given.device == "cpu":
            rows.append(memory(name, given.data))
        if "8k" in name or given.device != "cpu":
            rows += scoring(bench, given.repeats, questions, [e.prompt for e in edits[:64]])
        for row in rows:
            table.add_row(*row)
        Console(file=sys.stdout, width=110).print(table)


if __name__ == "__main__":
    main()
