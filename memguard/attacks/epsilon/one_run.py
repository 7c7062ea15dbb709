"""Epsilon from one training run: how many inclusions can be guessed (Steinke, Nasr and Jagielski, arXiv 2305.08846)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from memguard.attacks._checks import Floats
from memguard.attacks.epsilon._coins import canaries
from memguard.attacks.epsilon._search import best_of, refuted
from memguard.attacks.epsilon.bound import EpsilonBound
from memguard.attacks.epsilon.thresholds import Rule, guesses_of
from memguard.attacks.epsilon.weighted import Weighted, best_side, delta_slack

__all__ = ["all_right", "epsilon_one_run", "one_run_p_value", "weighted_bound"]


def epsilon_one_run(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    threshold: Weighted | Rule | None = None,
) -> EpsilonBound:
    """Lower bound on epsilon from one run with canaries, without any assumption on the mechanism or the scores.

    Each of m canaries was put into the training set by a fair coin of its own. From the scores one guesses, for some
    of them, how the coin fell. Under (epsilon, delta)-DP the right guesses are, up to the delta term, stochastically
    dominated by independent coins that show heads with probability 1 / (1 + exp(-epsilon)); too many right guesses
    refute it.

    Args:
        scores: ``(m,)``, larger = more likely included.
        included: ``(m,)`` booleans, how the coins fell.
        delta: Of the claim, in [0, 1).
        confidence: Of the bound.
        threshold: `Weighted` (the default) weighs guesses by how extreme their scores are; `Bonferroni`, `Split` and
            `Explicit` count right guesses, as in the paper.

    Returns:
        The bound, for the release of everything that the scores were computed from.

    Raises:
        MemguardError: for NaN or infinite scores, wrong shapes, a missing class, coins that cannot have been fair,
            delta outside [0, 1) or confidence outside (0, 1).

    Guarantees:
        If training is (epsilon', delta)-DP with one canary as the unit, the bound exceeds epsilon' with probability at
        most 1 - ``confidence``, whatever the scores. The unit matters: canary records say nothing about patients who
        have several. A bound of 0 does not show that nothing leaks.

    References:
        arXiv 2305.08846, Theorem 5.2 and Algorithm 1. The proof for `Weighted` stands at the head of
        `memguard.attacks.epsilon.weighted`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> included = rng.random(1000) < 0.5
        >>> bound = epsilon_one_run(rng.normal(size=1000) + 2 * included, included, delta=1e-5)
        >>> 2 < bound.epsilon < bound.largest
        True
    """
    values, truth = canaries(scores, included, delta, confidence, coins=True)
    rule = Weighted() if threshold is None else threshold
    level = 1.0 - confidence
    if isinstance(rule, Weighted):
        slack, left = delta_slack(len(values), delta, level)
        return weighted_bound(values, truth, delta, confidence, rule, slack, left)
    sets = guesses_of(rule, values, truth, level)
    epsilon, decisive = best_of(sets, lambda one, e: one_run_p_value(one.correct, one.total, one.n, e, delta))
    return EpsilonBound(
        epsilon=epsilon,
        delta=delta,
        confidence=confidence,
        n=len(values),
        guesses=decisive.total,
        correct=decisive.correct,
        largest=max(all_right(sets[0].n, sets[0].level, delta), epsilon),
        method="one run",
        assumption="none beside fair coins",
        threshold=rule.describe(),
    )


def weighted_bound(
    scores: Floats,
    included: NDArray[np.bool_],
    delta: float,
    confidence: float,
    rule: Weighted,
    slack: int,
    left: float,
    above: float = 0.0,
) -> EpsilonBound:
    """The bound from weighed guesses, of one test among those that share the payment for delta.

    Args:
        scores: ``(m,)``, checked.
        included: ``(m,)``.
        delta: Of the claim.
        confidence: To be stated.
        rule: How the sides share the error.
        slack: Canaries that delta may give away.
        left: Error that this test may spend, delta paid.
        above: Only a larger bound is of interest; less work is done where there is none.
    """
    epsilon, guesses, correct = (
        best_side(scores, included, left, rule, slack, above) if left > 0 else (0.0, 0, 0)
    )
    possible = left > 0 and len(scores) > slack
    largest = all_right(len(scores) - slack, left * rule.sides()[0][1], 0.0) if possible else 0.0
    return EpsilonBound(
        epsilon=epsilon,
        delta=delta,
        confidence=confidence,
        n=len(scores),
        guesses=guesses,
        correct=correct,
        largest=max(largest, epsilon),
        method="one run",
        assumption="none beside fair coins",
        threshold=rule.describe(),
    )


def one_run_p_value(correct: int, guesses: int, n: int, epsilon: float, delta: float) -> float:
    """Probability, at most, of so many right guesses if the mechanism is (epsilon, delta)-DP.

    With W binomial(guesses, 1 / (1 + exp(-epsilon))) and f(v) = P(W >= v), it is f(correct) + 2 n delta max over i >= 1
    of (f(correct - i) - f(correct)) / i (arXiv 2305.08846, Theorem 5.2).

    Args:
        correct: Right guesses.
        guesses: Guesses, right or wrong.
        n: Canaries, those without a guess too.
        epsilon: Of the claim that is tested, at least 0.
        delta: Of the claim.

    Example:
        >>> round(one_run_p_value(9, 10, 20, 0.0, 0.0), 6)  # 11 of 1024 outcomes of ten fair coins
        0.010742
    """
    if guesses == 0:
        return 1.0
    p = float(special.expit(epsilon))
    tail = float(_at_least(correct, guesses, p))
    if delta == 0.0:
        return tail
    worst, start = 0.0, 1
    while start <= correct and 1.0 / start > worst:  # no later i can exceed 1 / i
        i = np.arange(start, min(start + 255, correct) + 1)
        worst = max(worst, float(np.max((_at_least(correct - i, guesses, p) - tail) / i)))
        start = int(i[-1]) + 1
    return min(1.0, tail + 2.0 * n * delta * worst)


def _at_least(v: int | NDArray[np.int64], n: int, p: float) -> Any:
    """P(W >= v) for W binomial(n, p)."""
    return np.where(np.asarray(v) > 0, special.bdtrc(np.maximum(v, 1) - 1, n, p), 1.0)


@lru_cache(maxsize=256)
def all_right(n: int, level: float, delta: float) -> float:
    """What n canaries can certify: every one guessed on, every guess right."""
    return refuted(lambda e: one_run_p_value(n, n, n, e, delta), level)
