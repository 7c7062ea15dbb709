"""LiRA against a loop over records, closed forms, and what it may not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memguard.attacks import auc, lira
from memguard.attacks.likelihood_ratio import medians
from memguard.attacks.reference import moments
from memguard.errors import MemguardError, ResolutionError


def naive(target, reference, in_mask, mode, variance, statistic):
    """One record at a time with plain Python numbers; no floor."""
    n_models, n = reference.shape
    sides = [
        [[reference[k, i] for k in range(n_models) if bool(in_mask[k, i]) == s] for i in range(n)]
        for s in (True, False)
    ]
    squares = [[sum((v - sum(x) / len(x)) ** 2 for v in x) if x else 0.0 for x in side] for side in sides]
    free = [[max(len(x) - 1, 0) for x in side] for side in sides]
    pooled = [math.sqrt(sum(squares[s]) / sum(free[s])) if sum(free[s]) else math.nan for s in (0, 1)]
    if variance == "global" and mode == "online":
        pooled = [math.sqrt((sum(squares[0]) + sum(squares[1])) / (sum(free[0]) + sum(free[1])))] * 2
    out = []
    for i in range(n):
        z, sd = [0.0, 0.0], [0.0, 0.0]
        lost = False
        for s in (0, 1) if mode == "online" else (1,):
            x = sides[s][i]
            if not x or (variance == "per_record" and len(x) < 2):
                lost = True
                continue
            sd[s] = math.sqrt(squares[s][i] / free[s][i]) if variance == "per_record" else pooled[s]
            z[s] = (target[i] - (np.median(x) if statistic == "median" else sum(x) / len(x))) / sd[s]
        if lost:
            out.append(math.nan)
        elif mode == "online":
            out.append(stats.norm.logpdf(z[0]) - math.log(sd[0]) - stats.norm.logpdf(z[1]) + math.log(sd[1]))
        else:
            out.append(-stats.norm.logsf(z[1]))
    return np.array(out)


def case(seed, n=60, k=7, share=0.5):
    rng = np.random.default_rng(seed)
    mask = rng.random((k, n)) < share
    reference = rng.normal(size=n) * 3 + mask * 1.5 + rng.normal(size=(k, n)) * np.where(mask, 0.7, 1.3)
    return rng.normal(size=n) * 3, reference, mask


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["pooled", "per_record", "global"])
@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_equals_the_loop(mode, variance, statistic):
    for seed, share in ((0, 0.5), (1, 0.2), (2, 0.8)):
        target, reference, mask = case(seed, share=share)
        found = lira(target, reference, mask, mode=mode, variance=variance, statistic=statistic)
        expected = naive(target, reference, mask, mode, variance, statistic)
        np.testing.assert_allclose(found.score, expected, rtol=1e-9, atol=1e-9)
        assert found.n_missing == np.count_nonzero(np.isnan(expected))
        assert np.array_equal(found.n_in, mask.sum(0)) and np.array_equal(found.n_out, (~mask).sum(0))
    assert found.n_missing > 0 or (mode, variance) != ("online", "per_record")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 100), st.floats(-50, 50))
def test_order_of_records_and_models_and_units_do_not_matter(seed, scale, shift):
    rng = np.random.default_rng(seed)
    target, reference, mask = case(seed)
    score = lira(target, reference, mask).score
    records, models = rng.permutation(len(target)), rng.permutation(len(reference))
    moved = lira(target[records], reference[np.ix_(models, records)], mask[np.ix_(models, records)])
    np.testing.assert_allclose(moved.score, score[records], rtol=1e-9, atol=1e-9)
    scaled = lira(scale * target + shift, scale * reference + shift, mask)
    np.testing.assert_allclose(scaled.score, score, rtol=1e-7, atol=1e-7)


def test_more_records_than_a_block_and_single_precision():
    target, reference, mask = case(3, n=40_000, k=5)
    pieces = [naive(target[:5], reference[:, :5], mask[:, :5], "online", "per_record", "median")]
    found = lira(target, reference, mask, variance="per_record", statistic="median").score
    np.testing.assert_allclose(found[:5], pieces[0], rtol=1e-9)
    narrow = lira(target, reference.astype(np.float32), mask).score
    np.testing.assert_allclose(narrow, lira(target, reference, mask).score, rtol=1e-3, atol=1e-3)


def test_moments_and_medians_one_record_at_a_time():
    _, reference, mask = case(4, n=200, k=6, share=0.3)
    m = moments(reference, mask)
    low, high = medians(reference, mask)
    for i in range(200):
        for inside, mean, square, middle in (
            (mask[:, i], m.mean_in[i], m.square_in[i], low[i]),
            (~mask[:, i], m.mean_out[i], m.square_out[i], high[i]),
        ):
            x = reference[inside, i]
            assert square == pytest.approx(x.var() * len(x) if len(x) else 0.0, abs=1e-12)
            np.testing.assert_allclose([mean, middle], [x.mean(), np.median(x)] if len(x) else [math.nan] * 2)
    assert m.scale == pytest.approx(reference.std())


def test_zero_variance_gives_large_finite_scores_in_the_right_order():
    reference = np.repeat([[1.0], [1.0], [0.0], [0.0]], 3, axis=1)
    mask = reference > 0.5
    found = lira([1.0, 0.5, 0.0], reference, mask)
    assert np.isfinite(found.score).all() and np.all(np.diff(found.score) < 0)
    assert found.score[0] > 1e6 and found.score[1] == pytest.approx(0.0, abs=1e-3)
    constant = lira([0.0, 1.0], np.zeros((4, 2)), [[1, 1], [1, 1], [0, 0], [0, 0]])
    assert np.isfinite(constant.score).all()


def test_offline_is_one_sided_and_keeps_the_order_of_the_far_tail():
    reference = np.tile([[-1.0], [1.0], [-1.0], [1.0]], (1, 5))
    target = [-300.0, -3.0, 0.0, 60.0, 90.0]
    score = lira(target, reference, np.zeros((4, 5), dtype=bool), mode="offline").score
    assert np.all(np.diff(score) > 0) or (score[0] == 0.0 and np.all(np.diff(score[1:]) > 0))
    assert score[2] == pytest.approx(math.log(2))
    z = 60.0 / math.sqrt(4 / 3)
    assert score[3] == pytest.approx(z**2 / 2 + math.log(z) + math.log(2 * math.pi) / 2, rel=1e-3)


def test_missing_sides_are_counted_and_refused_by_auc():
    target, reference, mask = case(5, n=40, k=6)
    mask[:, 0], mask[:, 1] = True, False
    found = lira(target, reference, mask)
    assert np.isnan(found.score[:2]).all() and found.n_missing == 2 and len(found) == 40
    member = np.arange(40) < 20
    with pytest.raises(MemguardError, match="2 of 40 values in scores"):
        auc(found, member)
    assert auc(found.score[found.known], member[found.known]).n == 38
    assert lira(target, reference, mask, mode="offline").n_missing == 1
    everyone = lira(target[2:], reference[:, 2:], mask[:, 2:])
    assert auc(everyone, member[2:]).n == 38


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"target": [math.nan, 0.0]}, "1 of 2 values in target"),
        ({"reference": [[1.0, math.inf], [0.0, 0.0]]}, "1 of 4 values in reference"),
        ({"reference": [[1.0], [0.0]]}, "shape"),
        ({"reference": np.zeros((0, 2)), "in_mask": np.zeros((0, 2), dtype=bool)}, "reference"),
        ({"in_mask": [[1, 0]]}, "in_mask has shape"),
        ({"in_mask": [[1, 2], [0, 0]]}, "1 of 4 values in in_mask"),
        ({"in_mask": [[0, 0], [0, 0]]}, "2 of 2 records no IN model"),
        ({"in_mask": [[1, 1], [1, 1]]}, "2 of 2 records no OUT model"),
        ({"variance": "fixed"}, "variance = 'fixed'"),
        ({"mode": "both"}, "mode"),
        ({"statistic": "mode"}, "statistic"),
    ],
)
def test_refuses_bad_input(change, match):
    arguments = {
        "target": [0.0, 1.0],
        "reference": [[1.0, 2.0], [0.0, 0.0]],
        "in_mask": [[1, 0], [0, 1]],
    } | change
    arrays = [arguments.pop(name) for name in ("target", "reference", "in_mask")]
    with pytest.raises(MemguardError, match=match):
        lira(*arrays, **arguments)


def test_two_models_cannot_give_a_variance():
    with pytest.raises(ResolutionError, match="none of 2 records has two IN models"):
        lira([0.0, 1.0], [[1.0, 2.0], [0.0, 0.0]], [[1, 0], [0, 1]])
    with pytest.raises(ResolutionError, match="none of 1 records has two OUT models"):
        lira([0.0], [[1.0], [0.0]], [[1], [0]], mode="offline")


def test_variances_within_strata_are_those_of_each_stratum_alone():
    rng = np.random.default_rng(11)
    stratum = np.arange(200) % 3
    mask = rng.random((8, 200)) < 0.5
    reference = rng.normal(size=(8, 200)) * (1 + 4 * stratum) + mask
    target = rng.normal(size=200)
    for variance in ("pooled", "global"):
        found = lira(target, reference, mask, variance=variance, strata=stratum).score
        for one in range(3):
            mine = stratum == one
            alone = lira(target[mine], reference[:, mine], mask[:, mine], variance=variance).score
            np.testing.assert_allclose(found[mine], alone, rtol=1e-12)
        assert not np.allclose(found, lira(target, reference, mask, variance=variance).score)


def test_a_stratum_without_two_models_is_refused():
    mask = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], dtype=bool)
    with pytest.raises(ResolutionError, match="no record of a stratum has two IN"):
        lira([1.0, 2.0], np.arange(8.0).reshape(4, 2), mask, strata=[0, 1])
