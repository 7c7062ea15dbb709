"""Exposure against naive ranks, the skew-normal law against quadrature, and intervals against repeated draws."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from memguard.attacks import exposure
from memguard.attacks._skew_normal import SkewNormal, _loss, fit_skew_normal, log_cdf
from memguard.errors import MemguardError

levels = st.lists(st.integers(0, 6), min_size=1, max_size=25)


def naive(canary, others):
    """Mean rank over all orders that break ties: 1 + smaller + half of the equal ones."""
    rank = 1.0
    for other in others:
        rank += 1.0 if other < canary else 0.5 if other == canary else 0.0
    return math.log2((len(others) + 1) / rank)


@settings(max_examples=80, deadline=None)
@given(levels, levels, st.integers(0, 1000))
def test_interpolated_equals_the_naive_rank_and_ignores_order_and_scale(canaries, others, seed):
    found = exposure(canaries, others)
    assert found.value == pytest.approx([naive(c, others) for c in canaries], abs=1e-12)
    assert np.all(found.low <= found.value + 1e-12) and np.all(found.value <= found.high + 1e-12)
    assert found.mean.value == pytest.approx(np.mean(found.value)) and not found.fits.any()
    assert found.n == len(others) and found.largest == math.log2(len(others) + 1)
    mixed = np.random.default_rng(seed).permutation(others)
    own = exposure(canaries, np.tile(mixed, (len(canaries), 1)))
    bent = exposure(np.exp(canaries), np.exp(mixed))
    for other in (own, bent):
        assert np.array_equal(other.value, found.value) and np.array_equal(other.low, found.low)
        assert np.array_equal(other.high, found.high)


def test_each_canary_has_its_own_alternatives():
    rng = np.random.default_rng(0)
    others, canaries = rng.normal(size=(4, 30)), rng.normal(size=4)
    found = exposure(canaries, others)
    for j in range(4):
        assert found.value[j] == exposure(canaries[j], others[j]).value[0]


def test_ends_of_the_interval_in_closed_form():
    n, tail = 100, 0.025
    best = exposure(-1.0, np.arange(n))
    assert best.value[0] == pytest.approx(math.log2(101), abs=1e-12) and best.high[0] == math.inf
    # nobody of n below: the share is at most 1 - tail ** (1 / n)
    assert best.low[0] == pytest.approx(-math.log2(1 - tail ** (1 / n)), abs=1e-9)
    worst = exposure(1000.0, np.arange(n))
    assert worst.value[0] == pytest.approx(0.0, abs=1e-12) and worst.low[0] == 0
    assert worst.high[0] == pytest.approx(-math.log2(tail ** (1 / n)), abs=1e-9)
    middle = exposure(36.5, np.arange(n))  # 37 below
    share = stats.binomtest(37, n).proportion_ci(0.95, "exact")
    assert (middle.low[0], middle.high[0]) == pytest.approx(
        (-math.log2(share.high), -math.log2(share.low)), abs=1e-9
    )


def test_a_constant_loss_shows_one_bit():
    found = exposure(np.zeros(3), np.zeros(999))
    assert found.value == pytest.approx(np.ones(3), abs=2e-3) and np.all(found.low == 0)


def test_space_caps_and_makes_exact():
    assert exposure(-1.0, np.arange(99), space=1000).high[0] == pytest.approx(math.log2(1000))
    whole = exposure([-1.0, 50.5], np.arange(99), space=100)
    assert np.array_equal(whole.low, whole.value) and np.array_equal(whole.high, whole.value)
    assert whole.mean.low == whole.mean.high == whole.mean.value
    losses = np.random.default_rng(5).normal(20, 2, size=1000)
    assert exposure(-80.0, losses, method="extrapolate", space=2**20).value[0] == 20
    with pytest.raises(MemguardError, match="space = 99"):
        exposure(0.0, np.arange(99), space=99)


def test_interval_covers_the_share_of_the_space():
    rng = np.random.default_rng(1)
    for share in (0.002, 0.05, 0.5):
        at, others = stats.norm.ppf(share), rng.normal(size=(600, 150))
        found = exposure(np.full(600, at), others)
        covered = np.mean((found.low <= -math.log2(share)) & (-math.log2(share) <= found.high))
        assert covered >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / 600)
        together = [exposure([at, at, at - 1e-9], row).mean.covers(-math.log2(share)) for row in others[:100]]
        assert np.mean(together) >= 0.95


def test_null_exposure_has_the_mean_and_tail_that_are_stated():
    rng = np.random.default_rng(2)
    bits = exposure(rng.normal(size=3000), rng.normal(size=(3000, 499))).value
    assert bits.mean() == pytest.approx(1 / math.log(2), abs=4 * bits.std() / math.sqrt(3000))
    for b in (1, 3, 5):
        assert np.mean(bits >= b) <= 2.0**-b + 2 * math.sqrt(2.0**-b / 3000)


@pytest.mark.parametrize("shape", [-115.0, -3.0, -0.4, 0.0, 0.4, 3.0, 115.0])
def test_log_cdf_equals_quadrature(shape):
    law = stats.skewnorm(shape)
    for z in (-4.0, -1.5, -0.2, 0.0, 0.3, 2.5):
        inside, _ = integrate.quad(law.pdf, -12, z, points=[0.0] if z > 0 else None, epsabs=1e-15, limit=500)
        if inside > 1e-9:
            assert log_cdf(np.array([z]), shape)[0] == pytest.approx(math.log(inside), abs=1e-6)


def test_log_cdf_in_closed_form():
    z = np.array([-1e4, -300.0, -38.0, -5.0, -0.5, 0.0, 0.5, 5.0])
    assert log_cdf(z, 0.0) == pytest.approx(stats.norm.logcdf(z), rel=1e-12, abs=1e-15)
    # slant 1 is the larger of two normal values, slant -1 the smaller
    assert log_cdf(z, 1.0) == pytest.approx(2 * stats.norm.logcdf(z), rel=1e-12, abs=1e-15)
    smaller = stats.norm.logcdf(z) + np.log(2.0 - stats.norm.cdf(z))
    assert log_cdf(z, -1.0) == pytest.approx(smaller, rel=1e-12, abs=1e-15)
    at_zero = [log_cdf(np.zeros(1), a)[0] for a in (-7.0, 2.0)]
    assert at_zero == pytest.approx([math.log(0.5 - math.atan(a) / math.pi) for a in (-7.0, 2.0)], abs=1e-12)


def test_fit_finds_the_law_and_its_gradient_is_right():
    x = stats.skewnorm(-3, 20, 2).rvs(20_000, random_state=np.random.default_rng(3))
    law = fit_skew_normal(x)
    assert (law.centre, law.width, law.shape) == pytest.approx((20, 2, -3), rel=0.08)
    at, step = np.array([0.3, 0.2, 1.5]), 1e-6
    slope = [(_loss(at + d, x / 20)[0] - _loss(at - d, x / 20)[0]) / (2 * step) for d in step * np.eye(3)]
    assert _loss(at, x / 20)[1] == pytest.approx(slope, rel=1e-5)
    # a sample whose unpenalized slant would be infinite
    folded = np.abs(np.random.default_rng(4).normal(size=50))
    assert math.isfinite(fit_skew_normal(folded).shape)


def test_extrapolated_is_minus_log2_of_the_fitted_law_and_never_saturates():
    x = stats.skewnorm(2, 20, 2).rvs(2000, random_state=np.random.default_rng(5))
    canaries = np.array([19.0, 10.0, -1e3, -1e6])
    found = exposure(canaries, x, method="extrapolate")
    assert found.fits.all() and found.reason == ""
    assert found.value == pytest.approx(
        -fit_skew_normal(np.sort(x)).log_cdf(canaries) / math.log(2), rel=1e-6
    )
    assert np.all(np.diff(found.value) > 0) and np.all(np.isfinite(found.value)) and found.value[-1] > 1e9
    truth = -log_cdf((canaries - 20) / 2, 2.0) / math.log(2)
    assert np.all((found.low <= truth) & (truth <= found.high))
    assert found.value[0] == pytest.approx(exposure(19.0, x).value[0], abs=0.2)
    scaled = exposure(3 * canaries + 7, np.random.default_rng(0).permutation(3 * x + 7), method="extrapolate")
    assert scaled.value == pytest.approx(found.value, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [0.0, -1.0, -4.0])
def test_extrapolated_interval_covers_and_the_law_is_kept(shape):
    rng = np.random.default_rng(6)
    kept = covered = 0
    truth = -log_cdf(np.array([-8.0]), shape)[0] / math.log(2)
    for _ in range(100):
        found = exposure(4.0, stats.skewnorm(shape, 20, 2).rvs(600, random_state=rng), method="extrapolate")
        kept += bool(found.fits[0])
        covered += bool(found.fits[0] and found.low[0] <= truth <= found.high[0])
    assert kept >= 80 and covered / kept >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / kept)


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda rng: rng.standard_t(3, size=1000), "not skew-normal|left tail"),
        (lambda rng: rng.uniform(size=1000), "not skew-normal"),
        (lambda rng: np.round(rng.normal(size=1000)), "not skew-normal"),
        (lambda rng: np.r_[rng.normal(size=1997), -5 - rng.random(3)], "left tail"),
        (lambda rng: rng.normal(size=199), "199 alternatives"),
        (lambda rng: np.ones(300), "all equal"),
    ],
)  # fmt: skip
def test_where_the_law_does_not_hold_the_rank_is_given(draw, match):
    x = draw(np.random.default_rng(7))
    found = exposure([-50.0, 0.1], x, method="extrapolate")
    plain = exposure([-50.0, 0.1], x)
    assert not found.fits.any() and np.array_equal(found.value, plain.value)
    assert np.array_equal(found.low, plain.low) and np.array_equal(found.high, plain.high)
    assert re.search(match, found.reason) and "no law fits" in found.mean.method


def test_one_of_two_laws_holds():
    rng = np.random.default_rng(8)
    both = np.stack([rng.normal(size=500), rng.uniform(size=500)])
    found = exposure([-9.0, -9.0], both, method="extrapolate")
    assert found.fits.tolist() == [True, False] and "1 of 2 extrapolated" in found.mean.method
    assert found.value[0] > found.largest == found.value[1]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: exposure(math.nan, [1.0]), "1 of 1 values in canary_loss"),
        (lambda: exposure([], [1.0]), "canary_loss is empty"),
        (lambda: exposure(1.0, []), "alternative_loss is empty"),
        (lambda: exposure(1.0, [1.0, math.inf]), "1 of 2 values in alternative_loss"),
        (lambda: exposure([1.0, 2.0], np.zeros((3, 5))), r"shape \(3, 5\) for 2"),
        (lambda: exposure([[1.0]], [1.0]), "canary_loss has shape"),
        (lambda: exposure(1.0, 2.0), "alternative_loss has shape"),
        (lambda: exposure(1.0, [2.0], method="guess"), "method = 'guess'"),
        (lambda: exposure(1.0, [2.0], confidence=1.0), "confidence"),
    ],
)
def test_refuses_bad_input(call, match):
    with pytest.raises(MemguardError, match=match):
        call()


def test_law_moves_and_scales():
    law = SkewNormal(centre=20.0, width=2.0, shape=1.3)
    assert law.log_cdf(np.array([14.0])) == pytest.approx(log_cdf(np.array([-3.0]), 1.3))
