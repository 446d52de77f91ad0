"""SWEA⊕OS (Li et al. 2024, arXiv 2401.17809): a subject's input embeddings are altered wherever a prompt names it.

What is added is optimised until the new answer follows ("O"), and loses the dimensions that the old answer rests on
("S"). No weight changes.
"""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kedit.cases import Case, Edit
from kedit.common.options import Amount, Count, Factor, OneOrMore, Positive, Rate, Share, Text
from kedit.editors.attribution import points
from kedit.editors.extra_examples import WithExamples
from kedit.editors.finetune.base import finite
from kedit.editors.locate.context_templates import BARE, Sampling, given
from kedit.editors.swea.embedding_deltas import EmbeddingDeltas, TokenKey
from kedit.editors.swea.subject_batch import SubjectBatch, SubjectForwards, attributions, subject_batch
from kedit.lm import LM


@dataclass(kw_only=True, eq=False)
class SubjectEmbeddings(WithExamples):
    """δ is added to the embeddings of the subject's tokens; it begins as `start` times these embeddings.

    Adam minimises NLL of the new answer (summed over its tokens, mean over the context templates, see
    kedit.editors.locate.context_templates) + `kl_factor` · KL of what follows the bare subject from what the unedited
    model says there + `weight_decay` · ‖δ‖/‖e‖², in `steps` evaluations, or until the sum is below `stop` ·
    `kl_factor`; ‖δ‖ stays within `clamp_norm_factor` · ‖e‖. Then δ loses `suppression` times the embedding where the
    attribution of the old answer exceeds `threshold` times its largest; a fact without an old answer suppresses
    nothing.

    All facts that a subject was given share its δ, which is optimised anew with each. `examples` (random facts) are
    learnt in the same way, of subjects that no edit is about.
    """

    needs_subject = True

    lr: Rate
    steps: Count
    kl_factor: Amount
    weight_decay: Amount
    clamp_norm_factor: Positive
    stop: Amount
    suppression: Amount
    threshold: Share
    points: Count
    start: Factor = 1.0
    context_templates: OneOrMore[Text] | None = None
    sampling: Sampling | None = None
    kl_from_start: bool = False
    search_answers: bool = False
    _facts: dict[str, list[Edit]] = field(default_factory=dict, init=False, repr=False)  # edited subject -> its facts
    _deltas: dict[TokenKey, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.templates = given(self.context_templates if self.context_templates is not None else [BARE])
        self._installed = EmbeddingDeltas(self.search_answers)

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        if self.context_templates is None and self.sampling is not None:
            self.templates = self.sampling(lm)
        super().fit(lm, train)

    def fit_report(self) -> Mapping[str, Any]:
        return {"context_templates": self.templates}

    def edited_parameters(self, lm: LM) -> Sequence[str]:
        return [f"{lm.embedding_module}.weight"]

    def fork(self) -> "SubjectEmbeddings":
        other = copy(self)
        other._installed = EmbeddingDeltas(self.search_answers)
        other.reset()
        return other

    def reset(self) -> None:
        self._facts, self._deltas = {}, {}
        self._installed.set({})

    def state(self) -> dict[str, Tensor | str]:
        facts = {subject: [asdict(edit) for edit in some] for subject, some in self._facts.items()}
        return {"facts": json.dumps(facts)} | {" ".join(map(str, key)): delta for key, delta in self._deltas.items()}

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        facts = json.loads(str(state.get("facts", "{}")))
        self._facts = {subject: [Edit(**edit) for edit in some] for subject, some in facts.items()}
        self._deltas = {tuple(map(int, key.split())): v for key, v in state.items() if isinstance(v, Tensor)}
        self._install(lm)

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        lessons = [self._lesson(lm, subject, facts) for subject, facts in self._to_learn(edits).items()]
        costs: list[tuple[int, float]] = []

        def run(now: list[int]) -> list[list[Tensor]]:
            some = [lessons[i] for i in now]
            deltas, steps, losses = self._optimised(lm, some)
            costs.extend((steps, loss) for loss in losses)
            return self._suppressed(lm, some, deltas)

        learnt = lm.batched([each.size for each in lessons], run)
        for each, deltas in zip(lessons, learnt, strict=True):
            self._deltas |= zip(each.keys, deltas, strict=True)
        self._install(lm)
        return {"steps": max(steps for steps, _ in costs), "loss": mean(loss for _, loss in costs)}

    def _install(self, lm: LM) -> None:
        """From now on, until `lm.restore`, prompts are read with the deltas."""
        self._installed.set(self._deltas)
        if self._deltas:
            lm.intervene(lm.embedding_module, self._installed, lost="what the editor adds to subjects' embeddings")

    def _to_learn(self, edits: Sequence[Edit]) -> dict[str, list[Edit]]:
        """By subject: all its facts so far; and the random facts of subjects that no edit is about."""
        for edit in edits:
            subject = str(edit.subject)
            others = [fact for fact in self._facts.get(subject, []) if fact.prompt != edit.prompt]
            self._facts[subject] = [*others, edit]
        learnt = {str(edit.subject): self._facts[str(edit.subject)] for edit in edits}
        for fact in (fact for edit in edits for fact in self.examples_of(edit)):
            if fact.subject and fact.subject in fact.prompt and fact.subject not in self._facts:
                learnt.setdefault(fact.subject, [fact])
        return learnt

    def _lesson(self, lm: LM, subject: str, facts: Sequence[Edit]) -> SubjectBatch:
        bare = replace(facts[0], prompt=f"{subject} is")
        return subject_batch(
            lm, subject, [self._in_contexts(fact) for fact in facts], [e.prompt for e in self._in_contexts(bare)]
        )

    def _in_contexts(self, fact: Edit) -> list[Edit]:
        return [replace(fact, prompt=template.replace(BARE, fact.prompt)) for template in self.templates]

    def _optimised(self, lm: LM, some: Sequence[SubjectBatch]) -> tuple[list[list[Tensor]], int, list[float]]:
        """For each subject_batch a δ for each spelling; optimiser steps; each subject_batch's last loss."""
        passes = SubjectForwards(lm, some)
        deltas = [(self.start * own.float()).requires_grad_() for own in passes.own]
        with torch.no_grad():
            reference = passes.logprobs(deltas if self.kl_from_start else None)
        optimizer = torch.optim.Adam(deltas, lr=self.lr)
        for step in range(self.steps):
            losses = self._losses(passes, deltas, reference)
            finite(losses.sum())
            going = losses.detach() >= self.stop * self.kl_factor
            if step == self.steps - 1 or not bool(going.any()):
                break
            self._step(optimizer, losses[going].sum(), deltas, passes, going[passes.of_key.to(going.device)])
        parts = iter(delta.detach() for delta in deltas)
        return [[next(parts) for _ in each.keys] for each in some], step, losses.tolist()

    def _losses(
        self, passes: SubjectForwards, deltas: Sequence[Tensor], reference: Tensor
    ) -> Float[Tensor, " lessons"]:
        batch = passes.batch
        now = passes.logprobs(deltas)
        nll = passes.mean(-batch.sum(now.gather(-1, batch.gold[:, None])[:, 0]), bare=False)
        kl = passes.mean(batch.sum((now.exp() * (now - reference)).sum(-1)), bare=True)
        relative = torch.stack([d.norm() / own.norm() ** 2 for d, own in zip(deltas, passes.own, strict=True)])
        relative, of_key = relative.to(nll.device), passes.of_key.to(nll.device)
        decay = torch.zeros_like(nll).index_add(0, of_key, relative) / of_key.bincount()
        return nll + self.kl_factor * kl + self.weight_decay * decay

    def _step(
        self,
        optimizer: torch.optim.Adam,
        loss: Tensor,
        deltas: Sequence[Tensor],
        passes: SubjectForwards,
        going: Bool[Tensor, " keys"],
    ) -> None:
        """One step of the δs whose subject_batch goes on; the others stay as they are."""
        optimizer.zero_grad()
        loss.backward()
        for delta, goes in zip(deltas, going.tolist(), strict=True):
            if not goes:
                delta.grad = None
        optimizer.step()
        with torch.no_grad():
            for delta, own in zip(deltas, passes.own, strict=True):
                delta.mul_((self.clamp_norm_factor * own.norm() / delta.norm()).clamp(max=1))

    def _suppressed(
        self, lm: LM, some: Sequence[SubjectBatch], deltas: Sequence[Sequence[Tensor]]
    ) -> list[list[Float[Tensor, "_ d"]]]:
        """Suppress the dimensions that the old answer is attributed to: of several old answers those of any."""
        kept = [list(of_lesson) for of_lesson in deltas]
        if not self.suppression:
            return kept
        for each, mine, scores in zip(some, kept, attributions(lm, some, points(self.points)), strict=True):
            masks = [torch.zeros_like(delta, dtype=torch.bool) for delta in mine]
            for key, score in scores:
                masks[key] |= score > self.threshold * score.max()
            for key, mask in enumerate(masks):
                mine[key] = mine[key] - self.suppression * lm.embeddings(each.keys[key]) * mask
        return kept
