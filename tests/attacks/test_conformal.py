"""P-values, flags and the memorized share: right against naive oracles, and their error rates as promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memguard.attacks import (
    adjusted_p,
    benjamini_hochberg,
    conformal_p_values,
    storey_share,
    tail_p_values,
)
from memguard.errors import MemguardError

numbers = st.lists(st.integers(-3, 3), min_size=1, max_size=20)


@given(numbers, numbers)
@settings(max_examples=50, deadline=None)
def test_p_values_equal_the_naive_count(scores, null):
    p = conformal_p_values(scores, null)
    want = [(1 + sum(z >= s for z in null)) / (len(null) + 1) for s in scores]
    assert p == pytest.approx(want)
    assert conformal_p_values(scores, null[::-1]) == pytest.approx(want)
    drawn = conformal_p_values(scores, null, seed=3)
    least = [(sum(z > s for z in null)) / (len(null) + 1) for s in scores]
    assert np.all(drawn <= p + 1e-12) and np.all(drawn > np.array(least))


@pytest.mark.parametrize("n", [19, 100, 371])
def test_p_values_are_uniform_under_the_null(n):
    rng = np.random.default_rng(0)
    # one member per held-out set, so that the draws are independent
    levels = np.arange(1, n + 1) / (n + 1)
    p = np.array([conformal_p_values(rng.normal(size=1), rng.normal(size=n))[0] for _ in range(2500)])
    realised = (p[:, None] <= levels + 1e-12).mean(axis=0)
    assert np.abs(realised - levels).max() < 1.63 / math.sqrt(2500)  # Kolmogorov, 1 %


def test_randomised_ties_are_uniform_and_counted_ties_conservative():
    rng = np.random.default_rng(1)
    drawn, counted = [], []
    for i in range(2500):
        s, null = rng.poisson(0.7, 1), rng.poisson(0.7, 30)
        drawn.append(conformal_p_values(s, null, seed=i)[0])
        counted.append(conformal_p_values(s, null)[0])
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(counted) <= level) <= level + 0.02


@given(st.lists(st.floats(0, 1), min_size=1, max_size=25), st.floats(0.01, 0.5))
@settings(max_examples=80, deadline=None)
def test_benjamini_hochberg_equals_the_step_up_rule(p, rate):
    ranked, cut = sorted(p), -1.0
    for i, value in enumerate(ranked, start=1):
        if value <= rate * i / len(p) * (1 + 1e-12):
            cut = value
    flags = benjamini_hochberg(p, rate)
    assert flags.tolist() == [value <= cut for value in p]
    adjusted = adjusted_p(p)
    clear = np.abs(adjusted - rate) > 1e-9
    assert np.all((adjusted <= rate)[clear] == flags[clear])
    assert adjusted == pytest.approx(stats.false_discovery_control(p))


@pytest.mark.parametrize(("n_null", "tail"), [(100, False), (600, False), (300, True)])
def test_realised_false_discovery_rate_with_a_shared_held_out_set(n_null, tail):
    rng = np.random.default_rng(2)
    rate, members, runs = 0.1, 400, 80 if tail else 200

    def p_values(scores, null):
        return tail_p_values(scores, null).p if tail else conformal_p_values(scores, null)

    for share in (0.0, 0.01) if tail else (0.0, 0.02, 0.3, 0.9):
        memorized = np.arange(members) < share * members
        false = []
        for _ in range(runs):
            scores = rng.normal(size=members) + 6.0 * memorized
            flags = benjamini_hochberg(p_values(scores, rng.normal(size=n_null)), rate)
            false.append(np.count_nonzero(flags & ~memorized) / max(np.count_nonzero(flags), 1))
        # at the global null every flag is false: the mean is then the share of runs with any flag
        assert np.mean(false) <= rate + 2 * np.std(false) / math.sqrt(runs)


def tail_law(name):
    return {
        "gaussian": stats.norm(), "exponential": stats.expon(), "t4": stats.t(4),
        "lognormal": stats.lognorm(1.0), "bounded": stats.uniform(), "cauchy": stats.cauchy(),
    }[name]  # fmt: skip


def false_rates(null, law, levels):
    """P(p <= level | null) exactly: the law's mass above the smallest score with p <= level."""
    null, n = np.sort(null), len(null)
    beyond = null[-1] + null.std() * np.r_[1e-9, np.geomspace(1e-4, 1e9, 3000)]
    p = tail_p_values(beyond, null).p
    rates = []
    for level in levels:
        if level >= 1 / (n + 1):
            start = null[-math.floor(level * (n + 1) + 1e-9)] if level * (n + 1) >= 2 else null[-1]
            rates.append(law.sf(start))
        else:
            rates.append(law.sf(beyond[np.argmax(p <= level)]) if p[-1] <= level else 0.0)
    return rates


@pytest.mark.parametrize("name", ["gaussian", "exponential", "t4", "lognormal", "bounded", "cauchy"])
@pytest.mark.parametrize(
    ("n", "runs"), [(200, 60), (600, 60), pytest.param(2000, 1000, marks=pytest.mark.slow)]
)
def test_tail_p_values_are_not_too_small(name, n, runs):
    rng, law = np.random.default_rng(3), tail_law(name)
    levels = (1e-2, 1e-3, 1e-4)
    false = np.array([false_rates(null, law, levels) for null in law.rvs((runs, n), random_state=rng)])
    error = false.std(axis=0) / math.sqrt(runs)
    assert np.all(false.mean(axis=0) <= 1.05 * np.array(levels) + 2 * error)


def test_tail_agrees_with_the_empirical_p_up_to_the_largest_null():
    rng = np.random.default_rng(4)
    null = rng.normal(size=500)
    scores = np.r_[np.linspace(-4, null.max(), 100), null]
    result = tail_p_values(np.r_[scores, null.max() + 1.0], null)
    assert result.method == "tail" and result.calibrated
    assert result.p[:-1] == pytest.approx(conformal_p_values(scores, null)) and result.p[-1] < 1 / 501
    far = tail_p_values(np.linspace(null.max(), 400, 500), null)
    assert np.all(np.diff(far.p) <= 1e-18) and far.p[-1] == far.resolution
    assert far.resolution == pytest.approx(1 / 50_100)
    mixed = rng.permutation(null)
    assert tail_p_values([5.0, 9.0], mixed).p == pytest.approx(tail_p_values([5.0, 9.0], null).p, rel=0)
    assert tail_p_values([50.0 + 7, 90 + 7], 10 * null + 7).p == pytest.approx(
        tail_p_values([5.0, 9.0], null).p, rel=1e-6
    )


def test_no_tail_is_fitted_where_none_is_used(monkeypatch):
    null = np.random.default_rng(4).normal(size=500)
    monkeypatch.setattr("memguard.attacks.tail._Tail", None)
    result = tail_p_values(null, null)
    assert (result.method, result.calibrated, result.resolution) == ("empirical", False, 1 / 501)
    assert result.p.tolist() == conformal_p_values(null, null).tolist()
    assert "above the largest" in str(result.detail["reason"])
    with pytest.raises(TypeError):
        tail_p_values([null.max() + 1e-9], null)


def test_tail_falls_back_where_it_is_not_calibrated():
    rng = np.random.default_rng(5)
    few = tail_p_values([9.0], rng.normal(size=150))
    assert (few.method, few.calibrated, few.p[0]) == ("empirical", False, 1 / 151)
    assert few.resolution == 1 / 151 and "200" in str(few.detail["reason"])
    tied = tail_p_values([9.0], np.round(rng.normal(size=400)))
    assert tied.method == "empirical" and "tied" in str(tied.detail["reason"])
    # a second population far out: 2 % of the held-out patients at 50 standard deviations
    lumps = np.r_[rng.normal(size=588), 50 + 0.1 * rng.normal(size=12)]
    odd = tail_p_values([60.0], lumps)
    assert odd.p[0] > 1e-4
    lone = tail_p_values([2e6], np.r_[rng.normal(size=599), 1e6])
    assert not lone.calibrated and "held-out folds" in str(lone.detail["reason"])


def test_tail_gives_a_single_memorized_patient_among_many_a_chance():
    rng = np.random.default_rng(6)
    found = empirical = 0
    for _ in range(20):
        null, scores = rng.normal(size=600), rng.normal(size=3000)
        scores[:2] = 14.0
        found += benjamini_hochberg(tail_p_values(scores, null).p, 0.1)[:2].all()
        empirical += benjamini_hochberg(conformal_p_values(scores, null), 0.1)[:2].all()
    assert empirical == 0 and found >= 18


@pytest.mark.parametrize(("n_null", "m"), [(100, 200), (100, 3000), (600, 200), (600, 3000)])
def test_share_interval_covers(n_null, m):
    rng = np.random.default_rng(7)
    runs = 100
    for share in (0.0, 0.1, 0.5, 0.95):
        memorized = round(share * m)
        covered, values = 0, []
        for _ in range(runs):
            scores = rng.normal(size=m)
            scores[:memorized] += 8.0
            p = conformal_p_values(scores, rng.normal(size=n_null))
            e = storey_share(p, n_null=n_null)
            assert 0 <= e.low <= e.value <= e.high <= 1
            covered += e.covers(memorized / m)
            values.append(e.value)
        assert covered / runs >= 0.93 - 0.03
        if share:
            assert np.mean(values) <= share + 3 * np.std(values) / math.sqrt(runs)


def test_share_leans_low_where_patients_cannot_be_told_apart():
    rng = np.random.default_rng(8)
    values, lows = [], []
    for _ in range(100):
        scores = rng.normal(size=500)
        scores[:250] += 1.0
        e = storey_share(conformal_p_values(scores, rng.normal(size=300)), n_null=300)
        values.append(e.value)
        lows.append(e.low)
    assert 0.2 < np.mean(values) < 0.5 and np.mean(np.array(lows) > 0.5) == 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: conformal_p_values([math.nan], [1.0]), "1 of 1 values in scores"),
        (lambda: conformal_p_values([1.0], []), "null_scores is empty"),
        (lambda: benjamini_hochberg([0.1, 1.5], 0.1), "1 of 2 values in p lie outside"),
        (lambda: benjamini_hochberg([0.1], 10), "rate"),
        (lambda: adjusted_p([math.nan]), "NaN"),
        (lambda: tail_p_values([1.0], [1.0, 2.0], folds=1), "folds"),
        (lambda: storey_share([], n_null=100), "0 p-values"),
        (lambda: storey_share([0.5], n_null=0), "0 held-out"),
    ],
)
def test_refuses_bad_input(call, match):
    with pytest.raises(MemguardError, match=match):
        call()


def test_empty_members_are_fine():
    assert conformal_p_values([], [1.0]).shape == (0,)
    assert benjamini_hochberg([], 0.1).shape == (0,) and adjusted_p([]).shape == (0,)
    assert tail_p_values([], np.arange(300.0)).p.shape == (0,)
