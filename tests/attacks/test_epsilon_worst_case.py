"""The bound from weighed guesses against every mechanism there is, for a few canaries, as a linear program.

The audit sees the order of the scores alone, so a mechanism is a probability of each order of the canaries (ties are
blocks) for each outcome of the coins. The audit treats canaries alike, and to average a mechanism over all names of the
canaries leaves it (epsilon, delta)-DP and does not change how often it fools the audit. So it is enough to know, for k
coins that show "in" and each order, the probability b(order, ones in each block). A certain canary that is out stands
in block j with probability (n_j - k_j) / (m - k), one that is in with k_j / k; to flip its coin moves it from one kind
of state to the other, and (epsilon, delta)-DP bounds the sum of the parts of (one - exp(epsilon) other) that are
positive. The largest probability of a false claim is then the optimum of a linear program: exact, over all mechanisms.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, sparse, stats

from memguard.attacks import Weighted
from memguard.attacks.epsilon.weighted import best_side, delta_slack, weighted_p_value

EXACT = 1e-7  # of the solver


def orders(m, ties):
    """Sizes of the blocks of equal scores, lowest first."""
    if not ties:
        return [(1,) * m]
    cuts = itertools.product([False, True], repeat=m - 1)
    return [tuple(np.diff([0, *(np.flatnonzero(cut) + 1), m]).tolist()) for cut in cuts]


def worst_case(m, epsilon, delta, outcomes, claims):
    """Largest probability of a claim over all (epsilon, delta)-DP mechanisms.

    ``outcomes`` are pairs (name, sizes of blocks), ``claims`` is asked about a name, the sizes and the ones in each.
    """
    states = [
        (name, sizes, ones)
        for name, sizes in outcomes
        for ones in itertools.product(*(range(n + 1) for n in sizes))
    ]
    index = {(name, sizes, ones): i for i, (name, sizes, ones) in enumerate(states)}
    inside = np.array([sum(ones) for _, _, ones in states])
    out, into, share_out, share_in = [], [], [], []
    for (name, sizes, ones), i in index.items():
        for j, n in enumerate(sizes):
            if ones[j] < n:
                out.append(i)
                into.append(index[name, sizes, (*ones[:j], ones[j] + 1, *ones[j + 1 :])])
                share_out.append((n - ones[j]) / (m - inside[i]))
                share_in.append((ones[j] + 1) / (inside[i] + 1))
    k, flips, size = inside[out], np.arange(len(out)), len(states)
    shape, up = (len(out), size), math.exp(epsilon)
    before = sparse.coo_matrix((share_out, (flips, out)), shape)
    after = sparse.coo_matrix((share_in, (flips, into)), shape)
    unit, none = sparse.identity(len(out)), sparse.coo_matrix((len(out), len(out)))
    per_k = sparse.coo_matrix((np.ones(len(out)), (k, flips)), (m, len(out)))
    nothing, empty = sparse.coo_matrix((m, size)), sparse.coo_matrix((m, len(out)))
    rows = sparse.bmat(
        [
            [before - up * after, -unit, none],
            [after - up * before, none, -unit],
            [nothing, per_k, empty],
            [nothing, empty, per_k],
        ]
    )
    limit = np.concatenate([np.zeros(2 * len(out)), np.full(2 * m, delta)])
    whole = sparse.coo_matrix((np.ones(size), (inside, np.arange(size))), (m + 1, size + 2 * len(out)))
    coins = stats.binom.pmf(inside, m, 0.5)
    gain = np.array([p if claims(*state) else 0.0 for p, state in zip(coins, states, strict=True)])
    found = optimize.linprog(
        np.concatenate([-gain, np.zeros(2 * len(out))]), rows.tocsr(), limit, whole.tocsr(), np.ones(m + 1)
    )
    assert found.status == 0, found.message
    return -found.fun


def false_claim(epsilon, left, slack, rule):
    def claims(_, sizes, ones):
        scores = np.repeat(np.arange(len(sizes), dtype=float), sizes)
        included = np.concatenate([np.arange(n) < k for n, k in zip(sizes, ones, strict=True)])
        return best_side(scores, included, left, rule, slack)[0] > epsilon

    return claims


CASES = [  # canaries, ties, epsilon, delta, error
    (5, True, 0.0, 0.05, 0.05),
    (5, True, 0.0, 0.1, 0.05),
    (5, True, 0.0, 0.05, 0.8),
    (5, True, 0.0, 0.009, 0.1876),  # six of 32 outcomes, and delta paid without any slack
    (5, True, 0.5, 0.005, 0.4),
    (4, True, 1.0, 0.1, 0.8),
    (8, False, 0.0, 0.01, 0.5),
    (8, False, 0.3, 0.02, 0.8),
    pytest.param(10, False, 0.0, 0.01, 0.5, marks=pytest.mark.slow),
    pytest.param(10, False, 0.3, 0.02, 0.8, marks=pytest.mark.slow),
    pytest.param(6, True, 0.0, 0.02, 0.4, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("rule", [Weighted(1.0, 0.0, 0.0), Weighted()], ids=["both ends", "all ends"])
@pytest.mark.parametrize(("m", "ties", "epsilon", "delta", "level"), CASES)
def test_no_mechanism_is_wronged_more_often_than_stated(m, ties, epsilon, delta, level, rule):
    slack, left = delta_slack(m, delta, level)
    outcomes = [("", sizes) for sizes in orders(m, ties)]
    assert worst_case(m, epsilon, delta, outcomes, false_claim(epsilon, left, slack, rule)) <= level + EXACT


@pytest.mark.parametrize("delta", [0.05, 0.1])
def test_without_payment_for_delta_some_mechanism_would_be(delta):
    outcomes = [("", sizes) for sizes in orders(5, True)]
    for rule in (Weighted(1.0, 0.0, 0.0), Weighted()):
        assert worst_case(5, 0.0, delta, outcomes, false_claim(0.0, 0.05, 0, rule)) > 0.05 + 0.02


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_all_coins_shown_with_probability_delta_is_among_the_mechanisms(epsilon):
    """The program against a mechanism by hand: all in order with probability delta, randomized response otherwise."""
    m, delta, p = 4, 0.03, 1 / (1 + math.exp(-epsilon))

    def all_right(_, sizes, ones):
        return len(sizes) <= 2 and all(k in (0, n) for k, n in zip(ones, sizes, strict=True)) and ones[-1] > 0

    outcomes = [("", sizes) for sizes in orders(m, True)]
    found = worst_case(m, epsilon, delta, outcomes, all_right)
    by_hand = ((1 - delta) * p**m + delta) * (1 - 0.5**m)  # coins that are all out are no claim here
    assert by_hand <= found + EXACT
    assert worst_case(m, epsilon, 0.0, outcomes, all_right) < found - delta / 2


@pytest.mark.parametrize(
    ("weights", "reached", "slack"),
    [((2, 1, 0, 0, 0, 1, 2), 4, 0), ((1,) * 7, 6, 0), ((1,) * 7, 5, 1), ((3, 2, 1, 0, 1, 2, 3), 6, 1)],
)
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (0.0, 0.02), (0.0, 0.1), (1.0, 0.05)])
def test_the_inequality_with_weights_fixed_beforehand(weights, reached, slack, epsilon, delta):
    w = np.array(weights)

    def claims(_, sizes, ones):
        return w[right(ones)].sum() >= reached + slack * w.max()

    def right(ones):
        return np.where(np.arange(7) > 3, np.array(ones) == 1, np.array(ones) == 0)

    p = 1 / (1 + math.exp(-epsilon))
    coins = list(itertools.product([0, 1], repeat=7))
    tail = math.fsum(p ** sum(c) * (1 - p) ** (7 - sum(c)) for c in coins if np.dot(c, w) >= reached)
    exactly = next(np.array(c, bool) for c in coins if np.dot(c, w) == reached)
    assert weighted_p_value(w, exactly, epsilon) == pytest.approx(tail, abs=1e-12)
    found = worst_case(7, epsilon, delta, [("", (1,) * 7)], claims)
    assert found <= tail + 7 * delta / (slack + 1) + EXACT
    if slack == 0 and epsilon == 0 and delta > 0:
        assert found > tail + 0.1 * delta  # delta is of use to a mechanism


@pytest.mark.parametrize(("delta", "level"), [(0.0, 0.4), (0.02, 0.4), (0.05, 0.8)])
def test_two_looks_pay_for_delta_once(delta, level):
    """The mechanism releases two orders of its choice, as they depend on the same coins."""
    m, rule = 4, Weighted(1.0, 0.0, 0.0)
    slack, left = delta_slack(m, delta, level)
    one_look = false_claim(0.0, left / 2, slack, rule)

    def either(second, sizes, ones):
        return one_look("", sizes, ones) or one_look("", sizes, tuple(ones[i] for i in second))

    outcomes = [(second, (1,) * m) for second in itertools.permutations(range(m))]
    assert 0.1 < worst_case(m, 0.0, delta, outcomes, either) <= level + EXACT
