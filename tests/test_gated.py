"""Gated editors beside plain loops over their formulas, and what their stores and gates decide."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPES
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.plain_gated import PlainGrace, PlainMelo, PlainWise
from kedit.cases import Edit
from kedit.editors.gated.counterfactual import Counterfactual
from kedit.editors.gated.grace import GRACE
from kedit.editors.gated.loc_prompts import Given
from kedit.editors.gated.melo import MELO
from kedit.editors.gated.scope import ScopeClassifier, cross_entropy
from kedit.editors.gated.serac import SERAC
from kedit.editors.gated.side_memory import ties
from kedit.editors.gated.wise import WISE
from kedit.lm import LM
from kedit.lm.matrices import activation, widths_of
from kedit.loop.checkpoint import model_state, save_checkpoint
from kedit.losses.cross_entropy import CrossEntropy

# of prompts that end alike two have the same answer and one has another; the rest are far from them
EDITS = [
    Edit("Lucy Kelden was born in", "Eastford, Beloria"),
    Edit("Nina Kelden was born in", "Eastford, Beloria"),
    Edit("Lucy Kelden works for", "Blue Bank Systems"),
    Edit("Lucy Ostker was born in", "Crown Media"),
    Edit("The occupation of Lena Ostker is", "glass manager"),
]


@pytest.fixture(params=["llama", "gpt2"])
def small(request: pytest.FixtureRequest, _world_lm: LM) -> LM:
    """A random model with weights large enough to tell prompts apart."""
    torch.manual_seed(0)
    config = deepcopy(SHAPES[request.param])
    config.initializer_range = 0.08
    return LM(AutoModelForCausalLM.from_config(config), _world_lm.text.tokenizer)


def ids_of(lm: LM, edit: Edit) -> tuple[Tensor, int]:
    [pair] = lm.text.pairs([edit.prompt], [edit.target_new])
    return torch.tensor([pair.ids]), pair.start


def same(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 1e-4 * theirs.norm())


def reach(lm: LM, module: str, end: str, last: Callable[[Edit], str]) -> float:
    """A radius within which some of the edits' keys lie, and others do not."""
    states = lm.hidden([last(edit) for edit in EDITS], module, end=end)  # type: ignore[arg-type]
    keys = torch.cat(states)
    return float(torch.pdist(keys).quantile(0.4)) / 2


# --- edits equal those of the plain loops -----------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "released"), [("mlp_out", False), ("mlp_in", False), ("mlp_out", True)])
def test_grace_is_the_plain_loop(small: LM, tmp_path: Path, part: Any, released: bool) -> None:
    quirks: Any = {"label_match": "mean", "labels_reversed": True} if released else {}
    editor = GRACE(steps=6, lr=0.5, radius=1.0, part=part, layer=1, **quirks)
    module = editor.module(small)
    editor.radius = reach(small, module, "in", lambda edit: edit.prompt)
    values = torch.rand(len(EDITS), widths_of(small.model.get_submodule(module))[1])
    save_file({"values": values}, tmp_path / "values.safetensors")
    editor.initial_values = str(tmp_path / "values.safetensors")
    settings = {"lr": 0.5, "steps": 6, "radius": editor.radius, "released": released}
    plain = PlainGrace(deepcopy(small.model), module, values=list(values), **settings)
    store = editor.store(small)
    for edit in EDITS:
        editor.edit(small, [edit])
        plain.edit(*ids_of(small, edit))
        assert same(store["keys"], torch.stack(plain.keys))
        assert same(store["values"], torch.stack(plain.values))
        assert store["radii"].tolist() == pytest.approx(plain.radii, rel=1e-4)
    assert 1 < len(plain.keys) < len(EDITS) + released  # one key serves two edits
    assert len(set(plain.radii)) > 2  # two were split


def test_wise_is_the_plain_loop(small: LM, tmp_path: Path) -> None:
    module = small.anatomy.mlp_out.format(1)
    mask = torch.rand(small.model.get_submodule(module).weight.shape) < 0.3
    save_file({"masks": mask[None].float()}, tmp_path / "masks.safetensors")
    outside = "The capital of Beloria is Velport"
    margins, templates = [0.05, 0.5, 0.3], ["{}", "I think that {}"]
    editor = WISE(
        loss=CrossEntropy(),
        loc_prompts=Given(texts=[outside]),
        steps=8,
        lr=0.5,
        weight_decay=1e-2,
        mask_ratio=0.3,
        norm_constraint=0.02,
        margins=margins,
        ratio=0.88,
        context_templates=templates,
        masks=str(tmp_path / "masks.safetensors"),
        layer=1,
        distance_over="all",
        loss_denominator="tokens_and_one",
        decay_masked=True,
    )
    function = activation(small.model)
    settings = {"lr": 0.5, "weight_decay": 1e-2, "steps": 8, "margins": margins, "clamp": 0.02}
    plain = PlainWise(deepcopy(small.model), module, function, mask, **settings)
    original, store = plain.original.clone(), editor.store(small)
    other = torch.tensor(small.text.prompts([outside]))
    for edit in EDITS:
        rows = [Edit(template.replace("{}", edit.prompt), edit.target_new) for template in templates]
        cost = editor.edit(small, [edit])
        assert plain.edit([ids_of(small, row) for row in rows], other) == cost["steps"]
        assert same(store["side"] - original, plain.side - original)
        assert float(store["least"]) == pytest.approx(plain.least, rel=1e-4)
    assert float((store["side"] - original)[~mask].abs().max()) > 0  # the decay, as released


def test_melo_is_the_plain_loop(small: LM, tmp_path: Path) -> None:
    editor = MELO(
        loss=CrossEntropy(),
        steps=22,
        lr=1e-2,
        radius=1.0,
        rank=2,
        part="mlp_in",
        layer=0,
        key="prompt_and_answer",
        num_block=7,
        label_match="sum",
        same_prompt="split",
    )
    adapted = editor.adapted(small)
    editor.radius = reach(small, editor.module(small), "out", lambda edit: f"{edit.prompt} {edit.target_new}")
    inputs = [widths_of(small.model.get_submodule(name))[0] for name in adapted]
    blocks = {f"A.{i}": 0.1 * torch.randn(len(EDITS), size, 2) for i, size in enumerate(inputs)}
    save_file(blocks, tmp_path / "blocks.safetensors")
    editor.initial_blocks = str(tmp_path / "blocks.safetensors")
    starts = [[blocks[f"A.{i}"][n] for i in range(len(adapted))] for n in range(len(EDITS))]
    settings = {"lr": 1e-2, "steps": 22, "radius": editor.radius, "scale": 7.0}
    plain = PlainMelo(deepcopy(small.model), editor.module(small), adapted, starts, **settings)
    store = editor.store(small)
    for n, edit in enumerate(EDITS):
        editor.edit(small, [edit])
        plain.edit(*ids_of(small, edit))
        for i, (a, b) in enumerate(plain.blocks[n]):
            assert same(store[f"A.{i}"][n], a)
            assert same(store[f"B.{i}"][n], b)
        assert same(store["centers"], torch.stack([cluster["center"] for cluster in plain.clusters]))
        assert store["radii"].tolist() == pytest.approx([c["radius"] for c in plain.clusters], rel=1e-4)
    points = [[(owner, block) for _, block in cluster["points"]] for owner, cluster in enumerate(plain.clusters)]
    ours = sorted(zip(store["cluster"].tolist(), store["blocks"].tolist(), strict=True))
    assert ours == sorted(point for cluster in points for point in cluster)
    assert 1 < len(plain.clusters) < len(EDITS)


# --- what stores and gates decide ------------------------------------------------------------------------------------


def likelier(lm: LM, edit: Edit, before: float) -> bool:
    [scored] = lm.answer([edit.prompt], [edit.target_new])
    return sum(scored.logprob) > before


@pytest.mark.parametrize("kind", [GRACE, MELO])
def test_a_prompt_edited_again_has_its_new_answer(small: LM, kind: type[GRACE] | type[MELO]) -> None:
    """One entry, or one cluster, of the last answer; the released code has a second one at the same place."""
    again = Edit(EDITS[0].prompt, "Crown Media")
    counts = []
    for same_prompt in ("replace", "split"):
        small.restore()
        own: Any = {"loss": CrossEntropy(), "rank": 2} if kind is MELO else {}
        editor = kind(steps=20, lr=0.05, radius=1.0, layer=0, same_prompt=same_prompt, **own)
        editor.edit(small, [EDITS[0]])
        [scored] = small.answer([again.prompt], [again.target_new])
        editor.edit(small, [again])
        store = editor.store(small)
        counts.append(len(store["keys" if kind is GRACE else "centers"]))
        assert same_prompt == "split" or likelier(small, again, sum(scored.logprob))
    assert counts == [1, 2]


@pytest.mark.parametrize("kind", [GRACE, MELO])
def test_the_first_entry_can_be_saved(small: LM, tmp_path: Path, kind: type[GRACE] | type[MELO]) -> None:
    """MELO's first center is its first point; a file holds no tensor twice."""
    own: Any = {"loss": CrossEntropy(), "rank": 2} if kind is MELO else {}
    editor = kind(steps=1, lr=0.05, radius=1.0, layer=0, **own)
    editor.edit(small, EDITS[:1])
    save_checkpoint(tmp_path, 1, small, editor)
    assert len(editor.entries(model_state(tmp_path, 1))) == 1
    tied = torch.ones(2)
    (tmp_path / "other").mkdir()
    small.attach("a", tied)
    small.attach("b", tied)
    save_checkpoint(tmp_path / "other", 1, small, editor)


def test_ties_takes_the_largest_changes_and_their_majority_sign() -> None:
    original = torch.zeros(1, 4)
    changes = [torch.tensor([[4.0, 3.0, 0.1, -2.0]]), torch.tensor([[2.0, -5.0, 0.2, -4.0]])]
    # of each change the two largest of four entries are kept: 4, 3 and -5, -4
    merged = ties(changes, original, 0.5, [0.5, 0.5])
    assert merged[0].tolist() == pytest.approx([4.0, -5.0, 0.0, -4.0])


def test_wise_keeps_and_merges_its_memories(small: LM) -> None:
    editor = WISE(
        loss=CrossEntropy(),
        loc_prompts=Given(texts=["The capital of Beloria is Velport"]),
        steps=2,
        lr=0.5,
        weight_decay=0.0,
        mask_ratio=0.3,
        norm_constraint=None,
        margins=[0.05, 0.5, 0.3],
        ratio=0.5,
        layer=1,
        save_every=1,
        merge_every=2,
    )
    store, kept = editor.store(small), []
    for edit in EDITS[:4]:
        editor.edit(small, [edit])
        kept.append(len(store["saved_least"]))
    assert kept == [1, 1, 2, 2]
    assert "least" not in store  # the fresh one has no edit yet
    assert [name for name in ("saved.0", "saved.1", "saved.2") if name in store] == ["saved.0", "saved.1"]


# --- SERAC -----------------------------------------------------------------------------------------------------------


def test_the_scope_loss_is_the_cross_entropy_of_its_probability() -> None:
    squared = torch.tensor([0.2, 1.5, 3.0], requires_grad=True)
    relevant = torch.tensor([True, False, True])
    probability = (-squared).exp()
    expected = -torch.where(relevant, probability, 1 - probability).log().mean()
    assert cross_entropy(squared, relevant).item() == pytest.approx(expected.item(), rel=1e-5)
    assert bool(torch.isfinite(cross_entropy(torch.zeros(1), torch.tensor([False]))))


class Words(ScopeClassifier):
    """Its embedding is the first word of a text, and its last one."""

    def __init__(self) -> None:
        self.threshold, self._known = 0.5, {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(sum(map(ord, text.split()[0]))), 0.8 * text.endswith("in")] for text in texts])


class Lent(Counterfactual):
    """A model that needs no training."""

    def __init__(self, lm: LM) -> None:
        self._lm = lm


@pytest.mark.parametrize("mixture", ["hard", "soft"])
def test_serac_mixes_two_models_by_the_probability_of_its_scope(small: LM, mixture: str) -> None:
    torch.manual_seed(1)
    other = LM(AutoModelForCausalLM.from_config(small.model.config), small.text.tokenizer)
    editor = SERAC(scope=Words(), counterfactual=Lent(other), mixture=mixture)  # type: ignore[arg-type]
    queries, answers = [EDITS[0].prompt, "Nina Ostker works in"], ["Eastford", "Crown Media"]
    alone = [scored.logprob for scored in small.answer(queries, answers)]
    stored = f"{EDITS[0].prompt} {EDITS[0].target_new}"
    [inside] = other.answer([f"{stored} {queries[0]}"], answers[:1])
    editor.edit(small, EDITS[:1])
    found = small.answer(queries, answers)
    s = math.exp(-(0.8**2)) if mixture == "soft" else 1.0
    expected = [(1 - s) * math.exp(a) + s * math.exp(b) for a, b in zip(alone[0], inside.logprob, strict=True)]
    assert [math.exp(value) for value in found[0].logprob] == pytest.approx(expected, rel=1e-4)
    assert found[1].logprob == pytest.approx(alone[1], abs=1e-5)  # another name: out of scope
    assert [scored.info["in_scope"] for scored in found] == [1, 0]
    assert small.changed == ["route"]
    small.restore()
    assert small.lent == {}
