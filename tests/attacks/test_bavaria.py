"""BaVarIA against Bayes' rule one observation at a time, planted priors, and the attacks it is to beat."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from memguard.attacks import auc, bavaria, lira, rmia, tpr_at_fpr
from memguard.attacks.reference import moments
from memguard.attacks.variance_inference import fit_prior, log_ratio
from memguard.errors import MemguardError, ResolutionError


def planted(seed, k, n, *, shape=2.0, gap="drawn"):
    """Records whose variances are drawn from an inverse gamma, with Bernoulli masks."""
    rng = np.random.default_rng(seed)
    base, spread = rng.normal(size=n) * 2, np.sqrt(1 / rng.gamma(shape, 1.0, n))
    lift = {
        "same": np.ones(n),
        "drawn": np.exp(0.4 * rng.normal(size=n)),
        "hard": np.log1p(np.exp(1 - base)),
    }[gap]
    mask, member = rng.random((k, n)) < 0.5, rng.random(n) < 0.5
    reference = base + lift * mask + spread * rng.normal(size=(k, n))
    return base + lift * member + spread * rng.normal(size=n), reference, mask, member


def naive(target, x_in, x_out, prior, gap, predictive):
    """Normal-inverse-gamma updates for each node of the gap, observation by observation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    logs = {True: [], False: []}
    for node, weight in zip(nodes, weights, strict=True):
        d = gap * math.exp(prior.spread * node)
        kappa, mean, a, b, evidence = (
            0.0,
            0.0,
            prior.freedom / 2,
            prior.freedom * prior.unit / 2,
            math.log(weight),
        )
        for value, v in [(x - d, prior.pooled[0]) for x in x_in] + [(x, prior.pooled[1]) for x in x_out]:
            if kappa == 0.0:
                kappa, mean = 1 / v, value
                continue
            scale = math.sqrt(b / a * (v + 1 / kappa))
            evidence += stats.t.logpdf(value, 2 * a, mean, scale)
            b += (value - mean) ** 2 / (v + 1 / kappa) / 2
            a += 0.5
            mean = (kappa * mean + value / v) / (kappa + 1 / v)
            kappa += 1 / v
        for member in (True, False):
            scale = math.sqrt(b / a * (prior.pooled[0 if member else 1] + 1 / kappa))
            law = (
                stats.t(2 * a, mean + d * member, scale)
                if predictive == "t"
                else stats.norm(mean + d * member, scale)
            )
            logs[member].append(evidence + law.logpdf(target))
    return special.logsumexp(logs[True]) - special.logsumexp(logs[False])


@pytest.mark.parametrize("predictive", ["t", "normal"])
def test_equals_updating_by_one_observation_at_a_time(predictive):
    target, reference, mask, _ = planted(0, 5, 30)
    mask[:, 0], mask[:, 1] = True, False  # one side each
    prior = fit_prior(moments(reference, mask))
    found = bavaria(target, reference, mask, predictive=predictive)
    expected = [
        naive(target[i], reference[mask[:, i], i], reference[~mask[:, i], i], prior, prior.gap[i], predictive)
        for i in range(30)
    ]
    np.testing.assert_allclose(found.score, expected, rtol=1e-9, atol=1e-9)
    assert found.n_missing == 0 and found.n_in[0] == 5 and found.n_out[0] == 0


def test_finds_the_planted_prior():
    _, reference, mask, _ = planted(2, 8, 20_000)
    prior = fit_prior(moments(reference, mask))
    assert prior.freedom == pytest.approx(4.0, rel=0.15)  # shape 2
    assert prior.unit == pytest.approx(1 / (2 * np.mean(prior.pooled)), rel=0.1)  # rate 1: f u V / 2 = 1
    assert np.median(prior.gap) == pytest.approx(1.0, rel=0.1) and prior.spread == pytest.approx(0.4, abs=0.1)


def test_equal_variances_give_pooled_lira_for_many_models():
    rng = np.random.default_rng(3)
    base, mask, member = (
        rng.normal(size=500),
        np.arange(200)[:, None] % 2 == np.zeros(500),
        np.arange(500) < 250,
    )
    reference = base + 1.0 * mask + rng.normal(size=(200, 500))
    target = base + member + rng.normal(size=500)
    a, b = bavaria(target, reference, mask).score, lira(target, reference, mask).score
    assert np.corrcoef(a, b)[0, 1] > 0.985 and np.polyfit(b, a, 1)[0] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("k", [2, 4, 8, 16])
@pytest.mark.parametrize("gap", ["same", "drawn", "hard"])
def test_at_least_as_strong_as_lira_and_rmia(k, gap):
    target, reference, mask, member = planted([4, k], k, 20_000, gap=gap)
    ours = bavaria(target, reference, mask)
    assert ours.n_missing == 0
    rng = np.random.default_rng(0)
    outside = rng.normal(size=2000) * 2
    quiet = np.sqrt(1 / rng.gamma(2.0, 1.0, 2000))
    population = special.expit(outside + quiet * rng.normal(size=(k + 1, 2000)))
    others = {
        "pooled": lira(target, reference, mask),
        "per_record": lira(target, reference, mask, variance="per_record") if k > 2 else None,
        "rmia": rmia(
            special.expit(target),
            special.expit(reference),
            mask,
            population[0],
            population[1:],
            continuous=True,
        ),
    }
    for name, other in others.items():
        if other is None:
            continue
        seen = other.known
        mine, theirs = ours.score[seen], other.score[seen]
        # half a standard error: with two models RMIA ranks hard records as well on average, not at the top
        assert auc(mine, member[seen]).value > auc(theirs, member[seen]).value - 0.004, name
        assert tpr_at_fpr(mine, member[seen], 0.01).value > tpr_at_fpr(theirs, member[seen], 0.01).value, name


def test_offline_beats_offline_lira_where_variances_differ_and_keeps_its_tail():
    target, reference, mask, member = planted(5, 8, 20_000)
    for predictive in ("t", "normal"):
        ours = bavaria(target, reference, mask, mode="offline", predictive=predictive)
        theirs = lira(target, reference, mask, mode="offline")
        seen = ours.known
        assert ours.n_missing == theirs.n_missing == np.count_nonzero(mask.all(axis=0))
        assert auc(ours.score[seen], member[seen]).value > auc(theirs.score[seen], member[seen]).value
        high = [tpr_at_fpr(s.score[seen], member[seen], 0.01).value for s in (ours, theirs)]
        assert high[0] > 1.5 * high[1]
    quiet = np.tile([[-1.0], [1.0], [-1.0], [1.0]], (1, 6))
    far = np.array([-1.0, 0.0, 5.0, 40.0, 80.0, 200.0])
    for predictive in ("t", "normal"):
        score = bavaria(far, quiet, np.zeros((4, 6), dtype=bool), mode="offline", predictive=predictive).score
        assert np.isfinite(score).all() and np.all(np.diff(score) > 0), predictive


def test_no_gap_finds_nothing():
    rng = np.random.default_rng(6)
    values = []
    for _ in range(8):
        base, mask, member = rng.normal(size=2000), rng.random((4, 2000)) < 0.5, rng.random(2000) < 0.5
        found = bavaria(base + rng.normal(size=2000), base + rng.normal(size=(4, 2000)), mask)
        values.append(auc(found, member).value)
    assert np.mean(values) == pytest.approx(0.5, abs=2.5 * 0.0129 / math.sqrt(8))


def test_order_of_records_and_units_do_not_matter():
    target, reference, mask, _ = planted(7, 4, 9000)
    rng = np.random.default_rng(0)
    n, k = rng.permutation(9000), rng.permutation(4)
    score = bavaria(target, reference, mask).score
    moved = bavaria(target[n], reference[k][:, n], mask[k][:, n]).score
    np.testing.assert_allclose(moved, score[n], rtol=1e-2, atol=1e-2)  # the fit stops within rounding
    scaled = bavaria(0.01 * target - 7, 0.01 * reference - 7, mask).score
    np.testing.assert_allclose(scaled, score, rtol=1e-2, atol=1e-2)


def test_two_complementary_models_are_enough():
    rng = np.random.default_rng(8)
    base, member, half = rng.normal(size=2000) * 3, rng.random(2000) < 0.5, rng.random(2000) < 0.5
    mask = np.stack([half, ~half])
    reference = base + 2 * mask + rng.normal(size=(2, 2000))
    found = bavaria(base + 2 * member + rng.normal(size=2000), reference, mask)
    assert found.n_missing == 0 and auc(found, member).value > 0.85


def test_complementary_models_still_show_that_records_differ():
    target, reference, mask, member = planted(9, 2, 20_000, gap="same")
    half = mask.sum(axis=0) == 1  # no record has a second model of either kind: no variance within a record
    ours = bavaria(target[half], reference[:, half], mask[:, half]).score
    difference = target[half] - reference[:, half].mean(axis=0)
    assert auc(ours, member[half]).value > auc(difference, member[half]).value
    high = [tpr_at_fpr(s, member[half], 0.01).value for s in (ours, difference)]
    assert high[0] > high[1]
    assert fit_prior(moments(reference[:, half], mask[:, half])).freedom < 20


def test_constant_scores_do_not_crash():
    assert np.isfinite(
        bavaria([0.0, 1.0, 0.0], np.zeros((4, 3)), [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]).score
    ).all()
    reference = np.repeat([[1.0], [1.0], [0.0], [0.0]], 50, axis=1)
    found = bavaria(np.linspace(0, 1, 50), reference, reference > 0.5)
    assert np.isfinite(found.score).all() and np.all(np.diff(found.score) > 0)


def test_refuses_bad_input():
    with pytest.raises(ResolutionError, match="0 of 2 records have an IN and an OUT model"):
        bavaria([0.0, 1.0], [[0.0, 1.0]], [[1, 0]])
    with pytest.raises(ResolutionError, match="none of 2 records has two OUT models"):
        bavaria([0.0, 1.0], [[0.0, 1.0]], [[0, 0]], mode="offline")
    with pytest.raises(MemguardError, match="predictive = 'cauchy'"):
        bavaria([0.0, 1.0], [[0.0, 1.0]], [[1, 0]], predictive="cauchy")
    with pytest.raises(MemguardError, match="1 of 2 values in target"):
        bavaria([0.0, math.nan], [[0.0, 1.0]], [[1, 0]])
    with pytest.raises(MemguardError, match="no IN model"):
        bavaria([0.0, 1.0], [[0.0, 1.0]], [[0, 0]])


def test_a_prior_taken_over_gives_the_same_scores_on_the_same_models():
    rng = np.random.default_rng(12)
    mask = rng.random((8, 300)) < 0.5
    reference = rng.normal(size=(8, 300)) + 1.5 * mask
    m = moments(reference, mask)
    fitted = fit_prior(m)
    again = fit_prior(m, like=fitted)
    np.testing.assert_array_equal(again.gap, fitted.gap)
    target = rng.normal(size=(2, 300))
    both = log_ratio(target, m, again, "normal", slice(0, 300))
    for one in (0, 1):
        np.testing.assert_allclose(both[one], bavaria(target[one], reference, mask).score, rtol=1e-10)
