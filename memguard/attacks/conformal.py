"""Flags with an error rate: conformal p-values against held-out patients, and what many of them say.

A member whose score stands out among patients that the model never saw has a small p-value. All p-values
share one set of held-out patients; that makes them positively dependent (PRDS), for which Benjamini-Hochberg
keeps its rate (Bates, Candes, Lei, Romano, Sesia, Ann. Statist. 51, 2023, Theorem 2; arXiv 2104.08279).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from memguard.attacks._checks import Floats, finite, share
from memguard.attacks.estimate import Estimate
from memguard.attacks.tail import TailPValues, tail_p_values
from memguard.errors import MemguardError

__all__ = [
    "TailPValues",
    "adjusted_p",
    "benjamini_hochberg",
    "conformal_p_values",
    "storey_share",
    "tail_p_values",
]

_NODES = 200  # quadrature nodes for the unknown share of the null above a held-out rank


def conformal_p_values(scores: ArrayLike, null_scores: ArrayLike, *, seed: int | None = None) -> Floats:
    """P-value of each score against the held-out scores: ``(1 + #{null >= score}) / (n + 1)``.

    Valid for any score and any distribution as long as an unmemorized member and the held-out patients are
    exchangeable: P(p <= a) <= a for every a, on average over held-out sets. It is never below 1 / (n + 1).

    Args:
        scores: ``(N,)``, one per patient, larger = more memorized.
        null_scores: ``(n,)`` scores of held-out patients, made in the same way.
        seed: If given, ties are broken at random, so that p is exactly uniform under the null; by default
            ties count against the flag.

    Raises:
        MemguardError: for empty input, NaN or infinite scores.

    Example:
        >>> conformal_p_values([5.0, 1.5, 0.0], [0.0, 1.0, 2.0])
        array([0.25, 0.5 , 1.  ])
    """
    s = finite(scores, "scores", allow_empty=True)
    null = np.sort(finite(null_scores, "null_scores"))
    at_least = len(null) - np.searchsorted(null, s, side="left").astype(np.float64)
    if seed is None:
        counted: Floats = (1.0 + at_least) / (len(null) + 1.0)
        return counted
    above = len(null) - np.searchsorted(null, s, side="right").astype(np.float64)
    draw = np.random.default_rng(seed).random(len(s))
    p: Floats = (above + (1.0 - draw) * (1.0 + at_least - above)) / (len(null) + 1.0)
    return p


def adjusted_p(p: ArrayLike) -> Floats:
    """Smallest rate at which Benjamini-Hochberg would flag each p-value, ``(N,)``.

    Example:
        >>> adjusted_p([0.01, 0.04, 0.03, 0.5])
        array([0.04      , 0.05333333, 0.05333333, 0.5       ])
    """
    values = _p_values(p)
    n = len(values)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * n / np.arange(1, n + 1)
    out = np.empty(n)
    out[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return out


def benjamini_hochberg(p: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Which p-values to flag so that, in expectation, at most a share ``rate`` of the flags is false.

    The promise is about the expected share over repetitions, not about one list; where nothing is memorized,
    any flag is false, and a list that is not empty comes up in at most a share ``rate`` of the runs.

    Args:
        p: ``(N,)`` p-values, independent or conformal with a shared held-out set.
        rate: False discovery rate, in (0, 1).

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.5], 0.05)
        array([ True, False, False, False])
    """
    values = _p_values(p)
    n = len(values)
    ranked = np.sort(values)
    fits = np.flatnonzero(ranked <= share(rate, "rate") * np.arange(1, n + 1) / max(n, 1) * (1 + 1e-12))
    if len(fits) == 0:
        return np.zeros(n, dtype=np.bool_)
    flagged: NDArray[np.bool_] = values <= ranked[fits[-1]]
    return flagged


def storey_share(p: ArrayLike, *, n_null: int, threshold: float = 0.5, confidence: float = 0.95) -> Estimate:
    """Share of members that stand out from held-out patients (Storey, J. R. Stat. Soc. B 64, 2002).

    Unmemorized members fill the p-values above ``threshold`` evenly; what is missing there is memorized. The
    value counts a memorized patient only as far as its p-value lies below the threshold, so it leans low:
    patients who are memorized yet look like held-out ones are not seen, and the upper end speaks of the share
    that can be told apart at this threshold. The lower end is a lower bound for the whole memorized share.

    Args:
        p: ``(m,)`` conformal p-values of member patients, all against one held-out set.
        n_null: Number of held-out patients behind the p-values. Their number limits the estimate: the share
            of the null above a held-out rank is itself only known as a Beta variable, and the interval
            integrates over it.
        threshold: p-values above it are taken as unmemorized.
        confidence: Coverage of the interval (Clopper-Pearson inversion of the beta-binomial count).

    Raises:
        MemguardError: for p outside [0, 1], empty input, or an ``n_null`` too small for the threshold.

    Example:
        >>> import numpy as np
        >>> p = np.r_[np.full(900, 0.002), np.arange(1, 101) / 101]
        >>> print(storey_share(p, n_null=500))
        0.898 [0.867, 0.926]
    """
    values = _p_values(p)
    m = len(values)
    share(threshold, "threshold")
    rank = math.floor(threshold * (n_null + 1) + 1e-9)
    if m == 0 or rank < 1 or rank > n_null:
        raise MemguardError(
            f"{m} p-values against {n_null} held-out patients",
            "no share can be read off",
            "pass at least one member and more held-out patients",
        )
    count = int(np.count_nonzero(values > threshold + 1e-12))
    expected = (n_null + 1 - rank) / (n_null + 1)
    grid = (np.arange(_NODES) + 0.5) / _NODES
    above = special.betaincinv(n_null + 1 - rank, rank, grid)
    tail = (1.0 - confidence) / 2

    def cdf(null_share: float, hits: int) -> float:
        return float(np.mean(special.bdtr(hits, m, null_share * above)))

    # the largest null share that still makes so few p-values above the threshold plausible, and the least
    most = _solve(lambda q: cdf(q, count) - tail)
    least = 0.0 if count == 0 else _solve(lambda q: cdf(q, count - 1) - (1.0 - tail))
    return Estimate(
        value=max(0.0, 1.0 - (count + 1) / (m * expected)),
        low=1.0 - most,
        high=1.0 - least,
        n=m + n_null,
        method=f"Storey at {threshold:g}, shared held-out set",
        confidence=confidence,
    )


def _solve(falling: Callable[[float], float]) -> float:
    """Root in [0, 1] of a function that falls; the end of the range where it keeps its sign."""
    if falling(1.0) >= 0.0:
        return 1.0
    if falling(0.0) <= 0.0:
        return 0.0
    return float(optimize.brentq(falling, 0.0, 1.0, xtol=1e-6))


def _p_values(p: ArrayLike) -> Floats:
    values = finite(p, "p", allow_empty=True)
    outside = int(np.count_nonzero((values < 0.0) | (values > 1.0)))
    if outside:
        raise MemguardError(
            f"{outside} of {len(values)} values in p lie outside [0, 1]",
            "they are no p-values",
            "pass the result of conformal_p_values or tail_p_values",
        )
    return values
