"""Epsilon under the assumption of Gaussian differential privacy and independent canaries."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from memguard.attacks.epsilon._coins import canaries
from memguard.attacks.epsilon.bound import EpsilonBound
from memguard.attacks.epsilon.curves import gaussian_epsilon
from memguard.attacks.membership import roc

__all__ = ["epsilon_gdp", "gdp_p_value"]

_MOST = 30.0


def epsilon_gdp(
    scores: ArrayLike, included: ArrayLike, *, delta: float, confidence: float = 0.95
) -> EpsilonBound:
    """Lower bound on epsilon if the mechanism is Gaussian-DP and the canaries do not influence each other's scores.

    A mu-GDP mechanism lets no score of a canary separate "included" from "left out" better than a unit normal
    distribution is separated from one that is shifted by mu. Then the number of pairs (included, left out) in the right
    order, ties one half, is stochastically at most what two such samples would give. The bound is the mu at which that
    number would be exceeded with probability 1 - ``confidence``, turned into epsilon at ``delta``. No threshold has to
    be chosen, as all pairs count.

    Args:
        scores: ``(m,)``, larger = more likely included.
        included: ``(m,)`` booleans; the coins need not be fair.
        delta: Of the claim, in (0, 1).
        confidence: Of the bound.

    Raises:
        MemguardError: for NaN or infinite scores, wrong shapes, a missing class, or delta outside (0, 1).

    Guarantees:
        Under both assumptions the bound exceeds the true epsilon with probability at most 1 - ``confidence``, up to
        the normal approximation of the number of pairs, whose mean and variance are exact (tested by simulation from
        100 canaries on). Neither assumption can be seen in the scores. DP-SGD with many steps is close to Gaussian-DP
        in theory (arXiv 1905.02383, section 5), but a bound under an assumption refutes "epsilon and GDP", not epsilon.

    References:
        Dong, Roth and Su, arXiv 1905.02383, Definition 2.1 and Corollary 2.13. Mean and variance of the number of
        pairs: Mann and Whitney 1947 with Owen's T function for the normal model.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> included = rng.random(1000) < 0.5
        >>> bound = epsilon_gdp(rng.normal(size=1000) + included, included, delta=1e-5)  # its epsilon is 4.38
        >>> 3.2 < bound.epsilon < 4.38
        True
    """
    values, truth = canaries(scores, included, delta, confidence, coins=False)
    gaussian_epsilon(1.0, delta)  # refuses delta = 0
    inside, level = int(truth.sum()), 1.0 - confidence
    outside = len(truth) - inside
    area = roc(values, truth).area()

    def least_mu(theta: float) -> float:
        if gdp_p_value(theta, inside, outside, 0.0) > level:
            return 0.0
        return float(
            optimize.brentq(lambda mu: gdp_p_value(theta, inside, outside, mu) - level, 0.0, _MOST, xtol=1e-9)
        )

    middle = np.median(values)
    right = np.count_nonzero((values > middle) & truth) + np.count_nonzero((values < middle) & ~truth)
    return EpsilonBound(
        epsilon=gaussian_epsilon(least_mu(area), delta),
        delta=delta,
        confidence=confidence,
        n=len(values),
        guesses=int(np.count_nonzero(values != middle)),
        correct=int(right),
        largest=gaussian_epsilon(least_mu(1.0), delta),
        method="pairs in order",
        assumption="the mechanism is Gaussian-DP, and canaries do not influence each other's scores",
        threshold="none: all pairs of an included and a left-out canary",
    )


def gdp_p_value(area: float, inside: int, outside: int, mu: float) -> float:
    """Probability that two unit normal samples ``mu`` apart have at least this AUC.

    Args:
        area: Share of the pairs in the right order, ties one half.
        inside: Size of the upper sample.
        outside: Size of the lower sample.
        mu: Distance.

    Example:
        >>> round(gdp_p_value(0.5, 50, 50, 0.0), 3), gdp_p_value(0.9, 50, 50, 0.0) < 1e-9
        (0.501, True)
    """
    h = mu / math.sqrt(2.0)
    theta = float(special.ndtr(h))
    # P(two included above one left out) = P(Z1 < h, Z2 < h) with correlation 1/2; the same the other way round
    joint = theta - 2.0 * float(special.owens_t(h, 1.0 / math.sqrt(3.0)))
    pairs = inside * outside
    variance = (theta * (1.0 - theta) + (inside + outside - 2) * (joint - theta**2)) / pairs
    if variance <= 0.0:
        return 1.0
    normal = float(special.ndtr(-(area - 0.5 / pairs - theta) / math.sqrt(variance)))
    # Near separation the normal distribution falls short of what separation itself has.
    return max(normal, _separated(inside, outside, mu))


def _separated(inside: int, outside: int, mu: float) -> float:
    """Probability that every value of the upper sample exceeds every value of the lower one."""
    # The largest left-out value is y with density n phi(y) Phi(y)^(n - 1).
    y = np.linspace(-6.0, mu + 9.0, 1200)
    log_density = (
        math.log(outside)
        - y**2 / 2
        - math.log(2 * math.pi) / 2
        + (outside - 1) * special.log_ndtr(y)
        + inside * special.log_ndtr(mu - y)
    )
    return float(min(1.0, np.trapezoid(np.exp(log_density), y)))
