"""Exposure of canaries: how far down the ranking of what might have been inserted does the inserted one stand?

A canary is drawn at random from a space of equally likely ones and put into the training data. A model that
learned nothing of it gives it a loss like any other member of the space; exposure counts, in bits, how many
of them it beats. What it is on average without any memorization is not 0 but 1 / ln 2 = 1.44 bits, and a share
``2 ** -b`` of innocent canaries reaches ``b`` bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from memguard.attacks._checks import Floats, finite, share
from memguard.attacks._skew_normal import SkewNormal, fit_skew_normal, profile
from memguard.attacks.estimate import Estimate
from memguard.errors import MemguardError

__all__ = ["ExposureResult", "exposure"]

_LEAST = 200  # alternatives below which no law is fitted
_PARTS = 10  # parts that are left out in turn, for the tail test and the jackknife
_ALPHA = 0.05  # of each of the two tests of the fit


@dataclass(frozen=True, kw_only=True)
class ExposureResult:
    """Exposure of each canary in bits, with what it rests on.

    Attributes:
        value: ``(C,)`` exposures.
        low: ``(C,)`` lower ends of the two-sided intervals.
        high: ``(C,)`` upper ends; infinite where no alternative has a smaller loss and ``space`` is not given.
        mean: Mean over the canaries; its interval holds for all of them at once (Bonferroni).
        largest: Most that so many alternatives can show by counting, ``log2(R + 1)``. A larger value rests on
            the fitted law alone.
        n: Number of alternatives, R.
        method: As asked for.
        fits: ``(C,)`` whether the fitted law passed its tests. Where it is False the number is the empirical
            one (always, for ``"interpolate"``).
        reason: Why the first fit that did not hold was not used; empty if there is none.
        confidence: Coverage that the intervals aim at.
    """

    value: Floats
    low: Floats
    high: Floats
    mean: Estimate
    largest: float
    n: int
    method: Literal["interpolate", "extrapolate"]
    fits: NDArray[np.bool_]
    reason: str = ""
    confidence: float = 0.95


def exposure(
    canary_loss: ArrayLike,
    alternative_loss: ArrayLike,
    *,
    method: Literal["interpolate", "extrapolate"] = "interpolate",
    space: int | None = None,
    confidence: float = 0.95,
) -> ExposureResult:
    """Bits by which the losses of inserted canaries stand out among canaries that were not inserted.

    ``log2 |R| - log2 rank`` for the rank of the canary in a space of ``|R|`` possible ones, smallest loss
    first. Ties take the middle rank, so that a constant loss gives one bit and no more (with a strict rank it
    would give all of them). With a sample of the space in place of the whole:

    - ``"interpolate"`` takes the rank among the sampled alternatives and the canary, over their number. It
      assumes nothing and ends at ``log2(R + 1)``. The interval is Clopper and Pearson's for the share of
      the space that lies below the canary, ties counted on either side.
    - ``"extrapolate"`` fits a skew-normal law to the losses of the alternatives and takes its distribution
      function at the canary, in log space: no end. The interval joins, by the rule of square and add, a
      jackknife over ten parts (t, 9 degrees of freedom) and the range over all slants that a likelihood ratio
      leaves; it covers the error of the fit, not of the choice of the law. The fit is tested twice, at
      5 % each: its middle by Kolmogorov and Smirnov with parameters from a random half (with parameters from
      the same values the test would hardly ever reject; Stephens, J. R. Stat. Soc. B 40, 1978), its left tail
      by the number of left-out alternatives at or below its quantiles of 10/R to 0.01/R. Where it does not
      hold, or there are fewer than 200 alternatives, the empirical number is given and ``fits`` is False. It
      takes about .2 s for 1,000 alternatives, 12 s for 100,000.

    Args:
        canary_loss: Loss of the inserted canary, or ``(C,)`` of several; any score that is small when the
            model knows the record (nats, log-perplexity).
        alternative_loss: ``(R,)`` losses of alternatives drawn as the canaries were, not inserted, for all
            canaries; or ``(C, R)``, a row for each.
        method: See above.
        space: ``|R|``, the number of canaries that could have been drawn, if it is finite. No exposure lies
            above ``log2(space)``; with ``R + 1 == space`` every one of them was looked at, and the empirical
            exposure is exact.
        confidence: Coverage of the intervals.

    Raises:
        MemguardError: for NaN or infinite losses, empty or mismatched arrays, an unknown method, or a space
            with fewer members than were passed.

    Guarantees:
        Interpolated: valid for every canary if it was drawn at random from the space of its alternatives.
        Extrapolated: as good as the law in a tail that nobody has seen; the tests can refute it there and
        cannot confirm it. A high exposure shows that this model learned this canary. A low one shows neither
        that another canary, or a patient, was not learned, nor that an attacker with more than the loss finds
        nothing; and exposure is no bound on epsilon.

    References:
        Carlini, Liu, Erlingsson, Kos, Song, The Secret Sharer, arXiv 1802.08232, section 4: the definition,
        its sampled form and the skew-normal law.

    Example:
        >>> import numpy as np
        >>> losses = np.random.default_rng(2).normal(20.0, 2.0, size=1023)
        >>> found = exposure(9.0, losses)
        >>> found.value, found.low.round(2), found.largest
        (array([10.]), array([8.12]), 10.0)
        >>> beyond = exposure(9.0, losses, method="extrapolate")
        >>> bool(beyond.fits[0]), bool(beyond.value[0] > 20)
        (True, True)
    """
    if method not in ("interpolate", "extrapolate"):
        raise MemguardError(
            f"method = {method!r}",
            "there are two ways to rank a canary",
            "pass 'interpolate' or 'extrapolate'",
        )
    share(confidence, "confidence")
    canary = finite(np.atleast_1d(np.asarray(canary_loss, dtype=np.float64)), "canary_loss")
    other = _alternatives(alternative_loss, len(canary))
    c, n = len(canary), other.shape[1]
    if space is not None and space < n + 1:
        raise MemguardError(
            f"space = {space} for a canary and {n} alternatives",
            "there would be more of them than can be drawn, so ranks would be wrong",
            "pass each alternative once, without the canary, or the right size in space=",
        )
    most = math.inf if space is None else math.log2(space)
    each = 1.0 - (1.0 - confidence) / c
    below, level = _count(canary, other)
    value = math.log2(n + 1) - np.log2(1.0 + below + level / 2)
    ends = [_interval(below, level, n, level_of, most) for level_of in (confidence, each)]
    if space == n + 1:
        ends = [(value, value), (value, value)]
    fits, reason = np.zeros(c, dtype=np.bool_), ""
    if method == "extrapolate":
        for row, rows in enumerate([np.arange(c)] if len(other) == 1 else np.arange(c)[:, None]):
            law = _fit(other[row])
            reason = reason or law.reason
            if law.reason:
                continue
            fits[rows] = True
            for (low, high), level_of in zip(ends, (confidence, each), strict=True):
                found = law.bits(canary[rows], level_of)
                value[rows], low[rows], high[rows] = (np.clip(bits, 0.0, most) for bits in found)
    (low, high), (low_all, high_all) = ends
    mean = Estimate(
        value=float(value.mean()),
        low=float(low_all.mean()),
        high=float(high_all.mean()),
        n=c,
        method=_words(method, fits),
        confidence=confidence,
    )
    return ExposureResult(
        value=value,
        low=low,
        high=high,
        mean=mean,
        largest=math.log2(n + 1),
        n=n,
        method=method,
        fits=fits,
        reason=reason,
        confidence=confidence,
    )


def _words(method: str, fits: NDArray[np.bool_]) -> str:
    c, fitted = len(fits), int(np.count_nonzero(fits))
    how = "extrapolated" if fitted == c else "interpolated"
    if 0 < fitted < c:
        how = f"{fitted} of {c} extrapolated, the others interpolated"
    elif method == "extrapolate" and not fitted:
        how = "interpolated, no law fits"
    return how if c == 1 else f"mean over canaries, {how}, Bonferroni"


def _alternatives(alternative_loss: ArrayLike, c: int) -> Floats:
    """``(1, R)`` for one set of alternatives, ``(C, R)`` for a set per canary."""
    other = np.asarray(alternative_loss, dtype=np.float64)
    if other.ndim not in (1, 2) or (other.ndim == 2 and len(other) != c):
        raise MemguardError(
            f"alternative_loss has shape {other.shape} for {c} canaries",
            "canaries would be ranked among the alternatives of others",
            f"pass alternative_loss with shape (R,) for all, or ({c}, R)",
        )
    rows = np.atleast_2d(other)
    return finite(rows.ravel(), "alternative_loss").reshape(rows.shape)


def _count(canary: Floats, other: Floats) -> tuple[Floats, Floats]:
    """For each canary, how many alternatives lie below it and how many are equal to it."""
    if len(other) == 1:
        ranked = np.sort(other[0])
        below = np.searchsorted(ranked, canary, side="left")
        up_to = np.searchsorted(ranked, canary, side="right")
    else:
        below = np.count_nonzero(other < canary[:, None], axis=1)
        up_to = np.count_nonzero(other <= canary[:, None], axis=1)
    return below.astype(np.float64), (up_to - below).astype(np.float64)


def _interval(below: Floats, level: Floats, n: int, confidence: float, most: float) -> tuple[Floats, Floats]:
    """Exposure at the two ends of the exact binomial interval for the share of the space below the canary."""
    tail = (1.0 - confidence) / 2
    up_to = below + level
    # ends of the range (nobody below, everybody below) have no quantile: set them apart
    least = np.where(below > 0, stats.beta.ppf(tail, np.maximum(below, 1), n - below + 1), 0.0)
    greatest = np.where(up_to < n, stats.beta.ppf(1.0 - tail, up_to + 1, np.maximum(n - up_to, 1)), 1.0)
    high = np.full(len(below), np.inf)
    np.negative(np.log2(least, out=high, where=least > 0), out=high, where=least > 0)
    return np.maximum(-np.log2(greatest), 0.0), np.minimum(high, most)


class _Law:
    """A law of the losses of alternatives, and the same with each tenth left out."""

    def __init__(self, x: Floats, part: NDArray[np.int64]) -> None:
        self.whole = fit_skew_normal(x)
        self.without = [fit_skew_normal(x[part != k], self.whole) for k in range(_PARTS)]
        self.profile = profile(x, self.whole)
        self.reason = ""

    def bits(self, loss: Floats, confidence: float) -> tuple[Floats, Floats, Floats]:
        """Exposure at each loss, and the ends of its interval."""
        bits = _bits(self.whole, loss)
        left_out = np.stack([_bits(law, loss) for law in self.without])
        error = np.sqrt((_PARTS - 1) / _PARTS * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))
        half = error * stats.t.ppf(0.5 + confidence / 2, _PARTS - 1)
        most = float(stats.chi2.ppf(confidence, 1))
        kept = np.stack([bits, *(_bits(law, loss) for deviance, law in self.profile if deviance <= most)])
        low: Floats = bits - np.hypot(half, bits - kept.min(axis=0))
        high: Floats = bits + np.hypot(half, kept.max(axis=0) - bits)
        return bits, low, high


def _bits(law: SkewNormal, loss: Floats) -> Floats:
    return -law.log_cdf(loss) / math.log(2.0)


class _NoLaw(_Law):
    def __init__(self, reason: str) -> None:
        self.reason = reason


def _fit(alternatives: Floats) -> _Law:
    """The law of sorted alternatives with the outcome of its tests in ``reason``."""
    x = np.sort(alternatives)  # so that nothing drawn below depends on the order they came in
    n = len(x)
    if n < _LEAST:
        return _NoLaw(f"{n} alternatives, a law needs {_LEAST}")
    if x[0] == x[-1]:
        return _NoLaw("the losses of the alternatives are all equal")
    rng = np.random.default_rng(0)
    part, half = rng.permutation(n) % _PARTS, rng.permutation(n)[: n // 2]
    law = _Law(x, part)
    middle = fit_skew_normal(x[half], law.whole)
    p = float(stats.kstest(np.exp(middle.log_cdf(x)), "uniform").pvalue)
    if p < _ALPHA:
        law.reason = f"the losses of the alternatives are not skew-normal (Kolmogorov-Smirnov p = {p:.2g})"
        return law
    left_out = np.empty(n)
    for k, without in enumerate(law.without):
        left_out[part == k] = without.log_cdf(x[part == k])
    levels = np.array([10.0, 3.0, 1.0, 0.1, 0.01]) / n
    observed = np.count_nonzero(left_out[:, None] <= np.log(levels), axis=0)
    allowed = stats.binom.isf(_ALPHA / len(levels), n, levels)
    failed = np.flatnonzero(observed > allowed)
    if len(failed):
        j = int(failed[0])
        law.reason = (
            f"the left tail of the alternatives is heavier than the law's: {observed[j]} of them lie below its "
            f"{levels[j]:.2g} quantile, where at most {int(allowed[j])} may"
        )
    return law
