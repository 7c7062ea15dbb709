"""Epsilon from the rates of an attack, with exact binomial limits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from memguard.attacks.epsilon._coins import canaries
from memguard.attacks.epsilon.bound import EpsilonBound
from memguard.attacks.epsilon.thresholds import Bonferroni, Guesses, Rule, guesses_of

__all__ = ["clopper_pearson_epsilon", "epsilon_clopper_pearson"]


def epsilon_clopper_pearson(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    threshold: Rule | None = None,
) -> EpsilonBound:
    """Lower bound on epsilon from true- and false-positive rates, for scores that are independent of each other.

    (epsilon, delta)-DP bounds every attack by TPR <= exp(epsilon) FPR + delta, and the same for the rates of the other
    answer. A Clopper-Pearson limit from below for the one rate and from above for the other, each with half of the
    error, give the bound. It is the classic audit of many runs with one canary each; the scores of many canaries in
    one run are independent only by assumption, which `epsilon_one_run` does not need.

    Args:
        scores: ``(m,)``, larger = more likely included.
        included: ``(m,)`` booleans; the coins need not be fair.
        delta: Of the claim, in [0, 1).
        confidence: Of the bound.
        threshold: `Bonferroni` (the default), `Split` or `Explicit`. A canary that is guessed in counts as positive,
            one that is guessed out as negative, and one without a guess as neither.

    Raises:
        MemguardError: for NaN or infinite scores, wrong shapes, a missing class, delta outside [0, 1) or confidence
            outside (0, 1).

    Guarantees:
        With independent scores the bound exceeds the true epsilon with probability at most 1 - ``confidence``.

    References:
        Nasr et al. 2021, arXiv 2101.04535, section IV; Kairouz, Oh and Viswanath, arXiv 1311.0776, Theorem 2.1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> included = rng.random(1000) < 0.5
        >>> bound = epsilon_clopper_pearson(rng.normal(size=1000) + 2 * included, included, delta=1e-5)
        >>> 2 < bound.epsilon < bound.largest
        True
    """
    values, truth = canaries(scores, included, delta, confidence, coins=False)
    rule = Bonferroni() if threshold is None else threshold
    sets = guesses_of(rule, values, truth, 1.0 - confidence)
    usable = sets[0].usable  # labels that the choice has seen do not count
    best, decisive = 0.0, max(sets, key=lambda one: one.total)
    for one in sets:
        found = _bound(one, truth, usable, delta)
        if found > best:
            best, decisive = found, one
    inside = int(truth[usable].sum())
    largest = clopper_pearson_epsilon(inside, inside, 0, int(usable.sum()) - inside, delta, sets[0].level)
    return EpsilonBound(
        epsilon=best,
        delta=delta,
        confidence=confidence,
        n=len(values),
        guesses=decisive.total,
        correct=decisive.correct,
        largest=max(largest, best),
        method="Clopper-Pearson",
        assumption="the scores of the canaries are independent",
        threshold=rule.describe(),
    )


def clopper_pearson_epsilon(
    hits: int, inside: int, false: int, outside: int, delta: float, level: float
) -> float:
    """log((TPR - delta) / FPR) with the lower limit of the one and the upper limit of the other; 0 if negative.

    Args:
        hits: Canaries of the first kind with this answer.
        inside: Canaries of the first kind.
        false: Canaries of the second kind with this answer.
        outside: Canaries of the second kind.
        delta: Of the claim.
        level: Error, halved between the two limits.

    Example:
        >>> round(clopper_pearson_epsilon(50, 100, 1, 100, 0.0, 0.05), 3)
        1.99
    """
    if hits == 0 or outside == 0:
        return 0.0
    low = float(special.betaincinv(hits, inside - hits + 1.0, level / 2))
    high = (
        1.0 if false == outside else float(special.betaincinv(false + 1.0, outside - false, 1.0 - level / 2))
    )
    return max(0.0, math.log((low - delta) / high)) if low > delta else 0.0


def _bound(one: Guesses, truth: np.ndarray, usable: np.ndarray, delta: float) -> float:
    inside, outside = int((truth & usable).sum()), int((~truth & usable).sum())
    bounds = []
    for answer, first, n_first, second, n_second in (
        (1, truth, inside, ~truth, outside),
        (-1, ~truth, outside, truth, inside),
    ):
        said = (one.guess == answer) & usable
        hits, false = int((said & first).sum()), int((said & second).sum())
        bounds.append((hits, n_first, false, n_second))
    # Without abstentions the two answers rest on the same two limits; with them, on two each.
    four = all(hits + false for hits, _, false, _ in bounds) and one.total < inside + outside
    level = one.level / (2 if four else 1)
    return max(clopper_pearson_epsilon(*found, delta, level) for found in bounds)
