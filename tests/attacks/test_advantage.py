"""Advantage and tail risk against naive scans, and their intervals against repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memguard.attacks import membership_advantage, tnr_at_fnr, tpr_at_fpr
from memguard.attacks.advantage import _joint_deviation
from memguard.errors import MemguardError, PatientOverlapError, ResolutionError

scored = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda m: 0 < sum(m) < len(m)),
    )
)


def naive_advantage(scores, member):
    best = 0.0
    for t in scores:
        tpr = sum(s >= t for s in scores[member]) / sum(member)
        fpr = sum(s >= t for s in scores[~member]) / sum(~member)
        best = max(best, tpr - fpr)
    return best


def naive_tnr(loss, member, fnr):
    best = 0.0
    for t in [*loss, -math.inf]:
        if np.mean(loss[member] > t) <= fnr + 1e-12:
            best = max(best, float(np.mean(loss[~member] > t)))
    # a threshold just below a loss that no member reaches
    for t in loss:
        if np.mean(loss[member] >= t) <= fnr + 1e-12:
            best = max(best, float(np.mean(loss[~member] >= t)))
    return best


@settings(max_examples=80, deadline=None)
@given(scored, st.integers(0, 1000))
def test_best_threshold_equals_the_naive_scan(case, seed):
    scores, member = np.array(case[0], float), np.array(case[1])
    found = membership_advantage(scores, member)
    assert found.value == pytest.approx(naive_advantage(scores, member), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    order = np.random.default_rng(seed).permutation(len(scores))
    assert membership_advantage(np.exp(scores[order]), member[order]) == found
    at = membership_advantage(scores, member, threshold=2.0)
    want = np.mean(scores[member] >= 2) - np.mean(scores[~member] >= 2)
    assert at.value == pytest.approx(want, abs=1e-12) and at.low <= at.value <= at.high


def test_deviation_of_two_samples_against_draws_of_the_bounding_law():
    rng = np.random.default_rng(0)
    for m, n in ((50, 50), (40, 900)):
        # quantiles of exp(-2 m d^2), lifted to where it is one half
        d, e = (
            np.maximum(np.sqrt(-np.log(rng.random(400_000)) / (2 * k)), math.sqrt(math.log(2) / (2 * k)))
            for k in (m, n)
        )
        for alpha in (0.025, 0.1):
            assert np.mean(d + e > _joint_deviation(m, n, alpha)) == pytest.approx(alpha, rel=0.04)
    # about the whole error on one side where the other sample is huge
    assert _joint_deviation(50, 1e12, 0.025) == pytest.approx(math.sqrt(math.log(40) / 100), rel=1e-3)


@pytest.mark.parametrize(("m", "n"), [(30, 30), (60, 400)])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_intervals_cover(m, n, shift):
    rng = np.random.default_rng(1)
    member, runs = np.repeat([True, False], [m, n]), 400
    truth = 2 * stats.norm.cdf(shift / 2) - 1
    best, fixed = [], []
    for _ in range(runs):
        scores = rng.normal(size=m + n) + shift * member
        best.append(membership_advantage(scores, member))
        fixed.append(membership_advantage(scores, member, threshold=shift / 2))
    for found in (best, fixed):
        assert np.mean([e.covers(truth) for e in found]) >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / runs)
    assert np.mean([e.value for e in fixed]) == pytest.approx(truth, abs=0.02)
    if shift == 0:
        bias = 0.63 * math.sqrt(1 / m + 1 / n)
        assert np.mean([e.value for e in best]) == pytest.approx(bias, rel=0.15)


def test_interval_covers_with_records_that_agree():
    rng = np.random.default_rng(2)
    patients, records = 120, 5
    groups = np.repeat(np.arange(patients), records)
    member = groups < patients // 2
    clustered, plain = 0, 0
    for _ in range(200):
        scores = rng.normal(size=patients)[groups]
        found = membership_advantage(scores, member, groups=groups)
        clustered += found.low == 0
        plain += membership_advantage(scores, member).low == 0
        assert found.n == patients
    assert clustered >= 190 and plain < 180


@pytest.mark.parametrize("fnr", [0.02, 0.1, 0.4])
def test_tnr_equals_the_naive_scan_and_the_mirrored_tpr(fnr):
    rng = np.random.default_rng(3)
    for digits in (0, 1, 6):
        member = rng.random(300) < 0.4
        loss = np.round(rng.gamma(2.0, size=300) * np.where(member, 0.5, 1.0), digits)
        found = tnr_at_fnr(loss, member, fnr)
        assert found.value == pytest.approx(naive_tnr(loss, member, fnr), abs=1e-12)
        mirrored = tpr_at_fpr(loss, ~member, fnr)
        assert (found.value, found.low, found.high) == (mirrored.value, mirrored.low, mirrored.high)
        assert tnr_at_fnr(np.log1p(loss), member, fnr) == found


def test_tnr_interval_covers_the_tail_of_the_held_out():
    rng = np.random.default_rng(4)
    member, runs = np.repeat([True, False], [500, 300]), 300
    for scale in (1.0, 0.4):
        truth = stats.expon.sf(scale * stats.expon.isf(0.05))
        covered = sum(
            tnr_at_fnr(rng.exponential(size=800) * np.where(member, scale, 1.0), member, 0.05).covers(truth)
            for _ in range(runs)
        )
        assert covered / runs >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / runs)


MEMBER = np.repeat([True, False], 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: membership_advantage([math.nan] * 6, MEMBER), MemguardError, "6 of 6 values in scores"),
        (lambda: membership_advantage(np.arange(6), MEMBER[:3]), MemguardError, "member has shape"),
        (lambda: membership_advantage(np.arange(3), MEMBER[:3]), MemguardError, "no non-members"),
        (lambda: membership_advantage(np.arange(6), MEMBER, threshold=math.nan), MemguardError, "threshold"),
        (
            lambda: membership_advantage(np.arange(6), MEMBER, groups=np.zeros(6, int)),
            PatientOverlapError,
            "1",
        ),
        (lambda: membership_advantage(np.arange(6), MEMBER, confidence=95), MemguardError, "confidence"),
        (lambda: tnr_at_fnr(np.arange(6), MEMBER, 0.01), ResolutionError, "3 member patients.*at least 100"),
        (
            lambda: tnr_at_fnr(np.arange(6), MEMBER, 0.5, groups=[0, 0, 0, 1, 2, 3]),
            ResolutionError,
            "1 member",
        ),
        (lambda: tnr_at_fnr(np.arange(6), MEMBER, 0.5, groups=[0, 1]), MemguardError, "groups has shape"),
        (
            lambda: tnr_at_fnr(np.arange(6), MEMBER, 0.5, groups=[0, 1, 2, 2, 3, 4]),
            PatientOverlapError,
            "1 of 5",
        ),
        (lambda: tnr_at_fnr(np.arange(6), MEMBER, 1.0), MemguardError, "fnr"),
        (lambda: tnr_at_fnr([0, 1, 2, 3, 4, math.inf], MEMBER, 0.5), MemguardError, "1 of 6 values in loss"),
    ],
)
def test_refuses_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
