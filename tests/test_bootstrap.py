"""Intervals against what is known of them; the same each time; and fast enough for the largest tables."""

import math

import numpy as np
import pandas as pd
import pytest

from kedit.results.bootstrap import draws, interval, over_seeds, resampled_means


def frame(values: np.ndarray, name: str = "c") -> pd.DataFrame:
    return pd.DataFrame({"x": values}, index=[f"{name}{i}" for i in range(len(values))])


def width(replicates: np.ndarray) -> float:
    low, high = interval(replicates)
    return (high - low) / 2


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(60, 20, 400)
    low, high = interval(resampled_means(frame(values))[:, 0])
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.15 * half)


def test_every_resampling_draws_as_many_cases_as_there_are() -> None:
    drawn = draws(("a", "b", "c"))
    assert set(drawn.sum(axis=1)) == {3}
    assert drawn.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.06)


def test_draws_follow_from_the_cases_alone() -> None:
    first = draws(("a", "b", "c")).copy()
    draws.cache_clear()
    assert (draws(("a", "b", "c")) == first).all()
    assert (draws(("a", "b", "d")) != first).any()


def test_a_case_without_a_value_does_not_count() -> None:
    values = np.array([1.0, 3.0, np.nan, np.nan])
    means = resampled_means(frame(values))[:, 0]
    known = means[np.isfinite(means)]
    assert known.min() == 1
    assert known.max() == 3
    assert known.mean() == pytest.approx(2, abs=0.1)
    assert 0 < np.isnan(means).mean() < 0.15  # none of the two was drawn: (2/4)^4


def test_paired_is_narrower_than_unpaired_on_correlated_editors() -> None:
    rng = np.random.default_rng(1)
    common = rng.normal(50, 20, 200)
    one, other = frame(common + rng.normal(2, 3, 200)), frame(common + rng.normal(0, 3, 200))
    paired = resampled_means(one)[:, 0] - resampled_means(other)[:, 0]
    unpaired = resampled_means(one)[:, 0] - resampled_means(frame(other["x"].to_numpy(), "other"))[:, 0]
    assert width(paired) < width(unpaired) / 3
    differences = (one["x"] - other["x"]).to_numpy()
    assert width(paired) == pytest.approx(1.96 * differences.std() / math.sqrt(200), rel=0.15)


def test_seeds_that_differ_widen_the_interval() -> None:
    values = np.random.default_rng(2).normal(50, 5, 300)
    alike = {seed: resampled_means(frame(values, f"{seed}-")) for seed in (1, 2, 3)}
    apart = {seed: resampled_means(frame(values + 10 * seed, f"{seed}-")) for seed in (1, 2, 3)}
    assert over_seeds(apart).mean() == pytest.approx(values.mean() + 20, abs=0.5)
    assert width(over_seeds(alike)[:, 0]) < width(alike[1][:, 0])  # three times as many cases
    assert width(over_seeds(apart)[:, 0]) > 5 * width(alike[1][:, 0])


def test_the_same_cases_under_several_seeds_are_not_counted_twice() -> None:
    values = np.random.default_rng(3).normal(50, 20, 300)
    same = {seed: resampled_means(frame(values)) for seed in (1, 2, 3)}
    assert width(over_seeds(same)[:, 0]) == pytest.approx(width(same[1][:, 0]), rel=1e-3)
