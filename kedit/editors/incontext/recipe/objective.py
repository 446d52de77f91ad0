"""What RECIPE learns from: an edit's soft prompt gives its answer and leaves others alone; a query finds its edit, or
without one the sentinel."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from kedit.cases import Edit
from kedit.common.options import Amount, Positive
from kedit.editors.incontext.augmentation import qa
from kedit.editors.incontext.recipe.network import RecipeNetwork
from kedit.editors.training.examples import Example, TrainingEdit
from kedit.editors.training.trainer import Objective, Sums, Training, Update, shares
from kedit.lm.forward import with_prefix
from kedit.lm.route import Reading
from kedit.lm.text import Batch
from kedit.losses.kl_divergence import kl_from

if TYPE_CHECKING:
    from kedit.lm.model import LM

NAMES = ("loss", "reliability", "generality", "locality", "contrastive", "success")


@dataclass(frozen=True, kw_only=True)
class RecipeLoss:
    """Weights of the four losses. `hinge`: an answer's token and the sentinel are learnt only while their probability
    is below `hinge` times that of the next best."""

    reliability: Amount = 1.0
    generality: Amount = 1.0
    locality: Amount = 1.0
    contrastive: Amount = 1.0
    hinge: Positive = 1.2


@dataclass(frozen=True, slots=True, eq=False)
class Representations:
    """The edits of an update, in order."""

    knowledge: Float[Tensor, "n w"]
    found: Float[Tensor, "n w"]  # the query that must find its edit
    absent: Float[Tensor, "n w"]  # ... the sentinel, if the edit were not stored
    other: Float[Tensor, "n w"]  # ... the sentinel, always
    sentinel: Float[Tensor, " w"]


class RecipeObjective(Objective):
    """The mean over edits of the weighted losses."""

    def __init__(
        self,
        lm: "LM",
        network: RecipeNetwork,
        loss: RecipeLoss,
        training: Training,
        edits: Sequence[TrainingEdit],
        held_out: Sequence[TrainingEdit],
    ):
        self.module, self.network, self.lm = network, network, lm
        self.loss, self.training = loss, training
        self.edits, self.held_out = edits, held_out
        self.trained_edits, self.held_out_edits = len(edits), len(held_out)
        learns = network.options.train_encoder
        self._known = {} if learns else _features(network, [*edits, *held_out])

    def backward(self, update: Update) -> Sums:
        drawn = [self._drawn(self.edits[i], f"{update.number}/{place}") for place, i in enumerate(update.edits)]
        found = self._represented(drawn, random.Random(f"{self.training.seed}/{update.number}"))
        mine, n = list(update.mine), len(update.edits)
        prompts = self.network.prompts(found.knowledge[mine])
        leaf = prompts.detach().requires_grad_()
        contrastive = self._contrastive(found)[mine]
        total = dict.fromkeys(NAMES, 0.0)
        for part in shares(range(len(mine)), self.training.at_once):
            values = self._values([drawn[mine[i]] for i in part], leaf[list(part)])
            (values["loss"].sum() / n).backward()
            total = {
                name: total[name] + float(values[name].detach().sum()) if name in values else 0.0 for name in total
            }
        of_retrieval = self.loss.contrastive * contrastive.sum()
        torch.autograd.backward([of_retrieval / n, prompts], [None, leaf.grad])
        return _with_retrieval(total, contrastive, float(of_retrieval.detach()))

    def evaluate(self, held_out: Sequence[int]) -> Sums:
        """Retrieval is among the edits that are validated together: those of an update."""
        total = dict.fromkeys(NAMES, 0.0)
        for part in shares(list(held_out), self.training.edits_per_update):
            drawn = [self._drawn(self.held_out[i], f"validation/{i}") for i in part]
            found = self._represented(drawn, random.Random(f"{self.training.seed}/validation/{part[0]}"))
            contrastive = self._contrastive(found)
            values = self._values(drawn, self.network.prompts(found.knowledge))
            sums = {name: float(values[name].sum()) if name in values else 0.0 for name in NAMES}
            sums = _with_retrieval(sums, contrastive, float(self.loss.contrastive * contrastive.sum()))
            total = {name: total[name] + sums[name] for name in NAMES}
        return total

    def _drawn(self, edit: TrainingEdit, draw: str) -> Example:
        return edit.draw(random.Random(f"{self.training.seed}/{draw}"), own_wording=0.0)

    # --- retrieval ----------------------------------------------------------------------------------------------------

    def _represented(self, drawn: Sequence[Example], rng: random.Random) -> Representations:
        n = len(drawn)
        asked = [
            (x.edit.prompt, x.decided.prompt) if rng.random() < 0.5 else (x.decided.prompt, x.edit.prompt)
            for x in drawn
        ]
        texts = [qa(x.edit).text for x in drawn]
        texts += [one for one, _ in asked] + [other for _, other in asked] + [x.kept.prompt for x in drawn]
        features = self._features(texts)
        found, absent, other = self.network.query(features[n:]).split(n)
        return Representations(self.network.knowledge(features[:n]), found, absent, other, self.network.sentinel())

    def _features(self, texts: Sequence[str]) -> Float[Tensor, "n f"]:
        if self.network.options.train_encoder:
            return self.network.features(texts)
        return torch.stack([self._known[text] for text in texts])

    def _contrastive(self, found: Representations) -> Float[Tensor, " n"]:
        """For each edit, -log softmax over the update's edits and the sentinel: a query finds its edit; without it in
        the memory, and for a question about something else, the sentinel."""
        n, device = len(found.knowledge), found.knowledge.device
        stored = torch.cat([found.knowledge, found.sentinel[None]])
        own = torch.eye(n, n + 1, dtype=torch.bool, device=device)
        found_own = functional.cross_entropy(found.found @ stored.T, torch.arange(n, device=device), reduction="none")
        absent = (found.absent @ stored.T).masked_fill(own, -torch.inf)
        return found_own + self._sentinel_first(absent) + self._sentinel_first(found.other @ stored.T)

    def _sentinel_first(self, scores: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        logp = scores.log_softmax(-1)
        low = _within(logp[:, -1], logp[:, :-1].amax(-1), self.loss.hinge)
        return torch.where(low, -logp[:, -1], 0.0)

    # --- the edited model ---------------------------------------------------------------------------------------------

    def _values(self, examples: Sequence[Example], prompts: Float[Tensor, "n m d"]) -> dict[str, Float[Tensor, " n"]]:
        """Each edit's losses except that of retrieval."""
        lm, kept = self.lm, [x.kept for x in examples]
        own, decided = (
            self._batch([x.edit for x in examples], prompts),
            self._batch([x.decided for x in examples], prompts),
        )
        reliability, right = self._answer_loss(own)
        generality, also = self._answer_loss(decided)
        plain, prompted = self._batch(kept, None), self._batch(kept, prompts)
        with torch.no_grad():
            before = lm.answer_logits(plain).float().log_softmax(-1)
        locality = prompted.mean(kl_from(before, lm.answer_logits(prompted).float()))
        weights = self.loss
        loss = weights.reliability * reliability + weights.generality * generality + weights.locality * locality
        parts = {"reliability": reliability, "generality": generality, "locality": locality}
        return {"loss": loss, **parts, "success": (right & also).float()}

    def _batch(self, asked: Sequence[Edit], prompts: Float[Tensor, "n m d"] | None) -> Batch:
        pairs = self.lm.text.pairs([q.prompt for q in asked], [q.target_new for q in asked])
        if prompts is not None:
            pairs = [with_prefix(pair, Reading(prefix=one)) for pair, one in zip(pairs, prompts, strict=True)]
        return self.lm.batch(pairs)

    def _answer_loss(self, batch: Batch) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """The mean over an answer's tokens of -log p of those within the hinge, and whether all are the likeliest."""
        logp = self.lm.answer_logits(batch).float().log_softmax(-1)
        gold = logp.gather(-1, batch.gold[:, None])[:, 0]
        best = logp.detach().scatter(-1, batch.gold[:, None], -torch.inf).amax(-1)
        low = _within(gold, best, self.loss.hinge)
        return batch.mean(torch.where(low, -gold, 0.0)), batch.mean((gold > best).float()) == 1


def _features(network: RecipeNetwork, edits: Sequence[TrainingEdit]) -> dict[str, Float[Tensor, " f"]]:
    """Embeddings of each text that may be asked, by an encoder that does not learn; a continued training reads the same
    batches."""
    asked = {qa(one.edit).text for one in edits}
    asked |= {q.prompt for one in edits for q in (one.edit, *one.rephrased, *one.kept)}
    texts = sorted(asked, key=lambda text: (len(text), text))
    return dict(zip(texts, network.observe(texts), strict=True))


def _within(logp: Tensor, next_best: Tensor, hinge: float) -> Tensor:
    """Is it less likely than `hinge` times the next best?"""
    return logp.detach() < next_best.detach() + torch.tensor(hinge).log()


def _with_retrieval(sums: Sums, contrastive: Tensor, weighted: float) -> Sums:
    return sums | {"contrastive": float(contrastive.detach().sum()), "loss": sums["loss"] + weighted}
