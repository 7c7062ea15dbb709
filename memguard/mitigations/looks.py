"""Bounds that hold at all looks of one training together: the error is shared out, and intervals made again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from memguard.attacks.conformal import storey_share
from memguard.attacks.epsilon.sequential import spending
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import tpr_at_fpr
from memguard.errors import MemguardError

__all__ = ["auc_at", "confidence_of", "error_share", "memorized_share_at", "tpr_at", "wider"]


def error_share(look: int, planned: int | None = None) -> float:
    """Share of the error that look number ``look`` may spend; over all looks the shares add up to at most 1.

    Any look may be the one at which training stops: the planned ones share .9 evenly, those after them .1. Without a
    plan look t gets 1 / (t (t + 1)). (`memguard.attacks.epsilon.sequential.spending` keeps half for the last look.)

    Args:
        look: From 1.
        planned: Number of looks that were planned before the first one.

    Raises:
        MemguardError: If a number is below 1.

    References:
        Spending the error: Lan and DeMets, Biometrika 70, 1983.

    Example:
        >>> error_share(1, 10), error_share(10, 10), round(error_share(11, 10), 3), error_share(3)
        (0.09, 0.09, 0.05, 0.08333333333333333)
    """
    if planned is None:
        return spending(look)
    if look < 1 or planned < 1:
        raise MemguardError(
            f"look {look} of {planned}", "looks are counted from 1", "pass whole numbers from 1"
        )
    after = look - planned
    return 0.9 / planned if after <= 0 else 0.1 / (after * (after + 1))


def confidence_of(look: int, planned: int | None = None, *, together: float = 0.95) -> float:
    """Confidence of the interval of one look, so that those of all looks hold together.

    Args:
        look: From 1.
        planned: Number of looks that were planned before the first one.
        together: Confidence of all looks together.

    Guarantees:
        If the interval of look t fails with probability at most one minus its confidence, then all intervals hold at
        once, and so at whichever look one stops, with probability at least ``together`` (union bound): looks may depend
        on each other in any way, as they do, being of the same patients.

    Example:
        >>> round(confidence_of(1, 10), 4)
        0.9955
    """
    return 1.0 - (1.0 - together) * error_share(look, planned)


def auc_at(estimate: Estimate, confidence: float) -> Estimate:
    """The same AUC with the interval of another confidence; exact for Wald intervals on the logit scale.

    Args:
        estimate: Of `memguard.attacks.powered.powered_auc`.
        confidence: Of the interval.

    Example:
        >>> e = Estimate(value=0.6, low=0.55, high=0.648, n=500, method="clustered DeLong, logit")
        >>> print(auc_at(e, 0.999))
        0.600 [0.515, 0.679]
    """
    if not math.isfinite(estimate.value):
        return estimate
    edge = 0.5 / (estimate.n + 1)  # where all scores are apart: rather too far out, and so too wide
    value, low, high = (
        math.log(x / (1 - x)) for x in np.clip([estimate.value, estimate.low, estimate.high], edge, 1 - edge)
    )
    ratio = _quantile(confidence) / _quantile(estimate.confidence)
    low, high = value - ratio * (value - low), value + ratio * (high - value)
    return replace(
        estimate,
        low=min(1 / (1 + math.exp(-low)), estimate.low),
        high=max(1 / (1 + math.exp(-high)), estimate.high),
        confidence=confidence,
    )


def tpr_at(
    estimate: Estimate,
    member_loss: NDArray[np.floating],
    member_patient: NDArray[np.int64],
    held_out_loss: NDArray[np.floating],
    held_out_patient: NDArray[np.int64],
    *,
    fpr: float,
    confidence: float,
) -> Estimate:
    """A true-positive rate with the interval of another confidence, from the losses.

    Args:
        estimate: As the look gave it.
        member_loss: ``(m,)`` evaluated losses of members.
        member_patient: ``(m,)`` patient of each.
        held_out_loss: ``(n,)`` evaluated losses of held-out records.
        held_out_patient: ``(n,)`` patient of each, numbered apart from the members.
        fpr: False-positive rate.
        confidence: Of the interval.

    Returns:
        `wider`, where the losses do not give the estimate.

    Example:
        >>> inside, outside = np.linspace(0, 1, 80), np.linspace(0, 2, 400)
        >>> given = inside, np.arange(80), outside, np.arange(400)
        >>> losses, who = -np.r_[inside, outside], np.repeat([True, False], [80, 400])
        >>> print(tpr_at(tpr_at_fpr(losses, who, 0.1), *given, fpr=0.1, confidence=0.999))
        0.200 [0.051, 0.410]
    """
    scores = -np.concatenate([member_loss, held_out_loss])
    is_member = np.repeat([True, False], [member_loss.size, held_out_loss.size])
    groups = np.concatenate([member_patient, -1 - held_out_patient])

    def again(wanted: float) -> Estimate:
        return tpr_at_fpr(scores, is_member, fpr, groups=groups, confidence=wanted)

    return _again(again, estimate, confidence)


def memorized_share_at(estimate: Estimate, n_held_out: int, confidence: float) -> Estimate:
    """A share by Storey's estimator with the interval of another confidence.

    The estimate is a function of how many of its p-values lie above the threshold; that number is found from it (of
    several that give an interval of [0, 0], the one with the widest).

    Args:
        estimate: Of `memguard.attacks.conformal.storey_share`, threshold .5.
        n_held_out: Held-out patients behind the p-values.
        confidence: Of the interval.

    Returns:
        `wider`, where no number of p-values gives the estimate.

    Example:
        >>> share = storey_share(np.r_[np.full(60, 0.002), np.arange(1, 101) / 101], n_null=500)
        >>> print(share, memorized_share_at(share, 500, 0.999))
        0.364 [0.206, 0.524] 0.364 [0.084, 0.609]
    """
    members = estimate.n - n_held_out
    if members < 1 or n_held_out < 1:
        return wider(estimate, confidence)

    def of(above: int, wanted: float) -> Estimate:
        p = np.repeat([1.0, 0.0], [above, members - above])
        return storey_share(p, n_null=n_held_out, confidence=wanted)

    fewest, most = 0, members
    while fewest < most:  # both ends fall with the number of large p-values
        middle = (fewest + most) // 2
        found = of(middle, estimate.confidence)
        if found.low + found.high > estimate.low + estimate.high + 1e-6:
            fewest = middle + 1
        else:
            most = middle
    return _again(lambda wanted: of(fewest, wanted), estimate, confidence)


def wider(estimate: Estimate, confidence: float) -> Estimate:
    """An estimate of any kind with its interval stretched to a higher confidence.

    Both halves grow as the tail of an exponential asks for, which is more than that of a normal or a binomial does. It
    is an approximation: what the method itself would give at this confidence is not known here.

    Args:
        estimate: With a two-sided interval.
        confidence: Of the interval.

    Example:
        >>> print(wider(Estimate(value=0.2, low=0.1, high=0.3, n=90, method="x"), 0.995))
        0.200 [0.038, 0.362]
    """
    ratio = max(1.0, math.log(2 / (1 - confidence)) / math.log(2 / (1 - estimate.confidence)))
    return replace(
        estimate,
        low=estimate.value - ratio * (estimate.value - estimate.low),
        high=estimate.value + ratio * (estimate.high - estimate.value),
        confidence=confidence,
    )


def _again(again: Callable[[float], Estimate], estimate: Estimate, confidence: float) -> Estimate:
    """What the method gives at another confidence, if at its own it gives the estimate."""
    same = again(estimate.confidence)
    ends = ("value", "low", "high")
    if all(math.isclose(getattr(same, end), getattr(estimate, end), abs_tol=1e-5) for end in ends):
        return again(confidence)
    return wider(estimate, confidence)


def _quantile(confidence: float) -> float:
    return float(norm.ppf(0.5 + confidence / 2))
