"""New values: what must come out at a fact's subject so that the model says its answer. Many facts at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kedit.common.options import Amount, Count, Layer, OneOrMore, Positive, Rate
from kedit.editors.locate.fact_rows import Fact
from kedit.editors.locate.subject_forward import OutputSite, SubjectForward, single
from kedit.lm import LM


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The optimised value of one fact."""

    value: Float[Tensor, " d"]  # at the first site
    delta: Float[Tensor, " d"]  # what it is above what the bare prompt gave
    steps: int
    loss: float


@dataclass(kw_only=True, eq=False)
class Values:
    """δ, added to what the `sites` of a layer put out at the subject in every template, found by Adam on

        mean over templates of the answer's mean NLL + kl · KL(now ‖ before) where "{subject} is a" has its subject
        + Σ over sites of decay · ‖δ‖ / ‖v₀‖²        (ROME, Eq. 4 and App. B; MEMIT, Eq. 16)

    in `steps` evaluations (after the last no step is taken), until the sum is below `stop_loss`; after each step ‖δ‖ is
    at most `clamp` · ‖v₀‖, v₀ being what the bare prompt gave. Every fact has its own δ and stop.

    `learnt_nll` (PMET): where the answer is the most probable in every template its NLL weighs this much, and the fact
    is done where the KL term is below `learnt_kl`. `loss_layer`: prediction is read after this layer; null: the last.
    """

    sites: OneOrMore[OutputSite]
    steps: Count
    lr: Rate
    decay: Amount
    clamp: Positive
    kl: Amount = 0.0625
    stop_loss: Amount = 0.05
    learnt_nll: Amount | None = None
    learnt_kl: Amount = 0.01
    loss_layer: Layer | None = None
    keep_columns: bool = field(default=True, repr=False)

    def find(self, lm: LM, facts: Sequence[Fact], layer: int) -> list[Found]:
        """In batches within the token budget; a fact's values do not depend on its batch."""
        lengths = [len(fact.rows) * max(len(row.ids) - row.at[0] for row in fact.rows) for fact in facts]
        return lm.batched(lengths, lambda now: Search(self, lm, [facts[i] for i in now], layer).run())


@dataclass(frozen=True, eq=False)
class Places:
    """Where the predictions of the facts that are still searched for stand, as index tensors: made once for all steps
    with the same facts, so that a step waits for the device once, for its losses."""

    facts: Sequence[int]
    alive: Int[Tensor, " m"]  # the same on the device
    edit_row: Int[Tensor, " r"]  # the fact of each row
    asked: Int[Tensor, " k"]  # rows of answers
    subject: Int[Tensor, " m"]  # rows of the kl_prompts' subjects
    gold: Int[Tensor, " k"]
    row: Int[Tensor, " k"]
    tokens: Float[Tensor, " r"]  # number of tokens of each row's answer, at least 1

    @staticmethod
    def of(facts: Sequence[int], columns: SubjectForward, per: int) -> "Places":
        """`per`: rows of a fact."""
        block = columns.block
        alive = torch.tensor(facts, device=block.gold.device)
        asked, subject = (block.gold >= 0).nonzero()[:, 0], (block.gold < 0).nonzero()[:, 0]
        row = block.read_row[asked]
        tokens = torch.zeros(columns.rows, device=row.device).index_add(0, row, torch.ones(len(row), device=row.device))
        edit_row = alive.repeat_interleave(per, output_size=per * len(facts))
        return Places(facts, alive, edit_row, asked, subject, block.gold[asked], row, tokens.clamp(min=1))


class Search:
    """The values of a batch of facts."""

    def __init__(self, values: Values, lm: LM, facts: Sequence[Fact], layer: int):
        self.values, self.facts = values, facts
        rows = [row for fact in facts for row in fact.rows]
        kept = {"keep": values.keep_columns, "until": values.loss_layer}
        self.columns = SubjectForward(lm, rows, layer, values.sites, **kept)  # type: ignore[arg-type]
        self.asked = len(facts[0].asked)  # templates of a fact; its last row is its kl_prompt
        self.before: Float[Tensor, "n v"] | None = (
            None  # what the kl_prompts' subjects were followed by, log-probabilities
        )
        self.start: list[Float[Tensor, "n d"]] = []  # v₀ of each site

    def run(self) -> list[Found]:
        n, width = len(self.facts), self.columns.entered.shape[-1]
        here = self.columns.block.ids.device  # searched where the ids are; the layers and the head may be elsewhere
        zeros = single(self.columns.entered.new_zeros(n, width)).to(here)
        deltas = [zeros.clone().requires_grad_(True) for _ in self.values.sites]
        optimizer = torch.optim.Adam(deltas, lr=self.values.lr)
        done: dict[int, Found] = {}
        columns, places = self.columns, Places.of(range(n), self.columns, self.asked + 1)
        for step in range(self.values.steps):
            losses, learnt = self._losses(columns, places, deltas)
            said, is_learnt = torch.stack([losses.detach(), learnt.to(losses)]).tolist()
            finite_sum(said)
            last = step == self.values.steps - 1
            ends = [last or bool(is_learnt[j]) or value < self.values.stop_loss for j, value in enumerate(said)]
            for j in (j for j, end in enumerate(ends) if end):
                done[places.facts[j]] = self._found(places.facts[j], deltas[0], step, said[j])
            if all(ends):
                break
            staying = [j for j, end in enumerate(ends) if not end]
            kept = torch.tensor(staying, device=losses.device) if any(ends) else None
            optimizer.zero_grad()
            (losses if kept is None else losses[kept]).sum().backward()
            optimizer.step()
            self._clamp(deltas)
            if kept is not None:
                columns = columns.of(self._rows(staying, losses.device))
                places = Places.of([places.facts[j] for j in staying], columns, self.asked + 1)
        return [done[i] for i in range(n)]

    def _losses(
        self, columns: SubjectForward, places: Places, deltas: Sequence[Float[Tensor, "n d"]]
    ) -> tuple[Float[Tensor, " m"], Tensor]:
        """The loss of each fact that is not done, and whether PMET's rule says that it is."""
        alive = places.alive
        logits = single(columns.logits([delta[places.edit_row] for delta in deltas])).log_softmax(-1).to(alive.device)
        if self.before is None:
            self.before = logits[places.subject].detach()
            self.start = [self._start(site, len(alive)) for site in self.values.sites]
        nll = self._nll(logits[places.asked], places, columns.rows)
        now, before = logits[places.subject], self.before[alive]
        kl = self.values.kl * (now.exp() * (now - before)).sum(-1)
        weight, learnt = self._learnt(logits[places.asked], places, kl)
        norms = [
            delta[alive].norm(dim=-1) / v0[alive].norm(dim=-1) ** 2
            for delta, v0 in zip(deltas, self.start, strict=True)
        ]
        return weight * nll + kl + self.values.decay * torch.stack(norms).sum(0), learnt

    def _nll(self, logprobs: Float[Tensor, "k v"], places: Places, rows: int) -> Float[Tensor, " m"]:
        """The mean over a fact's templates of the mean over its answer's tokens."""
        said = logprobs.gather(-1, places.gold[:, None])[:, 0]
        per_row = said.new_zeros(rows).index_add(0, places.row, -said) / places.tokens.to(said)
        return per_row.reshape(-1, self.asked + 1)[:, :-1].mean(1)

    def _learnt(
        self, logprobs: Float[Tensor, "k v"], places: Places, kl: Float[Tensor, " m"]
    ) -> tuple[Tensor | float, Tensor]:
        """The weight of each fact's NLL, and whether it is done."""
        if self.values.learnt_nll is None:
            return 1.0, torch.zeros_like(kl)
        wrong = logprobs.argmax(-1) != places.gold
        fact = places.row // (self.asked + 1)
        learnt = torch.zeros_like(kl).index_add(0, fact, wrong.to(kl)) == 0
        return torch.where(learnt, self.values.learnt_nll, 1.0), learnt & (kl <= self.values.learnt_kl)

    def _start(self, site: OutputSite, n: int) -> Float[Tensor, "n d"]:
        """v₀: the mean over the bare prompt's occurrences of its subject."""
        block = self.columns.block
        original = single(self.columns.original[site]).to(block.ids.device)
        bare = block.edit_row % (self.asked + 1) == 0
        fact = block.edit_row[bare] // (self.asked + 1)
        summed = original.new_zeros(n, original.shape[-1]).index_add(0, fact, original[bare])
        return summed / torch.bincount(fact, minlength=n)[:, None]

    def _rows(self, facts: Sequence[int], device: torch.device) -> Int[Tensor, " m"]:
        """The part that belongs to the facts that are still trained."""
        per = self.asked + 1
        return torch.tensor([fact * per + row for fact in facts for row in range(per)], device=device)

    @torch.no_grad()
    def _clamp(self, deltas: Sequence[Float[Tensor, "n d"]]) -> None:
        for delta, v0 in zip(deltas, self.start, strict=True):
            reach = self.values.clamp * v0.norm(dim=-1, keepdim=True)
            delta.mul_((reach / delta.norm(dim=-1, keepdim=True)).clamp(max=1).nan_to_num(1))

    def _found(self, fact: int, delta: Float[Tensor, "n d"], step: int, loss: float) -> Found:
        change = delta[fact].detach().clone()
        return Found(self.start[0][fact] + change, change, step, loss)


def finite_sum(values: Sequence[float]) -> None:
    """Raises FloatingPointError if their sum is not finite."""
    if not math.isfinite(sum(values)):
        raise FloatingPointError(f"the loss is {sum(values)}")
