"""Locate-then-edit: kedit's batches of facts against a plain loop over single facts.

The plain loop is the usual one: every value step runs whole prompts through the whole model, with logits at every
position; every edit solves a system as large as the MLP for each layer. Both get the same tokens, templates and terms
of the loss, no gradient of weights, and no early stop.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.bench import Bench, Timing
from kedit.covariance.estimate import Projector
from kedit.editors.locate import Locate
from kedit.editors.locate.context_templates import Sampling
from kedit.editors.locate.fact_rows import Fact, KeyReader, facts_of
from kedit.editors.locate.solvers import LeastSquares, NullSpace, Solver
from kedit.editors.locate.subject_forward import OutputSite
from kedit.editors.locate.values import Values

EVALUATIONS = 20  # of an edit on a GPT model: hparams/ROME, hparams/MEMIT
ROME = Values(sites=["mlp_out"], steps=EVALUATIONS, lr=0.5, decay=0.5, clamp=4.0, stop_loss=-1.0)
MEMIT = replace(ROME, sites=["block"], clamp=0.75)


def locating(bench: Bench, repeats: int, rate: float, facts: int = 50, steps: int = EVALUATIONS) -> list[list[str]]:
    """Seconds of one fact: a value step (the mean over `steps`, what is computed once included), and an edit: its steps
    and the rest."""
    first, last = (
        bench.lm.anatomy.layer(17 / 48) - 1,
        bench.lm.anatomy.layer(17 / 48),
    )  # of GPT-2 XL: 13-17, we take two
    rome = Compared(bench, replace(ROME, steps=steps), [(5, 10), (10, 10)], [last])
    memit = Compared(bench, replace(MEMIT, steps=steps), [(10, 5)], [first, last])
    lines = []
    for what, keep in (("whole prompts", False), ("columns kept", True)):
        timing = rome.values(1, repeats, keep)
        lines.append(timing.line(f"ROME, a value step, {what}", rome.bound(keep), rome.work(keep), rate))
    step = memit.values(facts, max(1, repeats // 3), keep=True)
    lines.append(step.line(f"MEMIT, AlphaEdit, {facts} facts: a value step", memit.bound(True), memit.work(True), rate))
    width = bench.lm.anatomy.mlp_width(bench.lm.model, last)
    for name, solver, plain in solvers(width, [first, last], bench.device):
        rest = memit.rest(facts, solver, plain, max(1, repeats // 3))
        lines.append(whole(step, rest, steps).line(f"{name}, {facts} facts: an edit of {steps} steps"))
    return lines


def whole(step: Timing, rest: Timing, steps: int) -> Timing:
    """An edit: its value steps and the rest of it."""
    edit = Timing(same=step.same and rest.same)
    for sides in zip(step.ours, step.theirs, rest.ours, rest.theirs, strict=True):
        edit.add(steps * sides[0] + sides[2], steps * sides[1] + sides[3])
    return edit


PlainSolve = Callable[[int, Tensor, Tensor], Tensor]  # (layer, key [f 1], residual [d 1]) -> [d f]


def solvers(width: int, layers: Sequence[int], device: torch.device) -> list[tuple[str, Solver, PlainSolve]]:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(width, width, device=device)).Q
    scales = torch.logspace(0, -3, width, device=device)
    moment, rank, eye = (basis * scales) @ basis.T, width // 2, torch.eye(width, device=device)
    moment, projector = (moment + moment.T) / 2, basis[:, :rank] @ basis[:, :rank].T
    memit, alphaedit = LeastSquares(weight=15_000.0), NullSpace(l2=10.0, threshold=0.02)
    memit.fit(dict.fromkeys(layers, moment))
    for inverse in memit.inverses.values():
        inverse.times(torch.zeros(width, 1, dtype=torch.float64, device=device))  # as it is prepared once for a run
    alphaedit.projectors = dict.fromkeys(layers, Projector(projector, rank))

    def plain_memit(layer: int, key: Tensor, residual: Tensor) -> Tensor:
        key = key.double()
        return residual.double() @ torch.linalg.solve(15_000 * moment.double() + key @ key.T, key).T

    def plain_alphaedit(layer: int, key: Tensor, residual: Tensor) -> Tensor:
        system = projector @ (key @ key.T) + 10 * eye
        return torch.linalg.solve(system, projector @ key @ residual.T).T

    return [("MEMIT", memit, plain_memit), ("AlphaEdit", alphaedit, plain_alphaedit)]


@dataclass
class Compared:
    """The same values on both sides."""

    bench: Bench
    how: Values
    lengths: Sequence[Sequence[int]]
    layers: Sequence[int]

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.templates = Sampling(lengths=self.lengths)(self.bench.lm)
        edits = [edit for edit in self.bench.edits if edit.subject and edit.subject in edit.prompt]
        self.facts = facts_of(self.bench.lm, edits, self.templates, "last")
        self.edits = edits

    def values(self, facts: int, repeats: int, keep: bool) -> Timing:
        """Seconds of a step of one fact: kedit's of a batch, the plain loop's of its first fact."""
        timing, layer, how = Timing(), self.layers[-1], replace(self.how, keep_columns=keep)
        module = self.module("mlp_out" if how.sites == ["mlp_out"] else "block")
        for i in range(repeats + 1):
            n = facts if i else 1
            batch = [self.facts[(i + j) % len(self.facts)] for j in range(n)]
            found: list = []
            ours = self.bench.timed(
                lambda batch=batch, found=found: found.extend(how.find(self.bench.lm, batch, layer))
            )
            theirs = self.bench.timed(lambda batch=batch, found=found: found.append(self.plain(batch[0], module)))
            timing.same &= bool((found[0].delta - found[-1]).norm() <= 1e-3 * found[-1].norm())
            if i:  # the first warms up
                timing.add(ours / how.steps / facts, theirs / how.steps)
        return timing

    def module(self, site: OutputSite) -> nn.Module:
        model = self.bench.plain.model
        return model.get_submodule(getattr(self.bench.lm.anatomy, site).format(self.layers[-1]))  # type: ignore[operator]

    def padded(self, rows: Sequence) -> Tensor:
        ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
        return ids.to(self.bench.device)

    def plain(self, fact: Fact, module: nn.Module) -> Tensor:
        """δ of one fact."""
        rows, how, ids = fact.rows, self.how, self.padded(fact.rows)
        at = torch.tensor([row.at[0] for row in rows], device=ids.device)
        everyone = torch.arange(len(rows), device=ids.device)
        seen: list[Tensor] = []
        delta = torch.zeros(self.bench.lm.model.config.hidden_size, device=ids.device, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=how.lr)

        def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            seen.append(output[0, at[0]].detach().clone())
            output = output.clone()
            output[everyone, at] += delta
            return output

        before: Tensor | None = None
        handle = module.register_forward_hook(add)
        for step in range(how.steps):
            logits = self.bench.plain.model(input_ids=ids, use_cache=False).logits
            kl_prompt = logits[-1, at[-1]].log_softmax(-1)
            before = kl_prompt.detach() if before is None else before
            nll = [
                -logits[i, row.reads]
                .log_softmax(-1)
                .gather(-1, torch.tensor(row.gold, device=ids.device)[:, None])
                .mean()
                for i, row in enumerate(fact.asked)
            ]
            kl = how.kl * (kl_prompt.exp() * (kl_prompt - before)).sum()
            loss = torch.stack(nll).mean() + kl + how.decay * delta.norm() / seen[0].norm() ** 2
            if step == how.steps - 1:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                delta.mul_((how.clamp * seen[0].norm() / delta.norm()).clamp(max=1))
        handle.remove()
        return delta.detach()

    def rest(self, facts: int, solver: Solver, plain: PlainSolve, repeats: int) -> Timing:
        """Seconds of one fact for all of an edit but its value steps. The plain loop's is of one fact alone."""
        lm, timing = self.bench.lm, Timing()
        editor = Parts(
            keys=KeyReader(weights="half_bare"),
            values=self.how,
            solver=solver,
            layers=self.layers,
            context_templates=self.templates,
            sampling=Sampling(lengths=self.lengths),
        )
        editor.templates = self.templates
        for i in range(repeats + 1):
            batch = [self.facts[j % len(self.facts)] for j in range(facts)]
            wanted = torch.randn(lm.model.config.hidden_size, len(batch), device=lm.device).double()
            ours = self.bench.timed(lambda batch=batch, wanted=wanted: editor.write_values(lm, batch, wanted))
            lm.restore()
            solver.reset()
            alone = wanted[:, :1]
            theirs = self.bench.timed(lambda alone=alone: self.plain_rest(self.facts[0], alone.float(), plain))
            timing.same &= self.agree(editor, alone)
            if i:
                timing.add(ours / facts, theirs)
        return timing

    def agree(self, editor: "Parts", wanted: Tensor) -> bool:
        """Does kedit change as much for that one fact? Brings both models back."""
        lm, model = self.bench.lm, self.bench.plain.model
        editor.write_values(lm, self.facts[:1], wanted)
        same = True
        for layer in self.layers:
            name = f"{lm.anatomy.mlp_out.format(layer)}.weight"
            mine, other = lm.model.get_parameter(name).detach(), model.get_parameter(name)  # type: ignore[operator]
            lm_start = lm.changes.originals[name]
            same &= bool((mine - other).norm() <= 1e-2 * (other - lm_start).norm())
            other.data.copy_(lm_start)
        lm.restore()
        editor.reset()
        return same

    @torch.no_grad()
    def plain_rest(self, fact: Fact, wanted: Tensor, solve: PlainSolve) -> None:
        """Keys, residual and solution, layer by layer."""
        lm, model = self.bench.lm, self.bench.plain.model
        ids = self.padded(fact.asked)
        for i, layer in enumerate(self.layers):
            matrix = model.get_submodule(lm.anatomy.mlp_out.format(layer))  # type: ignore[operator]
            key = self.read(matrix, ids, fact, entering=True)
            key = (key[0] + key[1:].mean(0)) / 2
            out = self.read(self.module("block"), ids[:1], fact, entering=False)[0]
            residual = (wanted[:, 0] - out) / (len(self.layers) - i)
            change = solve(layer, key[:, None], residual[:, None])
            stored = change if matrix.weight.shape == change.shape else change.T
            matrix.weight.data += stored.to(matrix.weight)

    def read(self, module: nn.Module, ids: Tensor, fact: Fact, entering: bool) -> Tensor:
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda _, args, output: seen.append(args[0] if entering else output))
        self.bench.plain.model(input_ids=ids, use_cache=False)
        handle.remove()
        return seen[0][torch.arange(len(ids)), [row.at[0] for row in fact.asked[: len(ids)]]]

    # --- bounds by counting ------------------------------------------------------------------------------------------

    def work(self, keep: bool) -> float:
        """Multiplications of kedit's step of one fact, forward and back."""
        above = self.layers[-1] + 1
        costs = []
        for fact in self.facts:
            tokens = sum(len(row.ids) - keep * row.at[0] for row in fact.rows)
            costs.append(2 * self.bench.cost.forward(tokens, sum(len(row.reads) for row in fact.rows), above))
        return statistics.mean(costs)

    def bound(self, keep: bool) -> float:
        """Of the ratio."""
        tokens = statistics.mean(len(fact.rows) * max(len(row.ids) for row in fact.rows) for fact in self.facts)
        whole_pass = self.bench.cost.forward(tokens, tokens)  # type: ignore[arg-type]
        back = self.bench.cost.forward(tokens, tokens, self.layers[-1] + 1)  # type: ignore[arg-type]
        return (whole_pass + back) / self.work(keep)


class Parts(Locate):
    """An editor whose values are given."""

    def __post_init__(self) -> None:
        """Its solver is prepared already."""
