"""Scores without a fit, against loops over records and tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from memguard.attacks import attack_r, logit_scale, loss_score, min_k_percent
from memguard.errors import MemguardError


def test_loss_score_is_minus_the_loss():
    assert loss_score([0.5, -1.0]).tolist() == [-0.5, 1.0]
    with pytest.raises(MemguardError, match="1 of 1 values in loss"):
        loss_score([math.nan])


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-12, 700))
def test_logit_from_the_loss_equals_that_from_the_probability(loss):
    exact = -loss - math.log(-math.expm1(-loss))
    assert logit_scale(loss=[loss])[0] == pytest.approx(exact, rel=1e-12, abs=1e-12)
    if 1e-3 < loss < 500:
        assert logit_scale([math.exp(-loss)])[0] == pytest.approx(exact, rel=1e-9, abs=1e-9)


def test_logit_is_scipys_is_monotone_and_finite_at_the_ends():
    p = np.linspace(0, 1, 1001)[1:-1]
    np.testing.assert_allclose(logit_scale(p), special.logit(p), rtol=1e-12, atol=1e-12)
    ends = logit_scale([[0.0, 5e-324, 1.0 - 2.0**-53, 1.0]])
    assert ends.shape == (1, 4) and np.isfinite(ends).all() and np.all(np.diff(ends) >= 0)
    assert ends[0, 3] == pytest.approx(53 * math.log(2)) == logit_scale(loss=[0.0])[0]
    losses = np.concatenate([[0.0], np.logspace(-17, 3, 500)])
    scaled = logit_scale(loss=losses)
    assert np.all(np.diff(scaled) <= 0) and len(np.unique(scaled)) > 470
    assert logit_scale(loss=[2000.0])[0] == -2000.0  # a long sequence is not cut off
    assert logit_scale(np.float32([0.25, 1.0])).dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (([1.5],), {}, "1 of 1 values in probability"),
        (([math.nan],), {}, "1 of 1 values in probability"),
        ((), {"loss": [-1.0, 1.0]}, "1 of 2 values in loss are negative"),
        ((), {"loss": [math.inf]}, "1 of 1 values in loss"),
        ((), {}, "neither"),
        (([0.5],), {"loss": [1.0]}, "both"),
    ],
)
def test_logit_refuses_bad_input(arguments, options, match):
    with pytest.raises(MemguardError, match=match):
        logit_scale(*arguments, **options)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_attack_r_equals_the_loop_and_knows_only_order(seed, k):
    rng = np.random.default_rng(seed)
    target, reference, mask = rng.integers(0, 4, 30), rng.integers(0, 4, (k, 30)), rng.random((k, 30)) < 0.5
    mask[0, 0] = False
    found = attack_r(target, reference, mask)
    for i in range(30):
        x = reference[~mask[:, i], i]
        expected = (
            np.mean([1.0 if target[i] > v else 0.5 if target[i] == v else 0.0 for v in x])
            if len(x)
            else math.nan
        )
        assert found.score[i] == pytest.approx(expected, nan_ok=True)
    assert found.n_missing == np.count_nonzero(mask.all(axis=0))
    moved = attack_r(np.exp(target), np.exp(reference), mask).score
    assert np.array_equal(moved, found.score, equal_nan=True)


def test_attack_r_refuses_a_mask_without_out_models():
    with pytest.raises(MemguardError, match="no OUT model"):
        attack_r([1.0], [[1.0]], [[True]])


def naive_min_k(tokens, k, mu=None, sigma=None):
    logp = [-x for x in tokens]
    if mu is not None:
        logp = [(v - m) / max(s, 1e-6) for v, m, s in zip(logp, mu, sigma, strict=True)]
    n = max(int(len(logp) * k / 100 + 1e-9), 1)
    return sum(sorted(logp)[:n]) / n if logp else math.nan


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 10, 20, 29, 50, 100]), st.booleans())
def test_min_k_padded_masked_and_ragged_equal_the_loop(seed, k, plus):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, 9)
    lengths[0] = 11
    losses, mu, sigma = rng.integers(0, 5, (9, 11)) / 2, -rng.random((9, 11)), rng.random((9, 11))
    inside = np.arange(11) < lengths[:, None]
    own = [
        naive_min_k(losses[b, :n], k, *((mu[b, :n], sigma[b, :n]) if plus else ()))
        for b, n in enumerate(lengths)
    ]
    extra = {"mu": mu, "sigma": sigma} if plus else {}
    padded = np.where(inside, losses, np.nan)
    flat = {name: a[inside] for name, a in extra.items()}
    for found in (
        min_k_percent(padded, lengths, k=k, **extra),
        min_k_percent(padded, mask=inside, k=k, **extra),
        min_k_percent(losses[inside], lengths, k=k, **flat),
    ):
        np.testing.assert_allclose(found, own, rtol=1e-12, atol=1e-12)


def test_min_k_over_many_blocks():
    rng = np.random.default_rng(0)
    losses = rng.random((9000, 257))
    found = min_k_percent(losses)
    expected = -np.sort(losses, axis=1)[:, -51:].mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    ragged = min_k_percent(losses.ravel(), np.full(9000, 257))
    assert np.array_equal(ragged, found)


@pytest.mark.parametrize(
    ("losses", "options", "match"),
    [
        ([[1.0, math.nan]], {}, "1 of 2 values in token_losses"),
        ([[1.0, 2.0]], {"k": 0}, "k = 0"),
        ([[1.0, 2.0]], {"k": 101}, "k = 101"),
        ([[1.0, 2.0]], {"lengths": [3]}, "lengths"),
        ([[1.0, 2.0]], {"lengths": [1, 1]}, "lengths"),
        ([[1.0, 2.0]], {"lengths": [1], "mask": [[True, False]]}, "mask"),
        ([[1.0, 2.0]], {"mask": [[True]]}, "mask"),
        ([1.0, 2.0], {}, "lengths None"),
        ([1.0, 2.0], {"lengths": [1, 2]}, "token_losses has shape"),
        ([1.0, 2.0], {"lengths": [-1, 3]}, "token_losses has shape"),
        ([], {"lengths": []}, "token_losses has shape"),
        ([[1.0]], {"mu": [[0.0]]}, "only mu"),
        ([[1.0]], {"mu": [[0.0]], "sigma": [[1.0, 1.0]]}, "mu and sigma"),
        ([[1.0]], {"mu": [[math.nan]], "sigma": [[1.0]]}, "1 of 1 values in token_losses"),
    ],
)
def test_min_k_refuses_bad_input(losses, options, match):
    with pytest.raises(MemguardError, match=match):
        min_k_percent(losses, **options)
