"""SERAC (Mitchell et al. 2022, arXiv 2206.06520): stored edits, a classifier of their scope, and a second model that
answers what lies in it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.cases import Case, Edit
from kedit.editors import Editor
from kedit.editors.gated import EntryRow, HasEntries
from kedit.editors.gated.counterfactual import Counterfactual, behind, sentence
from kedit.editors.gated.gate import nearest
from kedit.editors.gated.scope import ScopeClassifier
from kedit.lm import LM, Route
from kedit.lm.route import Reader

NAME = "counterfactual"  # the second model's, in routes


@dataclass(kw_only=True, eq=False)
class SERAC(Editor, HasEntries):
    """Each edit is stored as a sentence. A prompt of which `scope` says that the nearest sentence is in scope is
    answered by the `counterfactual` model, which reads the sentence before the prompt; the model under test answers the
    others. Both learn from training cases.

    `mixture` soft: p = (1 - s) · p_model + s · p_counterfactual with s the probability of being in scope, for every
    prompt, as the released code scores answers. `key` without_last_word: what the scope is judged by lacks the
    sentence's last word, as in the released code. It looks a prompt up together with the answer that is scored:
    eval.routed_by=prompt_and_answer.
    """

    scope: ScopeClassifier
    counterfactual: Counterfactual
    mixture: Literal["hard", "soft"] = "hard"
    key: Literal["sentence", "without_last_word"] = "sentence"
    _stored: list[str] = field(default_factory=list, init=False, repr=False)
    _keys: Float[Tensor, "n d"] | None = field(default=None, init=False, repr=False)

    @property
    def needs_train(self) -> bool:  # type: ignore[override]
        return self.scope.needs_train or self.counterfactual.needs_train

    def missing_inputs(self) -> Iterator[str]:
        yield from self.scope.missing_inputs()
        yield from self.counterfactual.missing_inputs()

    def fit(self, lm: LM, train: Sequence[Case]) -> None:
        self.scope.fit(train)
        self.counterfactual.fit(lm, train)

    def fit_report(self) -> Mapping[str, Any]:
        return {"scope": self.scope.fit_report(), "counterfactual": self.counterfactual.fit_report()}

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Mapping[str, float | int]:
        if not edits:
            return {}
        self.scope.forget()
        new = [sentence(edit) for edit in edits]
        keys = self.scope([self._key_of(one) for one in new])
        self._keys = keys if self._keys is None else torch.cat([self._keys, keys])
        self._stored = [*self._stored, *new]
        self._take_over(lm)
        return {"strings": len(self._stored)}

    def _key_of(self, stored: str) -> str:
        return stored.rpartition(" ")[0] if self.key == "without_last_word" else stored

    def _take_over(self, lm: LM) -> None:
        """From now on, until `lm.restore`, prompts go through the scope classifier."""
        lm.lend(NAME, self.counterfactual.lm)
        lm.route = partial(self._route, lm)

    def reset(self) -> None:
        self._stored, self._keys = [], None
        self.scope.forget()

    def state(self) -> dict[str, Tensor | str]:
        if self._keys is None:
            return {}
        return {"stored": json.dumps(self._stored, ensure_ascii=False), "stored.keys": self._keys.clone()}

    def load_state(self, lm: LM, state: Mapping[str, Tensor | str]) -> None:
        self.reset()
        texts, keys = state.get("stored"), state.get("stored.keys")
        if isinstance(texts, str) and isinstance(keys, Tensor):
            self._stored, self._keys = json.loads(texts), keys.cpu()
            self._take_over(lm)

    def entries(self, state: Mapping[str, Tensor | str]) -> list[EntryRow]:
        texts = state.get("stored", "[]")
        return [{"edit": i, "text": text} for i, text in enumerate(json.loads(str(texts)))]

    # --- reading -----------------------------------------------------------------------------------------------------

    def judged(self, queries: Sequence[str]) -> list[tuple[int, float]]:
        """For each query, the nearest stored edit and the probability that it is in its scope."""
        if self._keys is None or not queries:
            return []
        distance, place = nearest(self._keys, self.scope(queries))
        return list(zip(place.tolist(), (-distance.square()).exp().tolist(), strict=True))

    def _route(self, lm: LM, prompts: Sequence[str], keys: Sequence[str]) -> list[Route]:
        return [self._to(prompt, *found) for prompt, found in zip(prompts, self.judged(keys), strict=True)]

    def _to(self, prompt: str, place: int, probability: float) -> Route:
        in_scope = probability >= self.scope.threshold
        weight = probability if self.mixture == "soft" else float(in_scope)
        readers = {NAME: Reader(weight, behind(self._stored[place], prompt))} if weight > 0 else {}
        told = {"edit": place, "probability": round(probability, 6), "in_scope": int(in_scope)}
        return Route(prompt, readers=readers, info=told)
