"""Delete-one-group jackknife: exact for means, right coverage for what is smooth, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from memguard.attacks import jackknife
from memguard.errors import MemguardError, ResolutionError


def test_a_mean_gets_the_interval_of_student():
    x = np.random.default_rng(0).normal(size=7)
    found = jackknife(x.mean(), [np.delete(x, g).mean() for g in range(7)], confidence=0.9)
    low, high = stats.t.interval(0.9, 6, x.mean(), stats.sem(x))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.n == 7


def test_coverage_of_a_ratio_of_means():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(600):
        a, b = rng.gamma(4.0, 1.0, 10), rng.gamma(4.0, 0.5, 10)
        found = jackknife(
            a.mean() / b.mean(), [np.delete(a, g).mean() / np.delete(b, g).mean() for g in range(10)]
        )
        hits += found.covers(2.0)
    assert 0.91 <= hits / 600 <= 0.985


def test_bounds_cut_the_interval_and_not_the_value():
    found = jackknife(0.9, [0.7, 0.95, 1.0], low=0.0, high=1.0)
    assert found.value == 0.9 and found.high == 1.0 and found.low >= 0.0


def test_refusals():
    with pytest.raises(ResolutionError, match="1 group"):
        jackknife(1.0, [1.0])
    with pytest.raises(MemguardError, match="NaN"):
        jackknife(1.0, [1.0, np.nan])
    with pytest.raises(MemguardError, match="NaN"):
        jackknife(np.nan, [1.0, 1.0])
    with pytest.raises(MemguardError, match="confidence"):
        jackknife(1.0, [1.0, 2.0], confidence=1.0)
