"""Knowledge neurons (Dai et al. 2022, arXiv 2104.08696): the neurons that a fact is attributed to get other vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.common.options import Count, Factor, Share
from kedit.editors.attribution import asked, integrated_gradients, points
from kedit.editors.extra_examples import WithExamples
from kedit.editors.mlp_neurons import add_to_neurons, neuron_sites
from kedit.lm import LM
from kedit.lm.text import Pair

Attributed = Literal["old", "end_of_text"]


@dataclass(kw_only=True, eq=False)
class KnowledgeNeurons(WithExamples):
    """Each neuron of any layer whose attribution exceeds `threshold` times the edit's largest loses the embeddings of
    what the model says now (`old_times`) and gains those of the new answer (`new_times`), summed over tokens (§5.2).

    Attributed is the old answer (where the dataset has none, what the model says now), a mean over its tokens, each
    behind those before it (not `extend`: behind the prompt). A neuron's value is what enters the MLP's output matrix
    where the token is predicted. `signed`: a neuron whose value is negative there (half of them in a gated MLP) gets
    the opposite change, because it subtracts its vector; the paper's have hardly any. With `examples` (the fact behind
    other words) only neurons found for more than `share` of the prompts are kept.
    """

    steps: Count
    threshold: Share
    share: Share = 0.4
    attributed: Attributed = "old"
    from_zero: bool = False
    extend: bool = True
    special_tokens: bool = False
    old_times: Factor = 1.0
    new_times: Factor = 1.0
    twice_old: bool = False
    signed: bool = False

    def __post_init__(self) -> None:
        if self.attributed not in get_args(Attributed):
            raise InputError(f"editor.attributed={self.attributed}: choose from {', '.join(get_args(Attributed))}")
        if self.steps < 1:
            raise InputError(f"editor.steps={self.steps}: give at least 1 point")

    def edited_parameters(self, lm: LM) -> Sequence[str]:
        return lm.anatomy.parameters(lm.model, "mlp_out.weight", range(lm.anatomy.n_layers))

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        new = self._pairs(lm, [edit.prompt for edit in edits], [edit.target_new for edit in edits])
        said = lm.greedy_continuation(lm.batch(new)).pairs
        found = self._neurons(lm, edits)
        for (neurons, signs), now, before in zip(found, new, said, strict=True):
            change = self._change(lm, now.answer, before.answer)
            for layer in neurons[:, 0].unique().tolist():
                here = neurons[:, 0] == layer
                changes = change.new_zeros(lm.anatomy.mlp_width(lm.model, layer), len(change))
                signed = signs[here, None].to(change) * change
                changes[neurons[here, 1].to(change.device)] = signed
                add_to_neurons(lm, layer, changes)
        return {"neurons": sum(len(neurons) for neurons, _ in found)}

    def _change(self, lm: LM, new: list[int], old: list[int]) -> Float[Tensor, " d"]:
        old_times = self.old_times * (2 if self.twice_old and len(new) == 1 else 1)
        return self.new_times * lm.embeddings(new).sum(0) - old_times * lm.embeddings(old).sum(0)

    def _neurons(self, lm: LM, edits: Sequence[Edit]) -> list[tuple[Int[Tensor, "_ 2"], Float[Tensor, " _"]]]:
        """For each edit the (layer, index) of its neurons, and what its change is multiplied by at each."""
        facts = [[edit, *self.examples_of(edit)] for edit in edits]
        attributed = iter(self.attributions(lm, [fact for some in facts for fact in some]))
        found = []
        for some in facts:
            scores, values = zip(*(next(attributed) for _ in some), strict=True)
            counts = torch.stack([self._above(score) for score in scores]).sum(0)
            kept = counts > (self.share * len(some) if len(some) > 1 else 0)
            signs = values[0][kept].sign() if self.signed else torch.ones_like(values[0][kept])
            found.append((kept.nonzero(), signs))
        return found

    def _above(self, score: Float[Tensor, "layers f"]) -> Tensor:
        largest = score.max()
        if not largest.isfinite():
            raise FloatingPointError(f"the largest attribution is {largest}")
        return score > (self.threshold * largest).clamp(min=0)

    def attributions(
        self, lm: LM, facts: Sequence[Edit]
    ) -> list[tuple[Float[Tensor, "layers f"], Float[Tensor, "layers f"]]]:
        """Each fact's old answer attributed to each neuron, and the neurons' values: means over the answer's tokens."""
        tokens = [asked(pair, self.extend) for pair in self._old(lm, facts)]
        flat = [pair for some in tokens for pair in some]
        sites = [neuron_sites(lm, pair) for pair in flat]
        made = iter(integrated_gradients(lm, flat, sites, points(self.steps, self.from_zero)))
        grouped = [list(zip(*(next(made) for _ in some), strict=True)) for some in tokens]
        return [(torch.stack(scores).mean(0), torch.stack(values).mean(0)) for scores, values in grouped]

    def _old(self, lm: LM, facts: Sequence[Edit]) -> list[Pair]:
        """The prompts with the answers whose neurons are sought."""
        if self.attributed == "end_of_text":
            ends = [*lm.text.special_ids, *lm.text.eos] if self.special_tokens else [*lm.text.eos]
            return [Pair([*ids, *ends], len(ids)) for ids in lm.text.prompts([fact.prompt for fact in facts])]
        known = self._pairs(lm, [fact.prompt for fact in facts], [fact.target_old or fact.target_new for fact in facts])
        said = lm.greedy_continuation(lm.batch(known)).pairs if not all(fact.target_old for fact in facts) else known
        return [pair if fact.target_old else own for fact, pair, own in zip(facts, known, said, strict=True)]

    def _pairs(self, lm: LM, prompts: Sequence[str], answers: Sequence[str]) -> list[Pair]:
        special = lm.text.special_ids if self.special_tokens else []
        return [Pair([*p.prompt, *special, *p.answer], p.start) for p in lm.text.pairs(prompts, answers)]
