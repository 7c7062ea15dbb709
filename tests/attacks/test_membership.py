"""ROC numbers against naive oracles, and intervals against repeated draws."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memguard.attacks import auc, loss_gap, required_held_out, roc, supported_fprs, tpr_at_fpr
from memguard.errors import MemguardError, PatientOverlapError, ResolutionError


def naive_auc(scores, member):
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, b in itertools.product(scores[member], scores[~member])
    ]
    return sum(wins) / len(wins)


def naive_tpr(scores, member, fpr):
    best = 0.0
    for t in [*scores, math.inf]:
        if np.mean(scores[~member] >= t) <= fpr + 1e-12:
            best = max(best, float(np.mean(scores[member] >= t)))
    return best


def naive_variance(scores, member, groups):
    """Clustered DeLong, one pair at a time."""
    theta, total = naive_auc(scores, member), 0.0
    for side in (True, False):
        mine, other = scores[member == side], scores[member != side]
        place = np.array([np.mean((a > other) + 0.5 * (a == other)) for a in mine])
        place = place if side else 1 - place
        ids = groups[member == side]
        unique = np.unique(ids)
        total += sum(((place[ids == g] - theta).sum()) ** 2 for g in unique) * (
            len(unique) / (len(unique) - 1) / len(mine) ** 2
        )
    return theta, total


scored = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda m: 0 < sum(m) < len(m)),
    )
)


@settings(max_examples=60, deadline=None)
@given(scored)
def test_ties_and_two_levels_equal_the_naive_oracle(case):
    scores, member = np.array(case[0], float), np.array(case[1])
    curve = roc(scores, member)
    want = naive_auc(scores, member)
    assert auc(scores, member).value == pytest.approx(want, abs=1e-12)
    assert curve.area() == pytest.approx(want, abs=1e-12)
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    assert np.all(np.diff(curve.fpr) >= 0) and np.all(np.diff(curve.tpr) >= 0)
    for t, f, p in zip(curve.thresholds, curve.fpr, curve.tpr, strict=True):
        assert f == pytest.approx(np.mean(scores[~member] >= t))
        assert p == pytest.approx(np.mean(scores[member] >= t))


@settings(max_examples=40, deadline=None)
@given(scored, st.integers(0, 10_000))
def test_invariant_under_permutation_and_monotone_maps(case, seed):
    scores, member = np.array(case[0], float), np.array(case[1])
    order = np.random.default_rng(seed).permutation(len(scores))
    base = auc(scores, member)
    for other in (auc(scores[order], member[order]), auc(np.exp(3 * scores) - 7, member)):
        assert (other.value, other.low, other.high) == pytest.approx((base.value, base.low, base.high))
    flipped = auc(-scores, member)
    assert (flipped.value, flipped.low, flipped.high) == pytest.approx(
        (1 - base.value, 1 - base.high, 1 - base.low), abs=1e-6
    )
    assert 0 <= base.low <= base.value <= base.high <= 1


def test_two_level_scores_of_the_reference():
    # the case on which keeping the first tied element gives .20 instead of .68
    rng = np.random.default_rng(0)
    member = np.repeat([True, False], 500)
    scores = np.where(member, rng.random(1000) < 0.68, rng.random(1000) < 0.32).astype(float)
    assert auc(scores, member).value == pytest.approx(naive_auc(scores, member))


def test_clustered_delong_equals_the_naive_sum():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 60, size=150)
    member = groups < 25
    scores = np.round(rng.normal(size=150) + 0.7 * member + rng.normal(size=60)[groups], 1)
    theta, variance = naive_variance(scores, member, groups)
    e = auc(scores, member, groups=groups)
    assert e.value == pytest.approx(theta) and e.n == len(np.unique(groups))
    # the interval is symmetric on the logit scale: read the standard error back
    half = (math.log(e.high / (1 - e.high)) - math.log(e.low / (1 - e.low))) / 2
    se = math.sqrt(variance) / (theta * (1 - theta))
    assert 1.95 < half / se < 2.06
    named = auc(scores, member, groups=[f"p{g:03d}" for g in groups])
    assert named == e


@pytest.mark.parametrize("fpr", [0.02, 0.1, 0.5])
def test_tpr_equals_the_naive_scan(fpr):
    rng = np.random.default_rng(2)
    for digits in (0, 1, 6):
        member = rng.random(300) < 0.4
        scores = np.round(rng.normal(size=300) + member, digits)
        e = tpr_at_fpr(scores, member, fpr)
        assert e.value == pytest.approx(naive_tpr(scores, member, fpr))
        assert e.low <= e.value <= e.high
        assert tpr_at_fpr(np.exp(scores), member, fpr) == e


def test_bounds_at_separation_and_tiny_n():
    member = np.repeat([True, False], [3, 4])
    e = auc([5, 6, 7, 1, 2, 3, 4], member)
    assert e.value == 1 and e.high == 1 and 0.2 < e.low < 0.9
    e = auc([1, 2, 3, 4, 5, 6, 7], member)
    assert e.value == 0 and e.low == 0 and 0.1 < e.high < 0.8
    tied = auc(np.zeros(7), member)
    assert tied.value == 0.5 and tied.low < 0.25 and tied.high > 0.75
    single = auc([2.0, 1.0], [True, False])
    assert single.low == 0 and single.high == 1
    big = auc(np.r_[np.ones(300), np.zeros(300)], np.repeat([True, False], 300))
    assert 0.97 < big.low < 1
    perfect = tpr_at_fpr(np.r_[np.ones(300), np.zeros(600)], np.repeat([True, False], [300, 600]), 0.01)
    assert perfect.value == 1 and perfect.low > 0.98


@pytest.mark.parametrize(
    ("target", "m", "n", "records"),
    [
        (0.5, 50, 100, 1), (0.5, 200, 600, 1), (0.5, 50, 100, 4), (0.7, 50, 100, 1), (0.7, 200, 600, 3),
        (0.95, 50, 100, 1), (0.95, 200, 600, 1), (0.95, 100, 200, 4),
    ],
)  # fmt: skip
def test_auc_interval_covers(target, m, n, records):
    rng = np.random.default_rng(5)
    shift, runs = math.sqrt(2) * stats.norm.ppf(target), 400
    groups = np.repeat(np.arange(m + n), records)
    member = groups < m
    hits = 0
    for _ in range(runs):
        own = rng.normal(size=m + n)[groups]
        scores = np.sqrt(0.6) * own + np.sqrt(0.4) * rng.normal(size=len(groups))
        hits += auc(scores + shift * member, member, groups=groups).covers(target)
    assert hits / runs >= 0.93 - 2 * math.sqrt(0.95 * 0.05 / runs) / 2


def test_forgetting_the_patient_makes_the_interval_too_narrow():
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(100), 10)
    member = groups < 40
    scores = rng.normal(size=100)[groups] + 0.3 * rng.normal(size=1000)
    by_patient, by_record = auc(scores, member, groups=groups), auc(scores, member)
    assert by_patient.high - by_patient.low > 2 * (by_record.high - by_record.low)
    assert (by_patient.n, by_record.n) == (100, 1000)


@pytest.mark.parametrize(
    ("shift", "fpr", "m", "n", "records"),
    [(0, 0.1, 50, 100, 1), (0, 0.01, 50, 100, 1), (1, 0.1, 200, 600, 3), (1, 0.01, 200, 600, 1),
     (2.5, 0.01, 50, 100, 1), (2.5, 0.01, 200, 600, 3), (2.5, 0.001, 100, 1000, 1)],
)  # fmt: skip
def test_tpr_interval_covers(shift, fpr, m, n, records):
    rng = np.random.default_rng(7)
    truth, runs = stats.norm.sf(stats.norm.isf(fpr) - shift), 300
    groups = np.repeat(np.arange(m + n), records)
    member = groups < m
    hits = 0
    for _ in range(runs):
        scores = np.sqrt(0.6) * rng.normal(size=m + n)[groups] + np.sqrt(0.4) * rng.normal(size=len(groups))
        hits += tpr_at_fpr(scores + shift * member, member, fpr, groups=groups).covers(truth)
    assert hits / runs >= 0.93


def test_bootstrap_agrees_with_the_analytic_interval_and_with_a_naive_loop():
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(300), 3)
    member = groups < 120
    scores = np.round(rng.normal(size=300)[groups] + rng.normal(size=900) + 0.8 * member, 1)
    a, b = auc(scores, member, groups=groups), auc(scores, member, groups=groups, n_boot=1500)
    assert a.value == pytest.approx(b.value)
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.12)
    draws = []
    for _ in range(300):
        ids = np.r_[rng.integers(0, 120, 120), rng.integers(120, 300, 180)]
        rows = (ids[:, None] * 3 + np.arange(3)).ravel()
        draws.append(auc(scores[rows], member[rows]).value)
    assert np.std(draws) == pytest.approx((b.high - b.low) / 3.92, rel=0.2)
    t = tpr_at_fpr(scores, member, 0.1, groups=groups, n_boot=200)
    assert t.low <= tpr_at_fpr(scores, member, 0.1, groups=groups).low


def test_loss_gap_covers_and_counts_patients():
    rng = np.random.default_rng(9)
    hits = 0
    for _ in range(400):
        inside, outside = np.repeat(np.arange(30), 4), np.repeat(np.arange(45), 2)
        a = rng.normal(size=30)[inside] + rng.normal(size=120)
        b = 0.5 + 2 * rng.normal(size=45)[outside] + rng.normal(size=90)
        e = loss_gap(a, b, member_groups=inside, held_out_groups=outside)
        hits += e.covers(0.5)
    assert 0.92 <= hits / 400 <= 0.98 and e.n == 75
    assert loss_gap([1.0], [2.0, 2.5]).low == -math.inf


def test_refuses_what_n_cannot_support():
    assert [required_held_out(f) for f in (0.1, 0.01, 0.001, 0.3)] == [10, 100, 1000, 4]
    assert supported_fprs(999, (0.1, 0.01, 0.001)) == (0.1, 0.01)
    member = np.repeat([True, False], [50, 99])
    with pytest.raises(ResolutionError, match="at least 100 patients"):
        tpr_at_fpr(np.arange(149.0), member, 0.01)
    groups = np.r_[np.arange(50), 50 + np.arange(99) // 2]
    with pytest.raises(ResolutionError, match="50 held-out patients"):
        tpr_at_fpr(np.arange(149.0), member, 0.02 - 1e-6, groups=groups)


@pytest.mark.parametrize(
    ("scores", "member", "groups", "match"),
    [
        ([1.0, math.nan], [1, 0], None, "1 of 2 values in scores"),
        ([1.0, math.inf], [1, 0], None, "NaN or infinite"),
        ([1.0, 2.0], [1, 1], None, "no non-members"),
        ([1.0, 2.0], [0, 0], None, "no members"),
        ([1.0, 2.0], [1, 0, 1], None, "shape"),
        ([1.0, 2.0], [1, 2], None, "neither 0 nor 1"),
        ([[1.0], [2.0]], [1, 0], None, "one-dimensional"),
        ([], [], None, "empty"),
        ([1.0, 2.0], [1, 0], [1], "groups"),
    ],
)
def test_refuses_bad_input(scores, member, groups, match):
    with pytest.raises(MemguardError, match=match):
        auc(scores, member, groups=groups)


def test_refuses_a_patient_on_both_sides():
    with pytest.raises(PatientOverlapError, match="1 of 2 patients"):
        auc([1.0, 2.0, 3.0], [1, 0, 1], groups=["a", "a", "b"])
    with pytest.raises(MemguardError, match="confidence"):
        auc([1.0, 2.0], [1, 0], confidence=95)


def test_a_million_scores_take_less_than_a_second():
    rng = np.random.default_rng(10)
    scores, member = rng.normal(size=1_000_000), rng.random(1_000_000) < 0.5
    groups = np.arange(1_000_000) // 2 * 2 + member  # sparse ids, one class each
    start = time.process_time()
    auc(scores, member, groups=groups)
    assert time.process_time() - start < 2.0  # bar 1 s; slack for a busy machine
