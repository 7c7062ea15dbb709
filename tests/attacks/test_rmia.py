"""RMIA against a loop over pairs of records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard.attacks import auc, rmia
from memguard.errors import MemguardError


def naive(target, reference, in_mask, z_target, z_reference, gamma, a):
    def mean_of(values, inside):
        x_in, x_out = (
            [v for v, i in zip(values, inside, strict=True) if i],
            [v for v, i in zip(values, inside, strict=True) if not i],
        )
        if a is not None:
            return ((1 + a) * sum(x_out) / len(x_out) + 1 - a) / 2 if x_out else math.nan
        if inside is nobody:
            return sum(x_out) / len(x_out)
        return (sum(x_in) / len(x_in) + sum(x_out) / len(x_out)) / 2 if x_in and x_out else math.nan

    nobody = [False] * len(reference)
    r = [target[i] / mean_of(reference[:, i], list(in_mask[:, i])) for i in range(len(target))]
    r_z = [z_target[j] / mean_of(z_reference[:, j], nobody) for j in range(len(z_target))]
    return np.array(
        [sum(x >= gamma * z for z in r_z) / len(r_z) if x == x else math.nan for x in r]
    ), np.array(r)


def case(seed, n=50, z=31, k=6):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.integers(1, 9, size=shape) / 8  # noqa: E731  few levels: many ties
    mask = rng.random((k, n)) < rng.random(n)
    mask[0, 0] = True
    mask[0, 1] = False
    return draw(n), draw(k, n), mask, draw(z), draw(k, z)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.sampled_from([None, 0.0, 0.25, 1.0])
)
def test_equals_the_loop_with_ties_and_unbalanced_masks(seed, gamma, a):
    arrays = case(seed)
    found = rmia(*arrays, gamma=gamma, offline_a=a)
    # means are sums in another order: a ratio that meets its bar to the last bit may fall on either side
    expected, _ = naive(*arrays, gamma * (1 + 1e-12), a)
    most, _ = naive(*arrays, gamma * (1 - 1e-12), a)
    known = ~np.isnan(expected)
    assert np.array_equal(found.known, known)
    assert np.all(expected[known] <= found.score[known]) and np.all(found.score[known] <= most[known])
    assert found.n_missing == np.count_nonzero(np.isnan(expected))


def test_ties_are_exact():
    # every mean is 1/2 to the last bit, so ratios are 2 p: levels meet gamma times levels exactly
    p = np.array([0.125, 0.25, 0.5, 1.0])
    reference = np.full((4, 4), 0.5)
    mask = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    found = rmia(p, reference, mask, p, reference, gamma=2.0).score
    assert found.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert rmia(p, reference, mask, p, reference, gamma=1.0).score.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_continuous_is_the_order_within_the_steps():
    rng = np.random.default_rng(1)
    target, reference, mask = rng.random(400), rng.random((8, 400)), rng.random((8, 400)) < 0.5
    mask[:2] = [[True], [False]]
    population = rng.random(51), rng.random((8, 51))
    share = rmia(target, reference, mask, *population).score
    fine = rmia(target, reference, mask, *population, continuous=True).score
    _, r = naive(target, reference, mask, *population, 2.0, None)
    order = np.argsort(fine)
    assert np.all(np.diff(share[order]) >= 0) and len(np.unique(fine)) > 390 > len(np.unique(share))
    assert np.array_equal(np.argsort(r), order)
    assert np.all((fine > 0) <= (share >= 0.5)) and np.all((share > 0.5) <= (fine >= 0))
    other = rmia(target, reference, mask, *population, gamma=1.3, continuous=True).score
    np.testing.assert_allclose(other - fine, math.log(2.0 / 1.3), atol=1e-12)


def test_continuous_does_not_saturate():
    rng = np.random.default_rng(2)
    member = np.arange(4000) < 2000
    logit = rng.normal(size=4000) + 3 * member
    target, reference = 1 / (1 + np.exp(-logit)), np.full((2, 4000), 0.01)
    arrays = (target, reference, [[1] * 4000, [0] * 4000], np.full(20, 0.001), np.full((2, 20), 0.01))
    assert np.all(rmia(*arrays).score == 1.0)
    assert auc(rmia(*arrays, continuous=True), member).value > 0.95


def test_zero_probabilities_and_missing_sides():
    found = rmia(
        [0.0, 0.5, 0.5], [[0.0, 0.0, 0.3], [0.0, 0.0, 0.3]], [[1, 1, 1], [0, 0, 1]], [0.2], [[0.2], [0.2]]
    )
    assert (
        found.score[0] == 0.0 and found.score[1] == 1.0 and np.isnan(found.score[2]) and found.n_missing == 1
    )
    assert np.array_equal(found.n_in, [1, 1, 2]) and np.array_equal(found.n_out, [1, 1, 0])


def test_order_of_records_and_models_does_not_matter():
    target, reference, mask, z, z_reference = case(7)
    rng = np.random.default_rng(0)
    n, k, j = rng.permutation(50), rng.permutation(6), rng.permutation(31)
    a = rmia(target, reference, mask, z, z_reference, continuous=True).score
    b = rmia(target[n], reference[k][:, n], mask[k][:, n], z[j], z_reference[k][:, j], continuous=True).score
    np.testing.assert_allclose(b, a[n], atol=1e-12)


@pytest.mark.parametrize(
    ("at", "value", "options", "match"),
    [
        (0, [1.5, 0.5], {}, "1 of 2 values in target"),
        (1, [[0.5, -0.1], [0.5, 0.5]], {}, "1 of 4 values in reference"),
        (1, [[0.5, math.nan], [0.5, 0.5]], {}, "1 of 4 values in reference"),
        (2, [[0, 0], [0, 0]], {}, "2 of 2 records no IN model"),
        (3, [], {}, "population_target is empty"),
        (3, [2.0], {}, "1 of 1 values in population_target"),
        (4, [[0.5]], {}, "population_reference has 1 reference models"),
        (4, [[0.5, 0.5], [0.5, 0.5]], {}, "population_reference has shape"),
        (0, [0.5, 0.5], {"gamma": 0.0}, "gamma"),
        (0, [0.5, 0.5], {"offline_a": 1.5}, "offline_a"),
    ],
)
def test_refuses_bad_input(at, value, options, match):
    arrays = [[0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], [[1, 0], [0, 1]], [0.5], [[0.5], [0.5]]]
    arrays[at] = value
    with pytest.raises(MemguardError, match=match):
        rmia(*arrays, **options)
    good = [[0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], [[0, 0], [0, 0]], [0.5], [[0.5], [0.5]]]
    assert rmia(*good, offline_a=0.3).n_missing == 0
