"""Membership scores against the truth: ROC, AUC, TPR at a low FPR, loss gap, each with its interval.

Scores are larger for records that look more like members. The unit of analysis is the patient: with
``groups=`` (one patient id per record) every interval is clustered by patient, and ``Estimate.n`` counts
patients. Ties count one half in the AUC; the ROC moves diagonally over them; there is no convex hull, which
would lift a null AUC above one half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from memguard.attacks._bootstrap import bootstrap_auc, bootstrap_tpr
from memguard.attacks._checks import Floats, finite, labels, patient_codes, share
from memguard.attacks._intervals import (
    auc_interval,
    clopper_pearson,
    effective_records,
    mean_variance,
    t_quantile,
)
from memguard.attacks.estimate import Estimate
from memguard.errors import PatientOverlapError, ResolutionError

__all__ = ["Roc", "auc", "loss_gap", "required_held_out", "roc", "supported_fprs", "tpr_at_fpr"]


@dataclass(frozen=True, kw_only=True)
class Roc:
    """An empirical ROC curve, one point per distinct score.

    Attributes:
        fpr: False positive rates, rising from 0 to 1, ``(T,)``.
        tpr: True positive rates, rising from 0 to 1, ``(T,)``.
        thresholds: A record is called a member if its score is at least this, ``(T,)``; first +inf.

    Example:
        >>> curve = roc([2.0, 1.0, 1.0, 0.0], [True, True, False, False])
        >>> curve.fpr, curve.tpr, curve.area()
        (array([0. , 0. , 0.5, 1. ]), array([0. , 0.5, 1. , 1. ]), 0.875)
    """

    fpr: Floats
    tpr: Floats
    thresholds: Floats

    def area(self) -> float:
        """Area under the curve by the trapezoid rule (ties count one half)."""
        return float(np.sum(np.diff(self.fpr) * (self.tpr[1:] + self.tpr[:-1])) / 2)


def roc(scores: ArrayLike, member: ArrayLike) -> Roc:
    """Empirical ROC curve, exact for ties, without a convex hull.

    Args:
        scores: ``(N,)``, larger = more likely a member.
        member: ``(N,)`` booleans; both classes must occur.

    Returns:
        The curve from (0, 0) to (1, 1).

    Raises:
        MemguardError: for NaN or infinite scores, wrong shapes, or a missing class.

    Example:
        >>> roc([3, 2, 1], [True, False, False]).thresholds
        array([inf,  3.,  2.,  1.])
    """
    s = finite(scores, "scores")
    truth = labels(member, len(s))
    order = np.argsort(s)
    values, hits, misses = _tally(s[order], truth[order])
    tp = np.concatenate([[0.0], np.cumsum(hits[::-1])])
    fp = np.concatenate([[0.0], np.cumsum(misses[::-1])])
    return Roc(fpr=fp / fp[-1], tpr=tp / tp[-1], thresholds=np.concatenate([[np.inf], values[::-1]]))


def auc(
    scores: ArrayLike,
    member: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    n_boot: int = 0,
    seed: int = 0,
) -> Estimate:
    """Probability that a member scores above a non-member (ties one half), with a clustered interval.

    The standard error is DeLong's with sums over patients (Obuchowski, Biometrics 53, 1997, eq. 3), the
    interval is taken on the logit scale with a t quantile whose degrees of freedom follow Satterthwaite. For
    few patients, and where the scores separate (almost) perfectly, so that the standard error vanishes, it is
    widened to the interval that inverts Hanley and McNeil's variance (Newcombe, Stat. Med. 25, 2006,
    method 5), counted in patients.

    Args:
        scores: ``(N,)``, larger = more likely a member.
        member: ``(N,)`` booleans.
        groups: Patient of each record ``(N,)``; each record its own patient if omitted. Records of a patient
            share noise, so leaving this out makes the interval too narrow.
        confidence: Coverage of the interval.
        n_boot: If positive, the percentile interval of so many bootstrap draws of patients instead.
        seed: Seed of the bootstrap.

    Returns:
        The AUC over pairs of records; ``n`` counts patients.

    Raises:
        PatientOverlapError: if a patient has records of both classes.
        MemguardError: for NaN or infinite scores, wrong shapes, or a missing class.

    Example:
        >>> print(auc([4, 3, 2, 2, 1, 0], [1, 1, 1, 0, 0, 0]))
        0.944 [0.210, 0.999]
    """
    s = finite(scores, "scores")
    truth = labels(member, len(s))
    share(confidence, "confidence")
    code, n_patients = patient_codes(groups, len(s))
    n_in, n_out = _class_sizes(code, n_patients, truth)
    if n_boot > 0:
        draws = bootstrap_auc(s, truth, code, n_boot, seed)
        tail = (1.0 - confidence) / 2
        low, high = (float(q) for q in np.quantile(draws, [tail, 1.0 - tail]))
        return Estimate(
            value=roc(s, truth).area(),
            low=low,
            high=high,
            n=n_in + n_out,
            method="patient bootstrap",
            confidence=confidence,
        )
    order = np.argsort(s)
    s, truth, code = s[order], truth[order], code[order]
    _, hits, misses = _tally(s, truth)
    level = np.repeat(np.arange(len(hits)), (hits + misses).astype(np.int64))
    # share of the other class that each record beats, ties one half
    below = (np.cumsum(misses) - misses / 2) / misses.sum()
    above = 1.0 - (np.cumsum(hits) - hits / 2) / hits.sum()
    placement = np.where(truth, below[level], above[level])
    theta = float(placement[truth].mean())
    var_in = mean_variance(placement[truth], code[truth], theta)
    var_out = mean_variance(placement[~truth], code[~truth], theta)
    low, high = auc_interval(theta, var_in, var_out, n_in, n_out, confidence)
    return Estimate(
        value=theta,
        low=low,
        high=high,
        n=n_in + n_out,
        method="clustered DeLong, logit",
        confidence=confidence,
    )


def loss_gap(
    member_loss: ArrayLike,
    held_out_loss: ArrayLike,
    *,
    member_groups: ArrayLike | None = None,
    held_out_groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Mean held-out loss minus mean member loss, in the unit of the losses, with its interval.

    A positive gap says that the model fits its members better; it does not say which patients, nor that one
    of them is memorized.

    Args:
        member_loss: ``(M,)`` losses of members.
        held_out_loss: ``(H,)`` losses of held-out patients' records.
        member_groups: Patient of each member record, ``(M,)``.
        held_out_groups: Patient of each held-out record, ``(H,)``.
        confidence: Coverage of the interval (Welch t over patients).

    Returns:
        The gap; its interval is infinite where a side has a single patient.

    Raises:
        MemguardError: for empty input, wrong shapes, NaN or infinite losses.

    Example:
        >>> print(loss_gap([1.0, 1.2, 0.8, 1.0], [2.0, 2.2, 1.8, 2.0]))
        1.000 [0.717, 1.283]
    """
    inside, outside = finite(member_loss, "member_loss"), finite(held_out_loss, "held_out_loss")
    share(confidence, "confidence")
    code_in, n_in = patient_codes(member_groups, len(inside), "member_groups")
    code_out, n_out = patient_codes(held_out_groups, len(outside), "held_out_groups")
    gap = float(outside.mean() - inside.mean())
    var_in = mean_variance(inside, code_in, float(inside.mean()))
    var_out = mean_variance(outside, code_out, float(outside.mean()))
    half = math.inf
    if n_in > 1 and n_out > 1:
        half = t_quantile(var_in, var_out, n_in, n_out, confidence) * math.sqrt(var_in + var_out)
    return Estimate(
        value=gap,
        low=gap - half,
        high=gap + half,
        n=n_in + n_out,
        method="Welch t over patients",
        confidence=confidence,
    )


def required_held_out(fpr: float) -> int:
    """How many held-out patients a false positive rate needs: ``ceil(1 / fpr)``.

    Example:
        >>> required_held_out(0.01), required_held_out(0.001)
        (100, 1000)
    """
    return math.ceil(1.0 / share(fpr, "fpr") - 1e-9)


def supported_fprs(n_held_out: int, fprs: Iterable[float]) -> tuple[float, ...]:
    """Those rates that ``n_held_out`` non-member patients can support, in the order given.

    Example:
        >>> supported_fprs(600, (0.1, 0.01, 0.001))
        (0.1, 0.01)
    """
    return tuple(fpr for fpr in fprs if n_held_out >= required_held_out(fpr))


def tpr_at_fpr(
    scores: ArrayLike,
    member: ArrayLike,
    fpr: float,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    n_boot: int = 0,
    seed: int = 0,
) -> Estimate:
    """Share of members above the threshold that calls at most a share ``fpr`` of the non-members.

    The value is the highest TPR on the empirical curve with FPR <= ``fpr``, without interpolation. With few
    non-members it leans upward (its threshold has an expected FPR of up to ``fpr + 1 / n``); the interval
    allows for that. It joins two exact parts by the square-and-add rule (Zou and Donner, Stat. Med. 27,
    2008): Clopper-Pearson for the members above a given threshold, and, since the threshold comes from the
    held-out patients, the distribution-free order-statistic interval for it. Counts are those of effective
    patients: records of one patient count once as far as they agree. The lower end is 0 where n cannot rule
    out that the true threshold lies above every held-out score (``n * fpr`` under 3.7 at 95 %).

    Args:
        scores: ``(N,)``, larger = more likely a member.
        member: ``(N,)`` booleans.
        fpr: False positive rate, in (0, 1).
        groups: Patient of each record ``(N,)``; each record its own patient if omitted.
        confidence: Coverage of the interval.
        n_boot: If positive, the interval is also widened to the percentile interval of so many
            bootstrap draws of patients.
        seed: Seed of the bootstrap.

    Raises:
        ResolutionError: if there are fewer than ``required_held_out(fpr)`` non-member patients.
        PatientOverlapError: if a patient has records of both classes.
        MemguardError: for NaN or infinite scores, wrong shapes, or a missing class.

    Example:
        >>> import numpy as np
        >>> member = np.repeat([True, False], [50, 400])
        >>> print(tpr_at_fpr(np.where(member, 2.0, 0.0) + np.sin(np.arange(450)), member, 0.1))
        1.000 [0.929, 1.000]
    """
    s = finite(scores, "scores")
    truth = labels(member, len(s))
    share(confidence, "confidence")
    share(fpr, "fpr")
    code, n_patients = patient_codes(groups, len(s))
    n_in, n_out = _class_sizes(code, n_patients, truth)
    if n_out < required_held_out(fpr):
        raise ResolutionError(
            f"{n_out} held-out patients for a false positive rate of {fpr:g}",
            "less than one of them may be called a member, so the rate would be a guess",
            f"hold out at least {required_held_out(fpr)} patients, or ask for a higher rate",
        )
    inside, outside = np.sort(s[truth]), np.sort(s[~truth])[::-1]
    n_negative = len(outside)
    allowed = math.floor(fpr * n_negative + 1e-9)
    value = _tpr_above(inside, outside, allowed)
    # the members: Clopper-Pearson at their effective number
    hit = s[truth] > (outside[allowed] if allowed < n_negative else -math.inf)
    low_tpr, high_tpr = clopper_pearson(value, effective_records(hit, code[truth]), confidence)
    # the threshold: how many non-members may lie above the true one
    wide = s[~truth] >= outside[min(n_negative - 1, max(allowed, math.ceil(0.1 * n_negative)))]
    effective = max(int(effective_records(wide, code[~truth])), 1)
    tail = (1.0 - confidence) / 2
    scale = n_negative / effective
    fewest = math.floor(float(stats.binom.ppf(tail, effective, fpr)) * scale)
    most = math.ceil(float(stats.binom.isf(tail, effective, fpr)) * scale)
    low_cut = _tpr_above(inside, outside, fewest - 1, inclusive=True) if fewest >= 1 else 0.0
    high_cut = _tpr_above(inside, outside, most)
    low = max(0.0, value - math.hypot(value - low_tpr, value - low_cut))
    high = min(1.0, value + math.hypot(high_tpr - value, high_cut - value))
    if n_boot > 0:
        draws = bootstrap_tpr(s, truth, code, fpr, n_boot, seed)
        low = min(low, float(np.quantile(draws, tail)))
        high = max(high, float(np.quantile(draws, 1.0 - tail)))
    return Estimate(
        value=value,
        low=low,
        high=high,
        n=n_in + n_out,
        method="Clopper-Pearson and order statistics",
        confidence=confidence,
    )


def _tpr_above(inside: Floats, outside: Floats, rank: int, *, inclusive: bool = False) -> float:
    """Share of members above (or at) the non-member score of this rank; both arrays sorted."""
    if rank >= len(outside):
        return 1.0
    side: Literal["left", "right"] = "left" if inclusive else "right"
    return 1.0 - float(np.searchsorted(inside, outside[rank], side)) / len(inside)


def _tally(ranked: Floats, hit: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Distinct scores of rising scores, with the number of members and of non-members at each."""
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    hits = np.add.reduceat(hit.astype(np.float64), starts)
    sizes = np.diff(np.concatenate([starts, [len(ranked)]]))
    return ranked[starts], hits, sizes - hits


def _class_sizes(code: NDArray[np.int64], n_patients: int, truth: NDArray[np.bool_]) -> tuple[int, int]:
    """Member patients and held-out patients; a patient on both sides is refused."""
    inside = np.bincount(code[truth], minlength=n_patients) > 0
    outside = np.bincount(code[~truth], minlength=n_patients) > 0
    both = int(np.count_nonzero(inside & outside))
    if both:
        raise PatientOverlapError(
            f"{both} of {n_patients} patients have member and non-member records",
            "a held-out record of a training patient is no non-member",
            "split by patient, or pass the right ids in groups=",
        )
    return int(np.count_nonzero(inside)), int(np.count_nonzero(outside))
