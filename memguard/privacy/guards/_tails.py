"""Tails of sums of squared deviations of binomial counts, bounded for every sample size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

__all__ = ["Floats", "squares_tails", "strata_of", "total_pmf"]

Floats = NDArray[np.float64]
_WIDE = 12.0


def strata_of(rates: Floats) -> list[tuple[float, NDArray[np.int64]]]:
    """The different rates and who has each.

    Example:
        >>> [(rate, who.tolist()) for rate, who in strata_of(np.array([0.1, 0.2, 0.1]))]
        [(0.1, [0, 2]), (0.2, [1])]
    """
    values, code = np.unique(rates, return_inverse=True)
    return [(float(v), np.flatnonzero(code == i).astype(np.int64)) for i, v in enumerate(values)]


def total_pmf(sizes: list[tuple[float, int]]) -> tuple[NDArray[np.int64], Floats]:
    """Law of a sum of independent binomials, on the values within 12 standard deviations of each.

    Args:
        sizes: Probability and number of trials of each.

    Returns:
        Values and probabilities. What is cut off has probability below 1e-30.

    Example:
        >>> values, p = total_pmf([(0.5, 1), (0.5, 1)])
        >>> values.tolist(), p.round(3).tolist()
        ([0, 1, 2], [0.25, 0.5, 0.25])
    """
    low, law = 0, np.ones(1, dtype=np.float64)
    for rate, trials in sizes:
        spread = _WIDE * np.sqrt(trials * rate * (1 - rate)) + 50
        first = max(0, int(trials * rate - spread))
        last = min(trials, int(trials * rate + spread) + 1)
        one = np.asarray(stats.binom.pmf(np.arange(first, last + 1), trials, rate), dtype=np.float64)
        law = np.asarray(np.convolve(law, one), dtype=np.float64)
        low += first
    return np.arange(low, low + len(law), dtype=np.int64), law


def squares_tails(observed: float, laws: list[tuple[Floats, Floats, int]]) -> tuple[float, float]:
    """Bounds on both tails of a sum of independent terms, by Chernoff's inequality.

    P(X >= x) is at most exp(-t x) E[exp(t X)] for every t > 0; the least over t is taken, and likewise below.

    Args:
        observed: x.
        laws: Values of a term, their probabilities, and how many terms there are of this law.

    Returns:
        Bounds on P(X <= x) and on P(X >= x).

    Example:
        >>> one = (np.array([0.0, 1.0]), np.array([0.5, 0.5]), 100)
        >>> below, above = squares_tails(90.0, [one])
        >>> below, above < 1e-13
        (1.0, True)
    """
    mean = sum(float(values @ p) / float(p.sum()) * n for values, p, n in laws)
    variance = sum((float(values**2 @ p) / float(p.sum()) - (float(values @ p) / float(p.sum())) ** 2) * n
                   for values, p, n in laws)  # fmt: skip
    if variance <= 0:
        return (1.0, 1.0)

    def exponent(t: float) -> float:
        return sum(n * float(special.logsumexp(t * values, b=p)) for values, p, n in laws) - t * observed

    unit = 1 / np.sqrt(variance)
    tails = [1.0, 1.0]
    side = int(observed > mean)
    sign = 1.0 if side else -1.0
    found = optimize.minimize_scalar(
        lambda u: exponent(sign * float(np.exp(u)) * unit), bounds=(-12.0, 12.0), method="bounded"
    )
    tails[side] = float(np.exp(min(0.0, found.fun)))
    return tails[0], tails[1]
