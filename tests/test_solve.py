"""Closed forms of locate-then-edit, on given keys and residuals, in float64."""

import pytest
import torch
from torch import Tensor

from kedit.common.errors import InputError
from kedit.editors.locate.solvers import Equality, Keys, LeastSquares, NullSpace, RankOne, Solver

D, F, N = 8, 24, 5


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def moment() -> Tensor:
    """Of ordinary keys, some directions hardly used."""
    keys = normal(F, 400) * torch.logspace(0, -4, F, dtype=torch.float64)[:, None]
    mixed = torch.linalg.qr(normal(F, F)).Q @ keys
    return mixed @ mixed.T / 400


def keys(n: int = N) -> Keys:
    both = normal(F, n), normal(F, n)
    return Keys(*both)


def fitted(solver: Solver, moment: Tensor) -> Solver:
    solver.fit({0: moment})
    return solver


@pytest.mark.parametrize("covariance", [True, False])
def test_rome_gives_the_value_at_its_anchor(moment: Tensor, covariance: bool) -> None:
    weight, bias, value, fact = normal(D, F), normal(D, 1), normal(D, 1), keys(1)
    missing = value - (weight @ fact.prompt_key + bias)
    change = fitted(RankOne(covariance=covariance), moment).change(0, fact, missing)
    assert torch.allclose((weight + change) @ fact.prompt_key + bias, value, rtol=1e-10)
    assert int(torch.linalg.matrix_rank(change)) == 1
    along = torch.linalg.solve(moment, fact.average) if covariance else fact.average
    assert torch.allclose(
        change / change.norm(), missing @ along.T / (missing @ along.T).norm() * torch.sign(fact.prompt_key.T @ along)
    )


def test_memits_change_solves_its_normal_equations(moment: Tensor) -> None:
    residual, facts = normal(D, N), keys()
    change = fitted(LeastSquares(weight=30.0), moment).change(0, facts, residual)
    k = facts.average
    assert torch.allclose(change @ (30.0 * moment + k @ k.T), residual @ k.T, rtol=1e-8)


def test_emmet_with_one_fact_and_no_ridge_is_rome_with_covariance(moment: Tensor) -> None:
    residual, key = normal(D, 1), normal(F, 1)
    rome = fitted(RankOne(covariance=True), moment).change(0, Keys(key, key), residual)
    emmet = fitted(Equality(weight=7.0, ridge=0.0), moment).change(0, Keys(key, key), residual)
    assert torch.allclose(rome, emmet, rtol=1e-8)


def test_emmets_ridge_shrinks_by_its_factor(moment: Tensor) -> None:
    residual, key, weight = normal(D, 1), normal(F, 1), 1e9
    change = fitted(Equality(weight=weight, ridge=0.1), moment).change(0, Keys(key, key), residual)
    power = float(key.T @ torch.linalg.solve(weight * moment, key))
    assert torch.allclose(change @ key, residual * power / (power + 0.1), rtol=1e-8)
    assert 0.01 < power / (power + 0.1) < 0.999


def test_emmet_gives_every_value_of_a_batch(moment: Tensor) -> None:
    residual, facts = normal(D, N), keys()
    change = fitted(Equality(weight=1.0, ridge=0.0), moment).change(0, facts, residual)
    assert torch.allclose(change @ facts.average, residual, rtol=1e-8)


def test_alphaedit_leaves_what_its_projector_leaves_out(moment: Tensor) -> None:
    solver = NullSpace(l2=1.0, threshold=1e-3)
    fitted(solver, moment)
    change = solver.change(0, keys(), normal(D, N))
    p = solver.projectors[0].matrix.double()
    left_out = (torch.eye(F) - p) @ normal(F, 50)
    assert ((change @ left_out).norm(dim=0) <= 1e-5 * change.norm() * left_out.norm(dim=0)).all()
    assert solver.fit_report() == {"null_space_rank": {"0": solver.projectors[0].rank}, "of": F}


def test_alphaedits_change_solves_its_equation_beside_earlier_keys(moment: Tensor) -> None:
    solver, l2 = NullSpace(l2=0.7, threshold=1e-3), 0.7
    fitted(solver, moment)
    earlier, facts, residual = keys(), keys(), normal(D, N)
    solver.accumulate(0, earlier)
    change = solver.change(0, facts, residual)
    p, k, held = solver.projectors[0].matrix.double(), facts.average, earlier.average @ earlier.average.T
    system = p @ (k @ k.T + held) + l2 * torch.eye(F)
    assert torch.allclose(system @ change.T, p @ k @ residual.T, atol=1e-5)


def test_more_earlier_keys_than_directions_are_kept_as_what_they_add_up_to(moment: Tensor) -> None:
    solver = NullSpace(l2=0.7, threshold=1e-3)
    fitted(solver, moment)
    given = [keys() for _ in range(12)]
    for fact in given:
        solver.accumulate(0, fact)
    [held] = solver.state().values()
    p = solver.projectors[0].matrix.double()
    total = sum(p @ fact.average @ fact.average.T @ p for fact in given)
    assert held.shape[1] <= 2 * F
    assert torch.allclose(held.double() @ held.double().T, total, rtol=1e-4, atol=1e-3)  # type: ignore[arg-type]


def test_alphaedits_keys_are_its_state(moment: Tensor) -> None:
    solver, fresh = NullSpace(l2=0.7, threshold=1e-3), NullSpace(l2=0.7, threshold=1e-3)
    facts, residual = keys(), normal(D, N)
    alone = fitted(fresh, moment).change(0, facts, residual)
    fitted(solver, moment).accumulate(0, keys())
    assert not torch.allclose(solver.change(0, facts, residual), alone)
    fresh.load_state(solver.state())
    assert torch.equal(fresh.change(0, facts, residual), solver.change(0, facts, residual))
    solver.reset()
    assert torch.equal(solver.change(0, facts, residual), alone)


@pytest.mark.parametrize("threshold", [1e-30, 1e30])
def test_a_null_space_that_is_none_or_all_is_an_error(moment: Tensor, threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        fitted(NullSpace(l2=1.0, threshold=threshold), moment)


def test_a_moment_of_few_tokens_can_be_inverted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    few = normal(F, 4)
    change = fitted(LeastSquares(weight=1.0), few @ few.T / 4).change(0, keys(), normal(D, N))
    assert change.isfinite().all()
    assert "gather more tokens" in caplog.text


def test_a_moment_without_an_inverse_is_one_sentence() -> None:
    few = normal(F, 1)
    broken = few @ few.T - 1e-3 * torch.eye(F, dtype=torch.float64)  # as rounding leaves a few tokens' moment
    with pytest.raises(InputError, match=rf"layer 0 has no inverse \(more than {F} are needed, .*statistics\.corpus"):
        fitted(LeastSquares(weight=1.0), broken).change(0, keys(), normal(D, N))
    with pytest.raises(InputError, match=rf"layer 3 has no inverse \(1 tokens were read, more than {F} are needed"):
        LeastSquares(weight=1.0).fit({3: broken}, {3: 1})


@pytest.mark.parametrize(
    "solver", [Equality(weight=1.0, ridge=0.0), NullSpace(l2=0.0, threshold=1e-3)], ids=["EMMET", "AlphaEdit"]
)
def test_two_edits_with_one_key_fail_as_an_edit_does(solver: Solver) -> None:
    """No stack trace of linear algebra: the loop undoes the edit, counts it, and goes on."""
    moment = torch.diag(torch.tensor([1.0, 1.0, *[0.0] * (F - 2)], dtype=torch.float64))
    exact = torch.zeros(F, 2, dtype=torch.float64)
    exact[:4] = 1.0  # no rounding: the system is exactly singular
    if isinstance(solver, Equality):
        moment = torch.eye(F, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="linearly dependent"):
        fitted(solver, moment).change(0, Keys(exact, exact), normal(D, 2))


# --- long sequences --------------------------------------------------------------------------------------------------


def test_previous_keys_stand_against_later_edits(moment: Tensor) -> None:
    """R Kᵀ (λC + G Gᵀ + K Kᵀ)⁻¹ densely; without earlier edits it is MEMIT."""
    solver, weight = fitted(LeastSquares(weight=30.0, previous_keys=True), moment), 30.0
    assert solver.stateful
    assert not LeastSquares(weight=30.0).stateful
    earlier = torch.zeros(F, F, dtype=torch.float64)
    for n in (N, 2 * F, 3 * F, N):  # more than 2 f columns are held as f
        facts, residual = keys(n), normal(D, n)
        k = facts.average
        dense = residual @ k.T @ torch.linalg.inv(weight * moment + earlier + k @ k.T)
        assert torch.allclose(solver.change(0, facts, residual), dense, rtol=1e-4, atol=1e-6)
        solver.accumulate(0, facts)
        earlier += k.float().double() @ k.float().double().T
    assert solver.state()["earlier.0"].shape[1] <= 2 * F
    again = fitted(LeastSquares(weight=30.0, previous_keys=True), moment)
    again.load_state(solver.state())
    facts, residual = keys(), normal(D, N)
    assert torch.equal(again.change(0, facts, residual), solver.change(0, facts, residual))
    solver.reset()
    plain = fitted(LeastSquares(weight=30.0), moment)
    assert torch.equal(solver.change(0, facts, residual), plain.change(0, facts, residual))
