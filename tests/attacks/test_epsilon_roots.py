"""Bounds on epsilon are the roots of their tests: 2e-5 below them the test refutes, 2e-5 above it does not.

The tests are written out here once more, without what makes the others fast.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from memguard.attacks import (
    Bonferroni,
    Explicit,
    SequentialEpsilon,
    Split,
    Weighted,
    epsilon_clopper_pearson,
    epsilon_f_dp,
    epsilon_gdp,
    epsilon_one_run,
    epsilon_sequential,
)
from memguard.attacks.epsilon.one_run import one_run_p_value
from memguard.attacks.epsilon.sequential import spending
from memguard.attacks.epsilon.thresholds import guesses_of
from memguard.attacks.epsilon.weighted import _CELLS, _weights, weighted_p_value

STEP = 2e-5
LEVEL = 0.05


def shifted(mu, m, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    included = rng.random(m) < 0.5
    scores = rng.normal(size=m) + mu * included
    return (np.round(scores, 1) if ties else scores), included


# -- weighed guesses ---


def naive_weighted(weights, right, epsilon, slack):
    """P(sum w_i B_i >= reached), the distribution built up coin by coin."""
    p, mass = 1 / (1 + math.exp(-epsilon)), np.ones(1)
    for w in weights[weights > 0].tolist():
        more = np.zeros(len(mass) + w)
        more[: len(mass)] += (1 - p) * mass
        more[w:] += p * mass
        mass = more
    reached = weights[right].sum() - slack * weights.max()
    return 1.0 if reached <= 0 else math.fsum(mass[reached:])


def refuted_by(scores, included, epsilon, level, slack, share_of):
    """Whether a side refutes epsilon, and all the cells below it whole."""
    rank = (stats.rankdata(scores) - 0.5) / len(scores)
    for side, share in share_of.items():
        used = {"both": rank != 0.5, "in": rank > 0.5, "out": rank < 0.5}[side]
        order = np.argsort(np.abs(stats.norm.ppf(rank[used])), kind="stable")
        extreme = np.abs(stats.norm.ppf(rank[used]))[order]
        right = np.where(rank > 0.5, included, ~included)[used][order]
        cell = int(np.searchsorted(_CELLS, epsilon, side="left"))
        tested = [*((high, high) for high in _CELLS[:cell]), (_CELLS[cell], epsilon)]
        about = 2.0 ** round(math.log2(level * share))
        if all(
            naive_weighted(_weights(extreme.tobytes(), high, about, slack), right, at, slack) <= level * share
            for high, at in tested
        ):
            return True
    return False


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("mu", "m", "delta"), [(1.5, 200, 0.0), (2.0, 150, 1e-5), (3.0, 200, 1e-4)])
def test_weighted(mu, m, delta, ties):
    scores, included = shifted(mu, m, ties=ties)
    bound = epsilon_one_run(scores, included, delta=delta)
    slack = max(math.ceil(m * delta / 0.0125), 1) - 1
    left = LEVEL - m * delta / (slack + 1)
    share_of = {"both": 0.7, "in": 0.2, "out": 0.1}
    assert bound.epsilon > 0.3
    assert refuted_by(scores, included, bound.epsilon - STEP, left, slack, share_of)
    assert not refuted_by(scores, included, bound.epsilon + STEP, left, slack, share_of)


def test_weighted_at_one_end_and_at_a_look():
    scores, included = shifted(2.5, 200, 3)
    ends = Weighted(0.0, 1.0, 0.0)
    bound = epsilon_one_run(scores, included, delta=0.0, threshold=ends).epsilon
    looks = epsilon_sequential(scores[None], included, delta=0.0, horizon=4, threshold=ends)[0].epsilon
    assert bound > looks > 0.2
    for found, level in ((bound, LEVEL), (looks, LEVEL * spending(1, 4))):
        assert refuted_by(scores, included, found - STEP, level, 0, {"in": 1.0})
        assert not refuted_by(scores, included, found + STEP, level, 0, {"in": 1.0})


def test_a_later_look_with_less_to_find_changes_nothing():
    scores, included = shifted(2.5, 300)
    bounds = SequentialEpsilon(delta=1e-5, horizon=3)
    first = bounds.look(scores, included).epsilon
    assert bounds.look(scores * 0.0, included).epsilon == first > 0
    third = bounds.look(scores, included).epsilon  # more error to spend, and so a little more is found
    alone = epsilon_sequential(np.stack([scores * 0.0] * 2 + [scores]), included, delta=1e-5, horizon=3)
    assert third == alone[-1].epsilon > first


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.7, 5.0])
@pytest.mark.parametrize(("k", "slack"), [(40, 0), (400, 2), (1500, 1)])
def test_weighted_p_values(epsilon, k, slack):
    rng = np.random.default_rng(k)
    weights, p = rng.integers(0, 13, k), 1 / (1 + math.exp(-epsilon))
    for extra in (0.0, 0.05):
        right = rng.random(k) < p + extra
        expected = naive_weighted(weights, right, epsilon, slack)
        assert abs(weighted_p_value(weights, right, epsilon, slack) - expected) < 1e-12


def test_a_level_below_rounding_claims_nothing():
    included = np.arange(400) % 2 == 0
    for confidence, least in ((1 - 1e-10, 2.0), (1 - 1e-13, 0.0)):
        found = epsilon_one_run(included + 0.0, included, delta=0.0, confidence=confidence).epsilon
        assert found > least if least else found == 0.0


# -- counted guesses ---


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-4])
@pytest.mark.parametrize("rule", [Explicit(1.5), Explicit(1.5, -0.5), Split(), Bonferroni()], ids=str)
def test_counted(rule, delta):
    scores, included = shifted(1.8, 600)
    bound = epsilon_one_run(scores, included, delta=delta, threshold=rule).epsilon
    sets = guesses_of(rule, scores, included, LEVEL)

    def refuted(epsilon):
        return any(one_run_p_value(s.correct, s.total, s.n, epsilon, delta) <= s.level for s in sets)

    assert bound > 0.2 and refuted(bound - STEP) and not refuted(bound + STEP)


# -- trade-off curves ---


def curve(parameter, delta, gaussian):
    """1 - f and the inverse of it, the one by its definition and the other by bisection."""

    def above(x):
        if gaussian:
            return 1 - stats.norm.cdf(stats.norm.isf(x) - parameter)
        up = math.exp(parameter)
        return 1 - max(0.0, 1 - delta - up * x, (1 - delta - x) / up)

    def inverse(y):
        if y <= above(0.0):
            return 0.0
        return optimize.brentq(lambda x: above(x) - y, 0.0, 1.0, xtol=1e-15, rtol=1e-14)

    return inverse


def masses_exceed_one(inverse, correct, guesses, n, level):
    """The recursion of arXiv 2410.22235 with the probabilities of each count written out."""
    r, h, total = level * correct / n, level * (guesses - correct) / n, level
    for i in range(correct - 1, -1, -1):
        least = max(h, inverse(r))
        q = (least - h) * n / (guesses - i)
        r, h, total = r + i * q / n, least, total + q
    return total > 1.0


@pytest.mark.parametrize("gaussian", [False, True], ids=["epsilon-delta", "gaussian"])
@pytest.mark.parametrize(("mu", "delta"), [(1.5, 1e-5), (2.5, 1e-3)])
def test_f_dp(gaussian, mu, delta):
    scores, included = shifted(mu, 120)
    rule = Explicit(1.5, -0.5)
    (one,) = guesses_of(rule, scores, included, LEVEL)
    name = "gaussian" if gaussian else "epsilon-delta"
    bound = epsilon_f_dp(scores, included, delta=delta, threshold=rule, curve=name).epsilon

    def refuted(epsilon):
        parameter = mu_of(epsilon, delta) if gaussian else epsilon
        return masses_exceed_one(curve(parameter, delta, gaussian), one.correct, one.total, one.n, LEVEL)

    assert bound > 0.3 and refuted(bound - STEP) and not refuted(bound + STEP)


def mu_of(epsilon, delta):
    """The mu at which the Gaussian mechanism has this epsilon, from the integral that defines delta."""

    def spent(mu):
        start = epsilon / mu + mu / 2
        density = lambda x: stats.norm.pdf(x - mu) - math.exp(epsilon) * stats.norm.pdf(x)  # noqa: E731
        return integrate.quad(density, start, start + 12, epsabs=1e-15, epsrel=1e-11)[0] - delta

    return optimize.brentq(spent, 0.05, 8.0, xtol=1e-12)


# -- pairs in order ---


def naive_pairs(scores, included, mu):
    """P(at least so many pairs in order), unit normals mu apart: normal, with mean and variance by quadrature."""
    x, y = scores[included], scores[~included]
    pairs = (np.sign(x[:, None] - y[None, :]) + 1).sum() / 2
    m, n = len(x), len(y)

    def mean(f):
        return integrate.quad(lambda z: stats.norm.pdf(z) * f(z), -9, 9, epsabs=1e-13)[0]

    theta = mean(lambda z: stats.norm.cdf(z + mu))
    both = mean(lambda z: stats.norm.cdf(z + mu) ** 2)  # two of one kind against one of the other, either way
    variance = m * n * (theta * (1 - theta) + (m + n - 2) * (both - theta**2))
    return stats.norm.sf((pairs - 0.5 - m * n * theta) / math.sqrt(variance))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("mu", "m", "delta"), [(1.0, 300, 1e-5), (2.0, 200, 1e-3), (0.6, 1000, 1e-6)])
def test_gdp(mu, m, delta, ties):
    scores, included = shifted(mu, m, 1, ties)
    bound = epsilon_gdp(scores, included, delta=delta).epsilon
    below, above = (naive_pairs(scores, included, mu_of(bound + by, delta)) for by in (-STEP, STEP))
    assert bound > 0.3 and below < LEVEL < above


# -- rates ---


@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_clopper_pearson(delta):
    """At the limits that give the bound, each of the two rates is refuted with half of the error."""
    scores, included = shifted(2.0, 500, 2)
    bound = epsilon_clopper_pearson(scores, included, delta=delta, threshold=Explicit(1.5, 1.5)).epsilon
    said = scores >= 1.5
    best = []
    for positive, inside in ((said, included), (~said, ~included)):
        hits, n, false, k = (
            (positive & inside).sum(),
            inside.sum(),
            (positive & ~inside).sum(),
            (~inside).sum(),
        )
        low = optimize.brentq(lambda p, h=hits, n=n: stats.binom.sf(h - 1, n, p) - 0.025, 1e-9, 1 - 1e-9)
        high = optimize.brentq(lambda p, f=false, k=k: stats.binom.cdf(f, k, p) - 0.025, 1e-9, 1 - 1e-9)
        best.append(math.log((low - delta) / high))
    assert bound == pytest.approx(max(best), abs=STEP) and bound > 0.5
