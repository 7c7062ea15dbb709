"""Standard errors over patients, and the intervals made from them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from memguard.attacks._checks import Floats

__all__ = ["auc_interval", "clopper_pearson", "effective_records", "mean_variance", "t_quantile"]


def mean_variance(values: Floats, code: NDArray[np.int64], mean: float) -> float:
    """Variance of the mean of ``values``, clustered by patient (ratio estimator, Obuchowski 1997)."""
    sums = np.bincount(code, weights=values - mean)
    clusters = int(np.count_nonzero(np.bincount(code)))
    if clusters < 2:
        return math.inf
    return float(clusters / (clusters - 1) * np.sum(sums**2) / len(values) ** 2)


def effective_records(hit: NDArray[np.bool_], code: NDArray[np.int64]) -> float:
    """Effective number of independent records for the rate of ``hit``: n over the design effect.

    At least Kish's number (records of a patient agree entirely), which is also taken when too few patients
    carry the rarer outcome to measure the agreement; at most the number of records.
    """
    n = len(hit)
    sizes = np.bincount(code)
    least = n**2 / float(np.sum(sizes.astype(np.float64) ** 2))
    if least > n - 0.5:
        return float(n)
    rate = float(hit.mean())
    rarer = hit if rate <= 0.5 else ~hit
    if np.count_nonzero(np.bincount(code, weights=rarer)) < 20:
        return least
    clustered = mean_variance(hit.astype(np.float64), code, rate)
    return float(np.clip(rate * (1.0 - rate) / clustered, least, n))


def clopper_pearson(rate: float, n: float, confidence: float) -> tuple[float, float]:
    """Exact binomial interval; ``n`` may be an effective, fractional number."""
    hits, tail = rate * n, (1.0 - confidence) / 2
    low = 0.0 if rate <= 0.0 else float(stats.beta.ppf(tail, hits, n - hits + 1.0))
    high = 1.0 if rate >= 1.0 else float(stats.beta.ppf(1.0 - tail, hits + 1.0, n - hits))
    return low, high


def t_quantile(var_in: float, var_out: float, n_in: int, n_out: int, confidence: float) -> float:
    """Student quantile with Satterthwaite degrees of freedom for a sum of two variances."""
    spread = var_in**2 / max(n_in - 1, 1) + var_out**2 / max(n_out - 1, 1)
    df = (var_in + var_out) ** 2 / spread if 0.0 < spread < math.inf else 1.0
    return float(stats.t.ppf(0.5 + confidence / 2, df))


def auc_interval(
    theta: float, var_in: float, var_out: float, n_in: int, n_out: int, confidence: float
) -> tuple[float, float]:
    """Interval of an AUC on the logit scale; widened to Newcombe's where few patients carry the variance.

    Args:
        theta: The AUC.
        var_in: Variance that the members bring in.
        var_out: Variance that the non-members bring in.
        n_in: Member patients.
        n_out: Non-member patients.
        confidence: Coverage.
    """
    variance = var_in + var_out
    if min(n_in, n_out) < 2:
        return 0.0, 1.0
    if 0.0 < theta < 1.0 and 0.0 < variance < math.inf:
        centre = math.log(theta / (1.0 - theta))
        quantile = t_quantile(var_in, var_out, n_in, n_out, confidence)
        half = quantile * math.sqrt(variance) / (theta * (1.0 - theta))
        low, high = _expit(centre - half), _expit(centre + half)
        # Near separation few patients carry the variance, and DeLong's own estimate of it falls short.
        if min(n_in, n_out) * min(theta, 1.0 - theta) >= 5.0:
            return low, high
        widest = _newcombe(theta, n_in, n_out, confidence)
        return min(low, widest[0]), max(high, widest[1])
    return _newcombe(theta, n_in, n_out, confidence)


def _newcombe(theta: float, n_in: int, n_out: int, confidence: float) -> tuple[float, float]:
    """Interval that inverts Hanley and McNeil's variance (Newcombe 2006, method 5)."""
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    half = (n_in + n_out) / 2 - 1.0

    def excess(t: float) -> float:
        v = t * (1 - t) * (1 + half * (1 - t) / (2 - t) + half * t / (1 + t)) / (n_in * n_out)
        return (theta - t) ** 2 - z**2 * v

    edge = 1e-12
    low, high = 0.0, 1.0
    if theta > edge and excess(edge) > 0.0:
        low = float(optimize.brentq(excess, edge, theta - edge))
    if theta < 1.0 - edge and excess(1.0 - edge) > 0.0:
        high = float(optimize.brentq(excess, theta + edge, 1.0 - edge))
    return low, high


def _expit(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0
