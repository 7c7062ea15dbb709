"""Epsilon from one run through the trade-off curve (Mahloujifar, Melis and Chaudhuri, arXiv 2410.22235)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from numpy.typing import ArrayLike
from scipy import special

from memguard.attacks.epsilon._coins import canaries
from memguard.attacks.epsilon._search import best_of, refuted
from memguard.attacks.epsilon.bound import EpsilonBound
from memguard.attacks.epsilon.curves import gaussian_epsilon
from memguard.attacks.epsilon.thresholds import Bonferroni, Rule, guesses_of
from memguard.errors import MemguardError

__all__ = ["epsilon_f_dp", "f_dp_refutes"]

Curve = Literal["epsilon-delta", "gaussian"]
_MOST = {"epsilon-delta": 40.0, "gaussian": 20.0}


def epsilon_f_dp(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    threshold: Rule | None = None,
    curve: Curve = "epsilon-delta",
) -> EpsilonBound:
    """Lower bound on epsilon from one run with canaries, by the recursion over trade-off curves.

    With ``curve="epsilon-delta"`` nothing is assumed. It pays less for delta than the counting theorem where there are
    many canaries. With ``curve="gaussian"`` the mechanism is assumed to be Gaussian-DP for some mu (its whole
    trade-off curve at least that of two unit normal distributions mu apart), and the lower bound on mu is turned into
    epsilon at ``delta``; unlike `epsilon_gdp` it needs no independence between canaries.

    Args:
        scores: ``(m,)``, larger = more likely included.
        included: ``(m,)`` booleans, how the coins fell.
        delta: Of the claim, in [0, 1).
        confidence: Of the bound.
        threshold: `Bonferroni` (the default), `Split` or `Explicit`.
        curve: The family of trade-off curves that is tested.

    Raises:
        MemguardError: for NaN or infinite scores, wrong shapes, a missing class, coins that cannot have been fair,
            delta outside [0, 1) or an unknown curve.

    Guarantees:
        As `epsilon_one_run`, for mechanisms of the tested family. Under ``curve="gaussian"`` a mechanism that is not
        Gaussian-DP can be given a bound above its epsilon.

    References:
        arXiv 2410.22235, Theorem 9 and Algorithm 3, for guesses on one of two values.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> included = rng.random(1000) < 0.5
        >>> bound = epsilon_f_dp(rng.normal(size=1000) + 2 * included, included, delta=1e-5)
        >>> 2 < bound.epsilon < bound.largest
        True
    """
    values, truth = canaries(scores, included, delta, confidence, coins=True)
    if curve not in _MOST:
        raise MemguardError(
            f"curve = {curve!r}",
            "no family of trade-off curves has that name",
            'pass "epsilon-delta" or "gaussian"',
        )
    rule = Bonferroni() if threshold is None else threshold
    sets = guesses_of(rule, values, truth, 1.0 - confidence)
    most = _MOST[curve]

    def p_value(correct: int, guesses: int, n: int, level: float, parameter: float) -> float:
        inverse = _inverse(curve, parameter, delta)
        return 0.0 if guesses and f_dp_refutes(inverse, correct, guesses, n, level) else 1.0

    found, decisive = best_of(
        sets, lambda one, x: p_value(one.correct, one.total, one.n, one.level, x), most=most
    )
    n = max(one.n for one in sets)
    largest = refuted(lambda x: p_value(n, n, n, sets[0].level, x), sets[0].level, most=most)
    gaussian = curve == "gaussian"
    return EpsilonBound(
        epsilon=gaussian_epsilon(found, delta) if gaussian else found,
        delta=delta,
        confidence=confidence,
        n=len(values),
        guesses=decisive.total,
        correct=decisive.correct,
        largest=gaussian_epsilon(max(largest, found), delta) if gaussian else max(largest, found),
        method="one run, f-DP",
        assumption="the mechanism is Gaussian-DP" if gaussian else "none beside fair coins",
        threshold=rule.describe(),
    )


def f_dp_refutes(inverse: Callable[[float], float], correct: int, guesses: int, n: int, level: float) -> bool:
    """Whether so many right guesses have a probability below ``level`` under a trade-off curve f.

    Let q_j be the probability of exactly j right guesses among c, r_i = sum over j >= i of j q_j / n and
    h_i = sum over j >= i of (c - j) q_j / n. The theorem says r_i <= 1 - f(h_(i-1)) for every i. Starting from
    P(at least ``correct``) = level, that gives the least h and r can be as i falls; if they come to more than
    r_0 + h_0 = c / n, the probability must be smaller.

    Args:
        inverse: Of x -> 1 - f(x).
        correct: Right guesses.
        guesses: c, guesses right or wrong.
        n: Canaries, those without a guess too.
        level: Of the test.

    Example:
        >>> f_dp_refutes(lambda y: y, 10, 10, 10, 0.05), f_dp_refutes(lambda y: y, 6, 10, 10, 0.05)  # perfect privacy
        (True, False)
    """
    r, h = level * correct / n, level * (guesses - correct) / n
    for i in range(correct - 1, 0, -1):
        least = max(h, inverse(r))
        if least == h:  # nothing grows any more
            break
        r += i / (guesses - i) * (least - h)
        h = least
        if r + h > guesses / n:
            return True
    return r + max(h, inverse(r)) > guesses / n


def _inverse(curve: Curve, parameter: float, delta: float) -> Callable[[float], float]:
    """Inverse of 1 - f for a curve of the family."""
    if curve == "gaussian":
        mu = parameter
        return lambda y: float(special.ndtr(special.ndtri(min(y, 1.0)) - mu))
    up, down = math.exp(parameter), math.exp(-parameter)
    return lambda y: max((y - delta) * down, 1.0 - delta - up * (1.0 - y), 0.0)
