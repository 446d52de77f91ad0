"""KN: attributions are what the definition says, however they are batched, and the found neurons get their vectors."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.editors.attribution import asked, integrated_gradients, points
from kedit.editors.extra_examples import Paraphrases
from kedit.editors.knowledge_neurons import KnowledgeNeurons
from kedit.editors.mlp_neurons import neuron_sites
from kedit.lm import LM
from kedit.lm.text import Pair

FACTS = [
    Edit("Lucy Kelden was born in", "Eastford, Beloria", "Lucy Kelden", "Velport, Norland"),
    Edit("The occupation of Lena Ostker is", "glass manager", "Lena Ostker", "river designer"),
    Edit("Nina works for", "Apex Media", "Nina"),
]


def by_hand(lm: LM, pair: Pair, layer: int, steps: int) -> torch.Tensor:
    """One layer and one point at a time, on the model itself."""
    matrix = lm.model.get_submodule(lm.anatomy.mlp_out.format(layer))
    ids = torch.tensor([pair.prompt])
    seen: list[torch.Tensor] = []
    handle = matrix.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    lm.model(input_ids=ids)
    handle.remove()
    value, total = seen[0][0, -1], 0
    for k in range(1, steps + 1):
        scaled = (value * k / steps).requires_grad_()
        handle = matrix.register_forward_pre_hook(
            lambda _, args, s=scaled: torch.cat([args[0][:, :-1], s[None, None]], 1)
        )
        p = functional.softmax(lm.model(input_ids=ids).logits[0, -1], -1)[pair.answer[0]]
        handle.remove()
        total = total + torch.autograd.grad(p, scaled)[0]
    return value * total / steps


def test_attributions_are_those_of_one_layer_and_point_at_a_time(shaped: LM) -> None:
    pairs = [one for p in lm_pairs(shaped)[:2] for one in asked(p)]
    sites = [neuron_sites(shaped, pair) for pair in pairs]
    batched = integrated_gradients(shaped, pairs, sites, points(3))
    for pair, (found, _) in zip(pairs, batched, strict=True):
        for layer in range(3):
            expected = by_hand(shaped, pair, layer, 3)
            assert torch.allclose(found[layer], expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def lm_pairs(lm: LM) -> list[Pair]:
    return lm.text.pairs([f.prompt for f in FACTS], [f.target_old or f.target_new for f in FACTS])


@pytest.mark.parametrize("side", ["right", "left"])
def test_attributions_do_not_depend_on_the_batch(shaped: LM, side: str) -> None:
    editor = KnowledgeNeurons(steps=2, threshold=0.2)
    shaped.token_budget, shaped.padding_side = 1, side  # type: ignore[assignment]
    one_by_one = editor.attributions(shaped, FACTS)
    shaped.token_budget = 600
    for (alone, _), (together, _) in zip(one_by_one, editor.attributions(shaped, FACTS), strict=True):
        assert torch.allclose(alone, together, atol=1e-5 * float(alone.abs().max()), rtol=0)


def vectors(lm: LM, layer: int) -> torch.Tensor:
    """What each neuron adds to the residual stream, [f d]."""
    matrix = lm.model.get_submodule(lm.anatomy.mlp_out.format(layer))
    weight = matrix.weight.detach()
    return (weight if isinstance(matrix, Conv1D) else weight.T).clone()


NEW = Edit("Lucy Kelden was born in", "Eastford", "Lucy Kelden", "Velport")


@pytest.mark.parametrize("signed", [False, True])
def test_only_the_found_neurons_change_by_the_difference_of_embeddings(shaped: LM, signed: bool) -> None:
    editor = KnowledgeNeurons(steps=3, threshold=0.3, new_times=2.0, signed=signed)
    [(score, value)] = editor.attributions(shaped, [NEW])
    [pair] = shaped.text.pairs([NEW.prompt], [NEW.target_new])
    [said] = shaped.greedy_continuation(shaped.batch([pair])).pairs
    change = 2 * shaped.embeddings(pair.answer).sum(0) - shaped.embeddings(said.answer).sum(0)
    before = [vectors(shaped, layer) for layer in range(3)]
    assert editor.edit(shaped, [NEW])["neurons"] == int((score > 0.3 * score.max()).sum()) > 0
    for layer in range(3):
        moved = vectors(shaped, layer) - before[layer]
        sign = value[layer].sign() if signed else torch.ones_like(value[layer])
        expected = (score[layer] > 0.3 * score.max())[:, None] * sign[:, None] * change
        assert torch.allclose(moved, expected, atol=1e-5)


def test_quirks_of_the_released_code_are_switches(lm: LM) -> None:
    """What is attributed, where and at which points; what is added."""

    def first(**given: Any) -> torch.Tensor:
        return KnowledgeNeurons(steps=2, threshold=0.2, **given).attributions(lm, FACTS[:1])[0][0]

    plain = first()
    for quirk in ({"attributed": "end_of_text"}, {"from_zero": True}, {"extend": False}, {"special_tokens": True}):
        assert not torch.allclose(first(**quirk), plain)
    assert points(1) == [1.0]
    assert points(1, from_zero=True) == [0.0]
    plain_change = KnowledgeNeurons(steps=2, threshold=0.2)._change(lm, [700], [800])
    twice = KnowledgeNeurons(steps=2, threshold=0.2, twice_old=True)._change(lm, [700], [800])
    assert torch.allclose(plain_change - twice, lm.embeddings([800])[0], atol=1e-6)


def test_with_other_wordings_only_shared_neurons_are_kept(lm: LM) -> None:
    alone = KnowledgeNeurons(steps=2, threshold=0.2)
    prefixed = KnowledgeNeurons(
        steps=2, threshold=0.2, share=0.9, examples={"para": Paraphrases(prefixes=["It is said. ", "You know. "])}
    )
    prefixed.fit(lm, [])
    [(few, _)], [(many, _)] = prefixed._neurons(lm, FACTS[:1]), alone._neurons(lm, FACTS[:1])
    assert {tuple(n) for n in few.tolist()} < {tuple(n) for n in many.tolist()}


def test_attributions_need_a_point() -> None:
    with pytest.raises(InputError, match=r"editor.steps=0: give at least 1 point"):
        KnowledgeNeurons(steps=0, threshold=0.2)
