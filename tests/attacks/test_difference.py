"""Members minus never-trained: the value against a loop, the interval against simulated truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from memguard.attacks import mean_difference
from memguard.errors import MemguardError, PatientOverlapError

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def _log_normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.exp(rng.normal(size=n)) - np.exp(0.5)


def _outliers(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n) + 5.0 * (rng.random(n) < 0.1) - 0.5


def _coverage(draw: tuple[Draw, Draw], sizes: tuple[int, int], runs: int = 600) -> float:
    rng = np.random.default_rng(0)
    member = np.repeat([True, False], sizes)
    hit = 0
    for _ in range(runs):
        values = np.concatenate([draw[0](rng, sizes[0]), draw[1](rng, sizes[1])])
        hit += mean_difference(values, np.arange(len(values)), member).covers(0.0)
    return hit / runs


def test_value_is_the_difference_of_the_means_of_patients() -> None:
    rng = np.random.default_rng(1)
    patient = np.sort(rng.integers(0, 12, 60))
    member = patient < 7
    value = rng.normal(size=60)
    means = {
        int(p): float(np.mean([v for v, q in zip(value, patient, strict=True) if q == p])) for p in patient
    }
    naive = np.mean([m for p, m in means.items() if p < 7]) - np.mean([m for p, m in means.items() if p >= 7])
    found = mean_difference(value, patient, member)
    assert found.value == pytest.approx(naive, abs=1e-12)
    assert found.n == len(means)


def test_interval_holds_welch_and_is_no_wider_without_skewness() -> None:
    a, b = np.array([-1.0, 0.0, 1.0, 2.0, -2.0]), np.array([3.0, 1.0, -1.0])
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    found = mean_difference(np.r_[a, b], np.arange(8), np.arange(8) < 5, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))
    skewed = np.exp(a)
    welch = stats.ttest_ind(skewed, b, equal_var=False).confidence_interval(0.9)
    found = mean_difference(np.r_[skewed, b], np.arange(8), np.arange(8) < 5, confidence=0.9)
    assert found.low <= welch.low + 1e-9
    assert found.high > welch.high + 1e-3  # the long tail of members lies above


@pytest.mark.parametrize("size", [5, 10, 20, 100])
@pytest.mark.parametrize("draw", [_normal, _log_normal, _outliers])
def test_coverage_of_two_like_sides(draw: Draw, size: int) -> None:
    assert _coverage((draw, draw), (size, size)) >= 0.93


@pytest.mark.parametrize("sizes", [(50, 10), (10, 50), (1000, 60)])
@pytest.mark.parametrize("draw", [_normal, _log_normal, _outliers])
def test_coverage_with_a_small_side(draw: Draw, sizes: tuple[int, int]) -> None:
    least = 0.93 if draw is _normal else 0.85 if min(sizes) == 10 else 0.90
    assert _coverage((draw, draw), sizes) >= least


def test_coverage_where_only_members_are_skewed() -> None:
    assert _coverage((_log_normal, _normal), (20, 20)) >= 0.90
    assert _coverage((_log_normal, _normal), (100, 100)) >= 0.93


@pytest.mark.parametrize(
    ("rates", "sizes"), [((0.0, 0.0), (5, 5)), ((0.05, 0.05), (20, 200)), ((0.9, 0.2), (10, 30))]
)
def test_coverage_of_truth_values(rates: tuple[float, float], sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    member = np.repeat([True, False], sizes)
    runs = 1000
    hit = sum(
        mean_difference(
            rng.random(len(member)) < np.where(member, *rates), np.arange(len(member)), member
        ).covers(rates[0] - rates[1])
        for _ in range(runs)
    )
    assert hit / runs >= 0.93


def test_coverage_is_of_patients_not_of_records() -> None:
    rng = np.random.default_rng(5)
    patient = np.repeat(np.arange(40), 10)
    member = patient < 20
    hit = sum(
        mean_difference(rng.normal(size=40)[patient] + 0.1 * rng.normal(size=400), patient, member).covers(
            0.0
        )
        for _ in range(400)
    )
    assert hit / 400 >= 0.92


def test_one_patient_or_no_spread_has_no_interval() -> None:
    one = mean_difference([1.0, 2.5, 3.0], [0, 1, 2], [True, False, False])
    assert (one.low, one.high) == (-np.inf, np.inf)
    flat = mean_difference([2.5, 2.5, 2.5, 2.5], [0, 1, 2, 3], [True, True, False, False])
    assert flat.value == 0.0
    assert (flat.low, flat.high) == (-np.inf, np.inf)


def test_refusals() -> None:
    with pytest.raises(PatientOverlapError, match="1 patients are on both sides"):
        mean_difference([1.0, 2.0, 3.0], [0, 0, 1], [True, False, False])
    with pytest.raises(MemguardError, match="NaN"):
        mean_difference([1.0, np.nan], [0, 1], [True, False])
    with pytest.raises(MemguardError, match="no non-members"):
        mean_difference([1.0, 2.0], [0, 1], [True, True])
