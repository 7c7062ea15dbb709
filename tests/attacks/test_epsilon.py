"""Epsilon bounds: the theorems by enumeration, invariances, honesty on null data, bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from memguard.attacks import (
    Bonferroni,
    EpsilonBound,
    Explicit,
    SequentialEpsilon,
    Split,
    Weighted,
    epsilon_clopper_pearson,
    epsilon_f_dp,
    epsilon_gdp,
    epsilon_one_run,
    epsilon_sequential,
    gaussian_delta,
    gaussian_epsilon,
)
from memguard.attacks.epsilon.clopper_pearson import clopper_pearson_epsilon
from memguard.attacks.epsilon.f_dp import f_dp_refutes
from memguard.attacks.epsilon.gdp import gdp_p_value
from memguard.attacks.epsilon.one_run import one_run_p_value
from memguard.attacks.epsilon.sequential import spending
from memguard.attacks.epsilon.thresholds import guesses_of, mid_ranks
from memguard.attacks.epsilon.weighted import delta_slack, weighted_p_value
from memguard.errors import MemguardError

DELTA = 1e-5
BOUNDS = [epsilon_one_run, epsilon_f_dp, epsilon_gdp, epsilon_clopper_pearson]


def shifted(mu, m=600, seed=0):
    rng = np.random.default_rng(seed)
    included = rng.random(m) < 0.5
    return rng.normal(size=m) + mu * included, included


# -- the counting theorem ---


def naive_one_run(correct, guesses, n, epsilon, delta):
    """Theorem 5.2 of arXiv 2305.08846 with sums written out."""
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(guesses, k) * p**k * (1 - p) ** (guesses - k) for k in range(guesses + 1)]

    def at_least(v):
        return math.fsum(mass[max(v, 0) :])

    here = at_least(correct)
    worst = max(((at_least(correct - i) - here) / i for i in range(1, n + 1)), default=0.0)
    return min(1.0, here + 2 * n * delta * max(worst, 0.0))


@settings(deadline=None)
@given(
    st.integers(1, 60),
    st.data(),
    st.floats(0, 4),
    st.sampled_from([0.0, 1e-6, 1e-3, 0.05]),
    st.integers(0, 40),
)
def test_one_run_p_value(guesses, data, epsilon, delta, more):
    correct = data.draw(st.integers(0, guesses))
    found = one_run_p_value(correct, guesses, guesses + more, epsilon, delta)
    assert abs(found - naive_one_run(correct, guesses, guesses + more, epsilon, delta)) < 1e-12


def test_one_run_p_value_large():
    assert one_run_p_value(5300, 6000, 10000, 1.5, 1e-5) == pytest.approx(
        naive_large(5300, 6000, 10000, 1.5, 1e-5), abs=1e-12
    )
    assert one_run_p_value(0, 0, 10, 1.0, 0.1) == 1.0


def naive_large(correct, guesses, n, epsilon, delta):
    p = 1 / (1 + math.exp(-epsilon))
    tail = stats.binom.sf(np.arange(-1, guesses), guesses, p)
    i = np.arange(1, correct + 1)
    return min(1.0, tail[correct] + 2 * n * delta * np.max((tail[correct - i] - tail[correct]) / i))


@pytest.mark.parametrize("delta", [0.0, 1e-5])
def test_the_bound_is_the_root_of_its_p_value(delta):
    scores, included = shifted(1.5)
    for rule in (Explicit(1.5), Explicit(1.5, -0.5), Split(), Bonferroni()):
        bound = epsilon_one_run(scores, included, delta=delta, threshold=rule)
        sets = guesses_of(rule, scores, included, 0.05)
        roots = []
        for one in sets:
            grid = np.linspace(0, 8, 401)
            p = [one_run_p_value(one.correct, one.total, one.n, e, delta) for e in grid]
            roots.append(grid[np.searchsorted(p, one.level) - 1] if p[0] <= one.level else 0.0)
        assert bound.epsilon == pytest.approx(max(roots), abs=0.021)
        exact = max(
            one_run_p_value(one.correct, one.total, one.n, bound.epsilon + 2e-5, delta) - one.level
            for one in sets
            if (one.total, one.correct) == (bound.guesses, bound.correct)
        )
        assert exact > 0  # 2e-5 further up it is no longer refuted


# -- weighed guesses ---


@pytest.mark.parametrize("epsilon", [1e-12, 1e-9, 1e-7, 1e-5, 1e-3])
def test_weighted_p_value_of_coins_that_are_almost_fair(epsilon):
    p = 1 / (1 + math.exp(-epsilon))
    assert weighted_p_value(np.array([1]), np.array([True]), epsilon) == pytest.approx(p, abs=1e-15)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.data(), st.floats(0, 3), st.integers(0, 2))
def test_weighted_p_value_by_enumeration(weights, data, epsilon, slack):
    right = np.array(data.draw(st.lists(st.booleans(), min_size=len(weights), max_size=len(weights))))
    p, w = 1 / (1 + math.exp(-epsilon)), np.array(weights)
    reached = w[right].sum() - slack * w.max()
    expected = math.fsum(
        math.prod(p if head else 1 - p for head in coins)
        for coins in itertools.product([0, 1], repeat=len(weights))
        if np.dot(coins, w) >= reached
    )
    assert abs(weighted_p_value(w, right, epsilon, slack) - expected) < 1e-12


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 6.0])
def test_weighted_p_value_where_only_a_window_is_computed(epsilon):
    rng = np.random.default_rng(0)
    w, p = rng.integers(1, 13, 3000), 1 / (1 + math.exp(-epsilon))
    mass = np.array([1.0])
    for weight, count in zip(*np.unique(w, return_counts=True), strict=True):
        step = np.zeros(weight * count + 1)
        step[::weight] = stats.binom.pmf(np.arange(count + 1), count, p)
        mass = np.convolve(mass, step)
    right = rng.random(3000) < p
    assert len(mass) > 15000
    assert weighted_p_value(w, right, epsilon) == pytest.approx(mass[w[right].sum() :].sum(), abs=1e-11)


def test_equal_weights_count():
    right = np.arange(40) < 31
    counted = stats.binom.sf(30, 40, 1 / (1 + math.exp(-0.7)))
    assert weighted_p_value(np.full(40, 7), right, 0.7) == pytest.approx(counted, abs=1e-13)


@pytest.mark.parametrize(("n", "delta"), [(1000, 1e-5), (5000, 1e-5), (300, 1e-3), (100, 0.2), (100, 0.0)])
def test_delta_is_paid_from_the_error(n, delta):
    slack, left = delta_slack(n, delta, 0.05)
    assert left + n * delta / (slack + 1) == pytest.approx(0.05)
    assert n * delta / (slack + 1) <= 0.25 * 0.05 + 1e-12
    assert slack == 0 or n * delta / slack > 0.25 * 0.05


def test_a_mechanism_that_fails_with_delta():
    """All coins are shown with probability delta, and noise otherwise: (0, delta)-DP for the whole release."""
    delta, wrong = 0.02, 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        included = rng.random(80) < 0.5
        scores = included + 0.0 if rng.random() < delta else rng.random(80)
        wrong += epsilon_one_run(scores, included, delta=delta).epsilon > 0
    assert wrong / 600 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)


# -- trade-off curves ---


def test_f_dp_with_perfect_privacy_is_a_binomial_test_at_least():
    # with f the identity the recursion cannot be sharper than the truth
    for correct in range(30, 61):
        refuted = f_dp_refutes(lambda y: y, correct, 60, 60, 0.05)
        assert not refuted or stats.binom.sf(correct - 1, 60, 0.5) <= 0.05
    assert f_dp_refutes(lambda y: y, 45, 60, 60, 0.05)


def naive_recursion(inverse, correct, guesses, n, level):
    """The masses q_j that the recursion implies, written out: refuted if they come to more than 1."""
    q = {correct: level}
    r, h = level * correct / n, level * (guesses - correct) / n
    for i in range(correct - 1, -1, -1):
        least = max(h, inverse(r))
        q[i] = (least - h) * n / (guesses - i)
        r, h = r + i * q[i] / n, least
    return math.fsum(q.values()) > 1.0


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 80), st.data(), st.floats(0, 3), st.sampled_from([0.0, 1e-5, 1e-2]), st.integers(0, 50))
def test_f_dp_recursion(guesses, data, epsilon, delta, more):
    correct = data.draw(st.integers(1, guesses))

    def inverse(y):
        # f is the larger of two lines and 0: read the inverse of 1 - f off a bisection
        low, high = 0.0, 1.0
        for _ in range(60):
            x = (low + high) / 2
            f = max(0.0, 1 - delta - math.exp(epsilon) * x, math.exp(-epsilon) * (1 - delta - x))
            low, high = (x, high) if 1 - f < y else (low, x)
        return low if y > delta else 0.0

    direct = f_dp_refutes(inverse, correct, guesses, guesses + more, 0.05)
    assert direct == naive_recursion(inverse, correct, guesses, guesses + more, 0.05)


def test_the_gaussian_curve_needs_no_independence():
    scores, included = shifted(1.0, 1000)
    free = epsilon_f_dp(scores, included, delta=DELTA)
    gaussian = epsilon_f_dp(scores, included, delta=DELTA, curve="gaussian")
    independent = epsilon_gdp(scores, included, delta=DELTA)
    assert free.epsilon < gaussian.epsilon < independent.epsilon < gaussian_epsilon(1.0, DELTA)
    assert free.assumption.startswith("none") and "Gaussian" in gaussian.assumption


@settings(deadline=None)
@given(st.floats(0.1, 4), st.floats(0, 6))
def test_gaussian_delta(mu, epsilon):
    # hockey-stick divergence of N(mu, 1) from N(0, 1), by quadrature from where the integrand begins
    start = epsilon / mu + mu / 2
    expected, _ = integrate.quad(
        lambda x: stats.norm.pdf(x - mu) - math.exp(epsilon) * stats.norm.pdf(x),
        start,
        start + 12,
        epsabs=1e-13,
    )
    assert gaussian_delta(mu, epsilon) == pytest.approx(expected, abs=1e-10)


@settings(deadline=None)
@given(st.floats(0.05, 5), st.sampled_from([1e-8, 1e-5, 1e-2]))
def test_gaussian_epsilon_inverts(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    assert epsilon == 0.0 or gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-6)


def test_pairs_in_order_by_simulation():
    rng = np.random.default_rng(0)
    for mu in (0.0, 1.0, 2.5):
        area = []
        for _ in range(4000):
            x, y = rng.normal(mu, 1, 60), rng.normal(0, 1, 45)
            area.append(np.mean(np.searchsorted(np.sort(y), x)) / 45)
        area = np.sort(area)
        for level in (0.01, 0.05, 0.2):
            cut = area[int((1 - level) * 4000)]
            assert 0.7 * level < gdp_p_value(cut, 60, 45, mu) < 4 * level  # errs upward where it is skewed


def test_separated_samples_do_not_certify_the_impossible():
    included = np.arange(60) < 30
    bound = epsilon_gdp(included + np.arange(60) / 100, included, delta=DELTA)
    assert bound.epsilon == bound.largest < 30
    low = 0.0
    rng = np.random.default_rng(0)
    hits = [np.min(rng.normal(4.6, 1, 30)) > np.max(rng.normal(0, 1, 30)) for _ in range(4000)]
    assert 0.02 < np.mean(hits) < 0.98  # mu = 4.6 separates 30 from 30 often: no bound may exceed it
    assert low < bound.epsilon < gaussian_epsilon(4.6, DELTA)


# -- rates ---


def test_clopper_pearson_by_hand():
    low = stats.beta.ppf(0.025, 90, 11)
    high = stats.beta.ppf(0.975, 6, 95)
    assert clopper_pearson_epsilon(90, 100, 5, 100, 1e-3, 0.05) == pytest.approx(
        math.log((low - 1e-3) / high), abs=1e-9
    )
    assert clopper_pearson_epsilon(5, 100, 50, 100, 0.0, 0.05) == 0.0
    scores = np.array([2.0] * 90 + [0.0] * 10 + [2.0] * 5 + [0.0] * 95)
    bound = epsilon_clopper_pearson(scores, np.arange(200) < 100, delta=1e-3, threshold=Explicit(1.0))
    assert bound.epsilon == pytest.approx(math.log((low - 1e-3) / high), abs=1e-9)
    assert (bound.guesses, bound.correct) == (95, 90)


# -- rules ---


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_order_is_all_that_counts(seed, levels):
    rng = np.random.default_rng(seed)
    included = rng.random(120) < 0.5
    scores = np.round(rng.normal(size=120) + 1.5 * included, 0 if levels < 4 else 6)
    turn = rng.permutation(120)
    for bound in (epsilon_one_run, epsilon_f_dp, epsilon_gdp, epsilon_clopper_pearson):
        plain = bound(scores, included, delta=DELTA)
        for other in (
            bound(np.exp(scores) * 3, included, delta=DELTA),
            bound(scores[turn], included[turn], delta=DELTA),
        ):
            assert other.epsilon == pytest.approx(plain.epsilon, abs=1e-6)
            assert (other.guesses, other.correct) == (plain.guesses, plain.correct)


def test_equal_scores_are_treated_alike():
    included = np.arange(200) % 2 == 0
    for bound in BOUNDS:
        assert bound(np.zeros(200), included, delta=DELTA).epsilon == 0.0
    two = epsilon_one_run(included + 0.0, included, delta=0.0)
    assert two.epsilon == pytest.approx(two.largest) and two.correct == two.guesses == 200
    for one in guesses_of(Bonferroni(), np.repeat([0.0, 1.0, 2.0], [120, 40, 40]), included, 0.05):
        values = [set(one.guess[part].tolist()) for part in (slice(0, 120), slice(120, 160), slice(160, 200))]
        assert all(len(found) == 1 for found in values)
    np.testing.assert_allclose(mid_ranks(np.array([5.0, 5.0, 1.0])), [2 / 3, 2 / 3, 1 / 6])


def test_split_does_not_use_the_labels_twice():
    scores, included = shifted(0.0, 400)
    (one,) = guesses_of(Split(0.4, seed=3), scores, included, 0.05)
    assert one.n == 240 and one.usable.sum() == 240 and not one.guess[~one.usable].any()
    flipped = np.where(one.usable, ~included, included)
    (other,) = guesses_of(Split(0.4, seed=3), scores, flipped, 0.05)
    assert np.array_equal(one.guess, other.guess) and one.correct + other.correct == one.total


def test_largest_is_what_perfect_guesses_give():
    included = np.random.default_rng(0).permutation(np.arange(1000) < 500)
    for bound in (epsilon_one_run, epsilon_f_dp, epsilon_clopper_pearson):
        for rule in (Explicit(0.5, 0.5), Bonferroni((1.0,), ("both",))):
            found = bound(included + 0.0, included, delta=0.0, threshold=rule)
            assert found.epsilon == pytest.approx(found.largest, abs=1e-4)
    counted = epsilon_one_run(included + 0.0, included, delta=0.0, threshold=Explicit(0.5, 0.5))
    assert counted.largest == pytest.approx(-math.log(0.05 ** (-1 / 1000) - 1), abs=1e-5)  # 5.81
    assert all(f(*shifted(1.0), delta=DELTA).epsilon < f(*shifted(1.0), delta=DELTA).largest for f in BOUNDS)


def test_one_ended_leaks_are_found():
    rng = np.random.default_rng(0)
    included = rng.random(1000) < 0.5
    scores = rng.normal(size=1000) + 6 * (
        included & (rng.random(1000) < 0.2)
    )  # only some included canaries show
    both = epsilon_one_run(scores, included, delta=DELTA, threshold=Weighted(1.0, 0.0, 0.0))
    assert epsilon_one_run(scores, included, delta=DELTA).epsilon > max(both.epsilon, 1.5)
    assert epsilon_one_run(-scores, ~included, delta=DELTA).epsilon > 1.5


# -- looks ---


def test_spending_adds_up():
    for horizon in (None, 1, 2, 50):
        total = math.fsum(spending(t, horizon) for t in range(1, 20001))
        assert 0.999 < total <= 1 + 1e-12


def test_looks_one_by_one_and_as_a_table():
    rng = np.random.default_rng(0)
    included = rng.random(500) < 0.5
    table = rng.normal(size=(8, 500)) + np.linspace(0, 2, 8)[:, None] * included
    whole = epsilon_sequential(table, included, delta=DELTA, horizon=6)
    bounds = SequentialEpsilon(delta=DELTA, horizon=6)
    assert [bounds.look(row, included).epsilon for row in table] == [b.epsilon for b in whole]
    assert [b.epsilon for b in whole] == sorted(b.epsilon for b in whole) and whole[-1].epsilon > 1
    last = epsilon_one_run(table[5], included, delta=DELTA)
    assert (
        0.75 * last.epsilon < whole[5].epsilon <= last.epsilon + 1e-6 or whole[4].epsilon == whole[5].epsilon
    )
    with pytest.raises(MemguardError, match="first look"):
        bounds.look(table[0], ~included)


@pytest.mark.parametrize("audit", [epsilon_f_dp, epsilon_gdp, epsilon_clopper_pearson])
def test_looks_with_another_audit(audit):
    scores, included = shifted(2.0)
    (bound,) = epsilon_sequential(scores[None], included, delta=DELTA, horizon=1, audit=audit)
    assert bound.epsilon == audit(scores, included, delta=DELTA, confidence=1 - 0.05 * 0.9).epsilon > 0
    assert bound.confidence == 0.95


# -- honesty, small; benchmarks.validity has the large runs ---


@pytest.mark.parametrize("bound", BOUNDS)
def test_null(bound):
    wrong = 0
    for seed in range(300):
        wrong += bound(*shifted(0.0, 200, seed), delta=DELTA).epsilon > 0
    assert wrong <= 300 * 0.05 + 2.5 * math.sqrt(300 * 0.05 * 0.95)


@pytest.mark.parametrize("bound", [epsilon_one_run, epsilon_f_dp, epsilon_clopper_pearson])
def test_randomized_response(bound):
    wrong = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        included = rng.random(200) < 0.5
        said = np.where(rng.random(200) < math.e / (1 + math.e), included, ~included)
        wrong += bound(said + 0.1 * rng.random(200), included, delta=0.0).epsilon > 1
    assert wrong <= 300 * 0.05 + 2.5 * math.sqrt(300 * 0.05 * 0.95)


# -- bad input ---


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("scores", "included", "change", "words"),
    [
        ([1.0, math.nan, math.inf, 0.0], [0, 1, 0, 1], {}, "2 of 4 values in scores"),
        ([1.0, 2.0], [1, 1], {}, "no non-members"),
        ([1.0, 2.0], [0, 1, 1], {}, "included has shape"),
        ([[1.0, 2.0]], [0, 1], {}, "scores has shape"),
        ([1.0, 2.0], [0, 1], {"delta": 1.0}, "delta = 1.0"),
        ([1.0, 2.0], [0, 1], {"delta": -0.1}, "delta = -0.1"),
        ([1.0, 2.0], [0, 1], {"confidence": 1.0}, "confidence = 1.0"),
        ([1.0, 2.0], [0, 3], {}, "neither 0 nor 1"),
    ],
)
def test_bad_input(bound, scores, included, change, words):
    with pytest.raises(MemguardError, match=words):
        bound(scores, included, **{"delta": DELTA, **change})


def test_unfair_coins_are_refused_where_they_matter():
    scores, included = np.arange(200.0), np.arange(200) >= 160
    for bound in (epsilon_one_run, epsilon_f_dp):
        with pytest.raises(MemguardError, match="40 of 200 canaries were included"):
            bound(scores, included, delta=DELTA)
    for bound in (epsilon_gdp, epsilon_clopper_pearson):
        assert bound(scores, included, delta=DELTA).epsilon > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda s, i: epsilon_one_run(s, i, delta=DELTA, threshold=0.5),
        lambda s, i: epsilon_one_run(s, i, delta=DELTA, threshold=Explicit(0.0, 1.0)),
        lambda s, i: epsilon_one_run(s, i, delta=DELTA, threshold=Explicit(math.nan)),
        lambda s, i: epsilon_one_run(s, i, delta=DELTA, threshold=Bonferroni((0.5, 1.5))),
        lambda s, i: epsilon_one_run(s, i, delta=DELTA, threshold=Bonferroni(sides=("up",))),
        lambda s, i: epsilon_one_run(s, i, delta=DELTA, threshold=Weighted(0.5, 0.0, 0.0)),
        lambda s, i: epsilon_one_run(s, i, delta=DELTA, threshold=Split(0.999)),
        lambda s, i: epsilon_f_dp(s, i, delta=DELTA, threshold=Weighted()),
        lambda s, i: epsilon_f_dp(s, i, delta=DELTA, curve="laplace"),
        lambda s, i: epsilon_f_dp(s, i, delta=0.0, curve="gaussian"),
        lambda s, i: epsilon_gdp(s, i, delta=0.0),
        lambda s, i: epsilon_sequential(s, i, delta=DELTA),
        lambda s, i: epsilon_sequential(s[None], i, delta=DELTA, horizon=0),
    ],
)
def test_bad_settings(make):
    with pytest.raises(MemguardError):
        make(*shifted(1.0))


def test_the_bound_speaks():
    bound = epsilon_one_run(*shifted(2.0), delta=DELTA)
    assert isinstance(bound, EpsilonBound) and "epsilon >= " in str(bound) and "600 canaries" in str(bound)
