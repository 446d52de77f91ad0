"""The pipeline of locate-then-edit: batches and one by one, stops, what comes out in the edited model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kedit import world
from kedit.cases import Edit
from kedit.common.errors import InputError
from kedit.covariance.estimate import Covariance
from kedit.editors.locate import Locate
from kedit.editors.locate.activations import subject_activations
from kedit.editors.locate.context_templates import Sampling
from kedit.editors.locate.fact_rows import KeyReader, facts_of
from kedit.editors.locate.solvers import LeastSquares, NullSpace, RankOne, Solver
from kedit.editors.locate.values import Values
from kedit.lm import LM

EDITS = [
    Edit("The home of Ada Moss is", "Paris by the sea", "Ada Moss"),
    Edit("It is said that Tom lives in", "a town", "Tom"),
    Edit("Nobody knows where, but the work of Eva Maria Holm, they say, is", "nothing at all", "Eva Maria Holm"),
]
TEMPLATES = ["{}", "Because of that. {}", "You know well. {}"]
OF_WORLD = [case.edits[0] for case in world.cases(edits=4, limit=4, seed=1).cases]
both = pytest.mark.parametrize("shaped", ["llama", "gpt2"], indirect=True)
SAMPLING = Sampling(lengths=[(6, 2)])


class Moments(Covariance):
    """In place of those over a corpus: of random keys."""

    def second_moment(self, lm: LM, layers: Sequence[int]) -> dict[int, Tensor]:
        torch.manual_seed(0)
        width = lm.anatomy.mlp_width(lm.model, layers[0])
        keys = torch.randn(width, 4 * width) * torch.logspace(0, -3, width)[:, None]
        return {layer: keys @ keys.T / keys.shape[1] for layer in layers}


def locate(
    lm: LM, solver: Solver, sites: Sequence[Any] = ("block",), layers: Sequence[int] = (0, 1), **given: Any
) -> Locate:
    values: dict[str, Any] = {"steps": 6, "lr": 0.1, "decay": 0.01, "clamp": 1.0} | given.pop("values", {})
    parts: dict[str, Any] = {"keys": KeyReader(), "context_templates": TEMPLATES} | given
    editor = Locate(
        values=Values(sites=sites, **values),
        solver=solver,
        layers=layers,
        sampling=SAMPLING,
        statistics=Moments(corpus="none", tokens=1),
        **parts,
    )  # type: ignore[arg-type]
    editor.fit(lm, ())
    return editor


def weights(lm: LM, layer: int) -> Tensor:
    """[d f], whichever way they are stored."""
    module = lm.model.get_submodule(lm.anatomy.mlp_out.format(layer))
    return module.weight.T if module.weight.shape[0] == lm.anatomy.mlp_width(lm.model, layer) else module.weight  # type: ignore[union-attr,return-value,operator]


@both
@pytest.mark.parametrize("sites", [["mlp_out"], ["block"], ["mlp_out", "attn_out"]])
def test_facts_together_find_what_each_finds_alone(shaped: LM, sites: list[Any]) -> None:
    values = Values(sites=sites, steps=8, lr=0.1, decay=0.01, clamp=0.8, stop_loss=6.9)
    batch = facts_of(shaped, EDITS, TEMPLATES, "last")
    together = values.find(shaped, batch, 1)
    alone = [values.find(shaped, [fact], 1)[0] for fact in batch]
    plainly = [replace(values, keep_columns=False).find(shaped, [fact], 1)[0] for fact in batch]
    for found in (alone, plainly):
        assert [f.steps for f in found] == [f.steps for f in together]
        for one, other in zip(found, together, strict=True):
            assert (one.delta - other.delta).norm() <= 1e-4 * one.delta.norm()
            assert (one.value - other.value).norm() <= 1e-4 * one.value.norm()


def test_each_fact_stops_by_itself(lm: LM) -> None:
    batch = facts_of(lm, OF_WORLD, TEMPLATES, "last")
    found = Values(sites=["block"], steps=30, lr=0.5, decay=0.0, clamp=10.0, stop_loss=2.5).find(lm, batch, 1)
    assert len({f.steps for f in found}) > 1
    assert all(f.loss < 2.5 or f.steps == 29 for f in found)


def test_the_budget_changes_no_value(lm: LM) -> None:
    values = Values(sites=["block"], steps=5, lr=0.1, decay=0.1, clamp=1.0)
    batch = facts_of(lm, OF_WORLD, TEMPLATES, "last")
    whole = values.find(lm, batch, 1)
    budget, lm.token_budget = lm.token_budget, 1
    alone = values.find(lm, batch, 1)
    lm.token_budget = budget
    assert all((a.delta - b.delta).norm() <= 1e-4 * a.delta.norm() for a, b in zip(whole, alone, strict=True))


def test_a_change_is_no_longer_than_its_clamp(lm: LM) -> None:
    [fact] = facts_of(lm, EDITS[:1], TEMPLATES, "last")
    [found] = Values(sites=["mlp_out"], steps=20, lr=1.0, decay=0.0, clamp=0.5).find(lm, [fact], 1)
    [[start]] = subject_activations(lm, [fact.asked[0]], [("mlp_out", 1, "out")])
    assert found.delta.norm() == pytest.approx(0.5 * float(start.norm()), rel=1e-4)
    assert torch.allclose(found.value - found.delta, start, atol=1e-5)


def test_the_loss_is_that_of_the_paper(lm: LM) -> None:
    """At δ = 0 only the NLL is left; after a step, all three terms by hand."""
    values, batch = (
        Values(sites=["block"], steps=2, lr=0.1, decay=0.5, clamp=10.0, kl=0.7),
        facts_of(lm, EDITS[:1], TEMPLATES, "last"),
    )
    prompts = [t.replace("{}", EDITS[0].prompt) for t in TEMPLATES]
    scored = lm.answer(prompts, [EDITS[0].target_new] * 3)
    [start] = replace(values, steps=1).find(lm, batch, 1)
    assert start.loss == pytest.approx(sum(-sum(s.logprob) / len(s.logprob) for s in scored) / 3, rel=1e-5)
    [found] = values.find(lm, batch, 1)
    before, after = hooked(lm, batch[0], 0 * found.delta), hooked(lm, batch[0], found.delta)
    nll = (
        sum(
            -a[r.reads].gather(-1, torch.tensor(r.gold)[:, None]).mean()
            for a, r in zip(after, batch[0].asked, strict=False)
        )
        / 3
    )
    now, then = after[-1][batch[0].kl_prompt.reads[0]], before[-1][batch[0].kl_prompt.reads[0]]
    decay = 0.5 * found.delta.norm() / (found.value - found.delta).norm() ** 2
    assert found.loss == pytest.approx(float(nll + 0.7 * (now.exp() * (now - then)).sum() + decay), rel=1e-4)
    assert found.steps == 1


def hooked(lm: LM, fact: Any, delta: Tensor) -> list[Tensor]:
    """Log-probabilities at every position of each row, with δ put into layer 1's output."""
    said = []
    for row in fact.rows:

        def add(module: Any, args: Any, output: Tensor, row: Any = row) -> Tensor:
            output = output.clone()
            output[0, row.at] += delta
            return output

        handle = lm.model.get_submodule(lm.anatomy.block.format(1)).register_forward_hook(add)
        with torch.no_grad():
            said.append(lm.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1))
        handle.remove()
    return said


@both
@pytest.mark.parametrize("anchor", ["prompt", "average"])
def test_rome_puts_its_value_where_its_anchor_is(shaped: LM, anchor: Any) -> None:
    editor = locate(shaped, RankOne(covariance=True), ["mlp_out"], [1], keys=KeyReader(anchor=anchor))
    batch = facts_of(shaped, EDITS[:1], TEMPLATES, "last")
    [found] = editor.values.find(shaped, batch, 1)
    editor.edit(shaped, EDITS[:1])
    out = editor.keys.outputs(shaped, batch, "mlp_out", 1)[:, 0]
    assert (out - found.value).norm() <= 1e-4 * found.delta.norm()


@both
@pytest.mark.parametrize("spread", ["even", "sqrt"])
def test_memits_error_falls_from_layer_to_layer(shaped: LM, spread: Any) -> None:
    editor = locate(shaped, LeastSquares(weight=1e-10), layers=[0, 1, 2], context_templates=["{}"], spread=spread)
    batch = facts_of(shaped, EDITS[:1], ["{}"], "last")
    [found] = editor.values.find(shaped, batch, 2)
    left, real = [], shaped.track

    def track(names: Sequence[str], **options: Any) -> Any:
        left.append(missing())
        return real(names, **options)

    def missing() -> float:
        out = editor.keys.outputs(shaped, batch, "block", 2)[:, 0]
        return float((out - found.value).norm() / found.delta.norm())

    shaped.track = track  # type: ignore[method-assign]
    editor.edit(shaped, EDITS[:1])
    left.append(missing())
    assert left[0] == pytest.approx(1, rel=1e-4)
    assert all(later < earlier for earlier, later in pairwise(left))
    assert left[-1] < 1e-5  # float32 weights; in float64: below


@both
def test_memits_last_layer_leaves_less_than_a_millionth(shaped: LM) -> None:
    shaped.model.double()
    editor = locate(shaped, LeastSquares(weight=1.0), layers=[1, 2], context_templates=["{}"])
    batch = facts_of(shaped, EDITS[:1], ["{}"], "last")
    [found] = editor.values.find(shaped, batch, 2)
    [key] = editor.keys.keys(shaped, batch, [2])
    moment = Moments(corpus="none", tokens=1).second_moment(shaped, [2])[2]
    editor.solver.weight = 1e-10 * float((key.average @ key.average.T).norm() / moment.norm())  # type: ignore[attr-defined]
    editor.edit(shaped, EDITS[:1])
    out = editor.keys.outputs(shaped, batch, "block", 2)[:, 0]
    assert float((out - found.value).norm() / found.delta.norm()) < 1e-6


def test_edits_in_one_call_are_solved_together_or_one_after_another(lm: LM) -> None:
    rome = locate(lm, RankOne(covariance=False), ["mlp_out"], [1])
    rome.edit(lm, EDITS)
    together = weights(lm, 1).clone()
    lm.restore()
    for edit in EDITS:
        rome.edit(lm, [edit])
    assert torch.equal(together, weights(lm, 1))
    lm.restore()
    memit = locate(lm, LeastSquares(weight=10.0))
    memit.edit(lm, EDITS)
    together = weights(lm, 1).clone()
    lm.restore()
    for edit in EDITS:
        memit.edit(lm, [edit])
    assert not torch.allclose(together, weights(lm, 1), atol=1e-4)


def test_alphaedit_forgets_an_edit_that_was_restored(lm: LM) -> None:
    editor = locate(lm, NullSpace(l2=1.0, threshold=1e-2, relative=True))
    editor.edit(lm, EDITS[1:2])
    alone = weights(lm, 1).clone()
    lm.restore()
    editor.reset()
    editor.edit(lm, EDITS[:1])
    editor.edit(lm, EDITS[1:2])
    assert editor.state()["earlier.0"].shape[1] == 2  # type: ignore[union-attr]
    lm.restore()
    editor.reset()
    assert not editor.state()
    editor.edit(lm, EDITS[1:2])
    assert torch.equal(alone, weights(lm, 1))


def test_projectors_can_be_given_as_files(lm: LM, tmp_path: Path) -> None:
    made = locate(lm, NullSpace(l2=1.0, threshold=1e-2, relative=True))
    files = {layer: str(tmp_path / f"{layer}.safetensors") for layer in (0, 1)}
    for layer, projector in made.solver.projectors.items():  # type: ignore[attr-defined]
        save_file({"P": projector.matrix}, files[layer])
    made.edit(lm, EDITS[:1])
    wanted = weights(lm, 1).clone()
    lm.restore()
    given = locate(lm, NullSpace(l2=1.0, threshold=9.0, files=files))
    assert given.fit_report()["null_space_rank"] == made.fit_report()["null_space_rank"]
    given.edit(lm, EDITS[:1])
    assert torch.equal(weights(lm, 1), wanted)
    with pytest.raises(InputError, match=r"no projector for layers \[1\]"):
        locate(lm, NullSpace(l2=1.0, threshold=9.0, files={0: files[0]}))
    save_file({"P": 2 * made.solver.projectors[0].matrix}, files[0])  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="not symmetric with PP = P"):
        locate(lm, NullSpace(l2=1.0, threshold=9.0, files=files))


def test_a_whole_average_weighs_every_template_alike_or_the_bare_prompt_half(lm: LM) -> None:
    batch = facts_of(lm, EDITS[:1], TEMPLATES, "last")
    [each] = subject_activations(lm, batch[0].asked, [("mlp_out", 0, "in")])
    [alike] = KeyReader().keys(lm, batch, [0])
    [half] = KeyReader(weights="half_bare").keys(lm, batch, [0])
    assert torch.allclose(alike.average[:, 0].float(), each.mean(0), atol=1e-6)
    assert torch.allclose(half.average[:, 0].float(), (each[0] + each[1:].mean(0)) / 2, atol=1e-6)
    assert torch.allclose(half.prompt_key[:, 0].float(), each[0])


def test_templates_are_sampled_once_by_the_seed_and_told(lm: LM) -> None:
    def sampled() -> Mapping[str, Any]:
        editor = Locate(
            keys=KeyReader(),
            values=Values(sites=["mlp_out"], steps=1, lr=1.0, decay=0.0, clamp=1.0),
            solver=RankOne(covariance=False),
            sampling=SAMPLING,
        )
        editor.fit(lm, ())
        return editor.fit_report()

    from transformers import set_seed

    set_seed(3)
    first = sampled()["context_templates"]
    set_seed(3)
    assert sampled()["context_templates"] == first
    set_seed(4)
    assert sampled()["context_templates"] != first
    assert first[0] == "{}"
    assert all(t.count("{}") == 1 and t.endswith(". {}") for t in first[1:])
    assert len(first) == 3


@pytest.mark.parametrize("templates", [["Because. {}"], ["{}", "no place"], ["{}", "{} {}"]])
def test_templates_that_cannot_be_filled_are_an_error(lm: LM, templates: list[str]) -> None:
    with pytest.raises(InputError, match="context_templates"):
        locate(lm, RankOne(covariance=False), context_templates=templates)


def test_a_solver_without_its_statistics_is_an_error() -> None:
    with pytest.raises(InputError, match=r"editor\.statistics"):
        Locate(
            keys=KeyReader(),
            values=Values(sites=["block"], steps=1, lr=1.0, decay=0.0, clamp=1.0),
            solver=LeastSquares(weight=1.0),
            sampling=SAMPLING,
        )


def test_a_subject_that_is_not_in_the_prompt_is_an_error(lm: LM) -> None:
    editor = locate(lm, RankOne(covariance=False), ["mlp_out"], [1])
    with pytest.raises(InputError, match="is not in the prompt"):
        editor.edit(lm, [Edit("The home is", "x", "Ada")])


def test_pmet_ends_where_the_answer_is_learnt(lm: LM) -> None:
    [case] = facts_of(lm, OF_WORLD[:1], ["{}"], "last")
    values = Values(sites=["mlp_out", "attn_out"], steps=40, lr=1.0, decay=0.0, clamp=20.0, kl=1e-6, stop_loss=0.0)
    [plain] = values.find(lm, [case], 1)
    [ruled] = replace(values, learnt_nll=0.1).find(lm, [case], 1)
    assert ruled.steps < plain.steps == 39
    assert ruled.loss < 0.2
