"""Gaussian differential privacy in terms of epsilon and delta."""

from __future__ import annotations

import math

from scipy import optimize, special

from memguard.errors import MemguardError

__all__ = ["gaussian_delta", "gaussian_epsilon"]


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of a mu-GDP mechanism at ``epsilon`` (Dong, Roth and Su, arXiv 1905.02383, Corollary 2.13).

    Example:
        >>> f"{gaussian_delta(1.0, 4.377178):.3e}"
        '1.000e-05'
    """
    if mu <= 0.0:
        return 0.0
    first = float(special.ndtr(-epsilon / mu + mu / 2))
    return first - math.exp(epsilon + float(special.log_ndtr(-epsilon / mu - mu / 2)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon at which a mu-GDP mechanism is (epsilon, delta)-DP.

    Raises:
        MemguardError: if delta is not in [0, 1), or is 0 with mu above 0: then there is no such epsilon.

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 4)
        4.3772
    """
    if mu <= 0.0:
        return 0.0
    if not 0.0 < delta < 1.0:
        raise MemguardError(
            f"delta = {delta!r} for a Gaussian mechanism",
            "its epsilon is infinite at delta 0",
            "pass a delta strictly between 0 and 1, for example 1e-5",
        )
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = mu * mu / 2 + mu * 40.0
    return float(optimize.brentq(lambda e: gaussian_delta(mu, e) - delta, 0.0, high, xtol=1e-10))
