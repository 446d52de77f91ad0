"""UltraEdit: its statistics, its closed form, batches of any size, a state of fixed size, kill and resume."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kedit import world
from kedit.cases import Edit
from kedit.editors.gradient_least_squares import GradientLeastSquares, ridge_solution
from kedit.editors.gradient_least_squares.statistics import EPSILON, Merge, RowStatistics
from kedit.lm import LM

EDITS = [case.edits[0] for case in world.cases(edits=23, limit=23, seed=1).cases]
PARTS = {"mlp.gate_proj": [1, 2], "mlp.up_proj": [2], "mlp_out": [3]}
CPU = torch.device("cpu")


def editor(**more: Any) -> GradientLeastSquares:
    return GradientLeastSquares(**({"lr": 3e-3, "parts": PARTS} | more))


def folded(rows: torch.Tensor, sizes: Sequence[int], merge: Merge) -> RowStatistics:
    found = RowStatistics.of_width(rows.shape[1], CPU)
    for some in rows.split(list(sizes)):
        found = found.with_rows(some, merge)
    return found


def in_parts(n: int, size: int) -> list[int]:
    return [size] * (n // size) + ([n % size] if n % size else [])


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100])
def test_rows_folded_in_any_grouping_give_the_streams_statistics(size: int) -> None:
    rows = torch.randn(1003, 5, generator=torch.Generator().manual_seed(0)).double() * 3 + 100
    found = folded(rows, in_parts(1003, size), "exact")
    stream = rows.numpy()
    assert int(found.n) == 1003
    assert np.allclose(found.mean, stream.mean(0), rtol=1e-12)
    assert np.allclose(found.squares / (found.n - 1), stream.var(0, ddof=1), rtol=1e-10)
    by_hand = (stream - stream.mean(0)) / (stream.std(0, ddof=1) + EPSILON)
    assert np.allclose(found.normalised(rows), by_hand, atol=1e-9)


@pytest.mark.parametrize(("size", "low", "high"), [(2, 15, 26), (4, 11, 13), (10, 4.5, 5.5), (20, 2.2, 2.8)])
def test_the_released_merge_overstates_deviations(size: int, low: float, high: float) -> None:
    """By the percentages that were measured on the released code; sqrt((r+1)/r) for batches of r rows."""
    rows = torch.randn(4000, 50, generator=torch.Generator().manual_seed(1)).double()
    found = folded(rows, in_parts(4000, size), "released")
    excess = 100 * ((found.squares / (found.n - 1)).sqrt() / rows.std(0) - 1)
    assert low <= float(excess.mean()) <= high
    assert float(excess.mean()) == pytest.approx(100 * (((size + 1) / size) ** 0.5 - 1), abs=0.3)


def test_a_single_row_has_no_unbiased_variance() -> None:
    with pytest.raises(FloatingPointError, match=r"no variance of one row.*editor\.merge=exact"):
        folded(torch.ones(1, 3), [1], "released")
    assert int(folded(torch.ones(1, 3), [1], "exact").n) == 1


# --- the closed form -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 40, 200], ids=lambda n: f"{n} rows")
def test_the_solution_is_that_of_a_dense_ridge_regression(rows: int) -> None:
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(rows, 40, generator=draw, dtype=torch.float64)
    v = torch.randn(rows, 6, generator=draw, dtype=torch.float64)
    dense = torch.linalg.inv(h.T @ h + 0.7 * torch.eye(40, dtype=torch.float64)) @ h.T @ v
    assert (ridge_solution(h, v, 0.7) - dense).abs().max() < 1e-8


def keep(name: str, entered: dict[str, tuple[Any, Any]], module: Any, inputs: Any, output: torch.Tensor) -> None:
    output.retain_grad()
    entered[name] = inputs[0], output


def by_hand(lm: LM, edits: Sequence[Edit], size: int, merge: Merge) -> dict[str, torch.Tensor]:
    """Every matrix's change, row by row and densely, from torch's own gradients of the whole model."""
    tokenizer, names = lm.text.tokenizer, editor().modules(lm)
    lengths = [len(tokenizer(f"{e.prompt} {e.target_new}").input_ids) for e in edits]
    order = sorted(range(len(edits)), key=lambda i: -lengths[i])
    rows: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in names}
    for begin in range(0, len(order), size):
        batch, seen = [edits[i] for i in order[begin : begin + size]], []
        losses = []
        for e in batch:
            prompt, ids = tokenizer(e.prompt).input_ids, tokenizer(f"{e.prompt} {e.target_new}").input_ids
            entered: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
            hooks = [
                lm.model.get_submodule(n).register_forward_hook(partial(keep, n, entered))  # type: ignore[arg-type]
                for n in names
            ]
            for parameter in lm.model.parameters():
                parameter.requires_grad_(True)
            logits = lm.model(torch.tensor([ids])).logits[0]
            for hook in hooks:
                hook.remove()
            at = slice(len(prompt) - 1, len(ids) - 1)
            losses.append(functional.cross_entropy(logits[at], torch.tensor(ids[len(prompt) :]), reduction="none"))
            seen.append((entered, at))
        torch.cat(losses).mean().backward()
        for n in names:
            h = torch.cat([entered[n][0][0, at].detach() for entered, at in seen])
            g = torch.cat([entered[n][1].grad[0, at] for entered, at in seen])  # type: ignore[index]
            rows[n].append((h.double(), g.double()))
        lm.model.zero_grad(set_to_none=True)
        lm.model.requires_grad_(False)
    shapes: dict[tuple[int, int], list[torch.Tensor]] = {}
    for b in range(len(rows[names[0]])):
        for n in names:
            h, g = rows[n][b]
            shapes.setdefault((h.shape[1], g.shape[1]), []).append(torch.cat([h, g], 1))
    found = {}
    for n in names:
        h, g = (torch.cat([pair[i] for pair in rows[n]]) for i in (0, 1))
        parts = shapes[h.shape[1], g.shape[1]]
        whole = torch.cat(parts)
        statistics = folded(whole, [len(part) for part in parts], merge)
        z = (torch.cat([h, g], 1) - statistics.mean) / ((statistics.squares / (len(whole) - 1)).sqrt() + EPSILON)
        v = -3e-3 * z[:, : h.shape[1]].square().sum(1, keepdim=True) * z[:, h.shape[1] :]
        identity = torch.eye(h.shape[1], dtype=torch.float64)
        found[n] = (torch.linalg.inv(h.T @ h + identity) @ h.T @ v).T
    return found


@pytest.mark.parametrize(("n", "size", "merge"), [(23, 10, "exact"), (23, 5, "released"), (3, 10, "exact")])
def test_an_edit_is_the_published_step(lm: LM, n: int, size: int, merge: Merge) -> None:
    """Also if the last batch is short: no gradient is lost."""
    expected = by_hand(lm, EDITS[:n], size, merge)
    before = {name: lm.parameter(f"{name}.weight").detach().clone() for name in expected}
    report = editor(backward_batch=size, merge=merge).edit(lm, EDITS[:n])
    for name, change in expected.items():
        made = lm.parameter(f"{name}.weight").detach() - before[name]
        assert torch.allclose(made.double(), change, rtol=1e-3, atol=float(change.abs().max()) * 1e-3), name
    assert report["rows"] == sum(len(pair.answer) for pair in pairs_of(lm, EDITS[:n]))


def pairs_of(lm: LM, edits: Sequence[Edit]) -> Any:
    return lm.text.pairs([e.prompt for e in edits], [e.target_new for e in edits])


def test_memory_and_passes_change_nothing(lm: LM) -> None:
    """A batch that is read in several passes is one batch."""
    made = []
    for budget in (10_000, 20):
        lm.token_budget, before = budget, lm.token_budget
        editor().edit(lm, EDITS)
        lm.token_budget = before
        made.append(lm.parameter("model.layers.3.mlp.down_proj.weight").detach().clone())
        lm.restore()
    assert torch.allclose(*made, atol=1e-5)


# --- a stream --------------------------------------------------------------------------------------------------------


def test_matrices_of_one_shape_share_a_statistic_and_the_state_does_not_grow(lm: LM) -> None:
    made, sizes = editor(), []
    for begin in range(0, 20, 5):
        made.edit(lm, EDITS[begin : begin + 5])
        state = made.state()
        sizes.append({name: value.shape for name, value in state.items() if isinstance(value, torch.Tensor)})
    assert all(size == sizes[0] for size in sizes)
    assert {name.rpartition(".")[0] for name in sizes[0]} == {"128x1024", "1024x128"}
    tokens = sum(len(pair.answer) for pair in pairs_of(lm, EDITS[:20]))
    n = {name: int(value) for name, value in made.state().items() if name.endswith(".n")}  # type: ignore[arg-type]
    assert n == {"128x1024.n": 3 * tokens, "1024x128.n": tokens}


def test_it_goes_on_from_a_saved_state(lm: LM) -> None:
    whole, first = editor(), editor()
    for some in (EDITS[:7], EDITS[7:]):
        whole.edit(lm, some)
    expected = {name: lm.parameter(name).detach().clone() for name in whole.edited_parameters(lm)}
    lm.restore()
    first.edit(lm, EDITS[:7])
    model, learnt = {name: value.clone() for name, value in lm.state().items()}, first.state()
    first.edit(lm, EDITS[7:9])  # lost in a kill: what was saved stays as it was
    lm.restore()
    lm.load_state(model)
    second = editor()
    second.load_state(lm, learnt)
    second.edit(lm, EDITS[7:])
    for name, value in expected.items():
        assert torch.equal(lm.parameter(name), value)


def test_a_failed_edit_leaves_the_statistics(lm: LM) -> None:
    made = editor(merge="released", backward_batch=1)
    single = next(e for e, pair in zip(EDITS, pairs_of(lm, EDITS), strict=True) if len(pair.answer) > 1)
    made.edit(lm, [single])
    before = made.state()
    short = Edit(
        single.prompt, next(t for t in ("a", "b", "c", ".") if len(pairs_of(lm, [Edit("x y", t)])[0].answer) == 1)
    )
    with pytest.raises(FloatingPointError, match="no variance of one row"):
        made.edit(lm, [EDITS[0], short])
    assert made.state() == before
