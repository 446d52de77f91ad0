"""A fact as the model reads it: behind every context template, and as the question what its subject is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.cases import Edit
from kedit.editors.locate.activations import subject_activations
from kedit.editors.locate.context_templates import BARE
from kedit.editors.locate.solvers import Keys
from kedit.editors.locate.subject_forward import OutputSite
from kedit.editors.subject import Occurrence, SubjectSequence, ends, rows
from kedit.lm import LM

KL_PROMPT = "{} is a"  # what the model says of the subject must stay (ROME, §3.1)


@dataclass(frozen=True, slots=True)
class Fact:
    """One edit's rows; the bare prompt is the first of `asked`."""

    asked: list[SubjectSequence]
    kl_prompt: SubjectSequence

    @property
    def rows(self) -> list[SubjectSequence]:
        return [*self.asked, self.kl_prompt]


def facts_of(lm: LM, edits: Sequence[Edit], templates: Sequence[str], occurrence: Occurrence) -> list[Fact]:
    """Raises InputError where a subject is not in its prompt."""
    prompts = [template.replace(BARE, edit.prompt) for edit in edits for template in templates]
    at = [
        [template.index(BARE) + end for end in ends(edit.prompt, edit.subject, occurrence)]
        for edit in edits
        for template in templates
    ]
    asked = rows(lm.text, prompts, at, [edit.target_new for edit in edits for _ in templates])
    subjects = [str(edit.subject).strip() for edit in edits]
    kl_prompts = rows(lm.text, [KL_PROMPT.format(s) for s in subjects], [[len(s) - 1] for s in subjects])
    n = len(templates)
    return [Fact(asked[i * n : (i + 1) * n], kl_prompt) for i, kl_prompt in enumerate(kl_prompts)]


@dataclass(kw_only=True, eq=False)
class KeyReader:
    """Where in a fact's prompts keys are read: at the subject's last token, of the `occurrence` in the prompt.

    `weights`: of the average over the templates: every template alike (ROME), or half for the bare prompt and half for
    the others together (MEMIT, whose averages go over kinds of templates). `anchor`: the key that must give the new
    value: that of the bare prompt (ROME), or the average (R-ROME, arXiv 2403.07175).
    """

    occurrence: Occurrence = "last"
    weights: Literal["alike", "half_bare"] = "alike"
    anchor: Literal["prompt", "average"] = "prompt"

    def keys(self, lm: LM, batch: Sequence[Fact], layers: Sequence[int]) -> list[Keys]:
        """What enters each layer's MLP output matrix, float64."""
        found = subject_activations(
            lm, [row for fact in batch for row in fact.asked], [("mlp_out", layer, "in") for layer in layers]
        )
        return [self._keys(read, len(batch)) for read in found]

    def outputs(self, lm: LM, batch: Sequence[Fact], site: OutputSite, layer: int) -> Float[Tensor, "d n"]:
        """What the site puts out at the anchor, float64."""
        asked = [row for fact in batch for row in (fact.asked if self.anchor == "average" else fact.asked[:1])]
        [read] = subject_activations(lm, asked, [(site, layer, "out")])
        return self._keys(read, len(batch)).prompt_key

    def _keys(self, read: Float[Tensor, "r w"], n: int) -> Keys:
        each = read.double().reshape(n, -1, read.shape[-1])  # [n templates w]
        weights = torch.full((each.shape[1],), 1.0).to(each)
        if self.weights == "half_bare":
            weights[0] = max(1, len(weights) - 1)
        average = (each * (weights / weights.sum())[:, None]).sum(1).T
        return Keys(average, each[:, 0].T if self.anchor == "prompt" else average)
