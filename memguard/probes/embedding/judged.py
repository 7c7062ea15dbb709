"""Whether an attribute is read better for members: areas of either side, and their difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import auc

__all__ = ["Readings", "area_difference", "average_precision", "of_patients", "read_side"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Readings:
    """One attribute, one attacker, P patients.

    Attributes:
        patient: ``(P,)`` codes.
        member: ``(P,)``.
        held: ``(P,)`` whether any record of the patient holds the attribute.
        odds: ``(P,)`` mean log-odds over his records.
    """

    patient: Ints
    member: Bools
    held: Bools
    odds: Floats

    def count(self, member: bool, held: bool = True) -> int:
        """Patients of a side who hold the attribute, or do not."""
        return int(np.count_nonzero((self.member == member) & (self.held == held)))


def of_patients(patient: Ints, member: Bools, held: Bools, odds: Floats) -> Readings:
    """From records to patients.

    Example:
        >>> found = of_patients(np.array([5, 5, 2]), np.array([True, True, False]),
        ...                     np.array([False, True, False]), np.array([1.0, 2.0, -1.0]))
        >>> found.patient.tolist(), found.held.tolist(), found.odds.tolist()
        ([2, 5], [False, True], [-1.0, 1.5])
    """
    code, first, owner, records = np.unique(
        patient, return_index=True, return_inverse=True, return_counts=True
    )
    owner = owner.reshape(-1)
    return Readings(
        patient=code,
        member=member[first],
        held=np.bincount(owner, weights=held, minlength=len(code)) > 0,
        odds=np.bincount(owner, weights=odds, minlength=len(code)) / records,
    )


def read_side(readings: Readings, member: bool, confidence: float) -> Estimate:
    """How well the attribute is read for one side: AUC of holders against the others, over patients."""
    mine = readings.member == member
    return auc(readings.odds[mine], readings.held[mine], confidence=confidence)


def area_difference(readings: Readings, confidence: float = 0.95) -> Estimate:
    """AUC of members minus AUC of held-out patients, under the same out-of-fold classifiers.

    Above zero says that the embedding tells more of patients in the training data than of strangers. Holders and
    others of the two sides are four independent groups of patients, so that the intervals of the two areas join by the
    square-and-add rule; no bootstrap, which at ten holders of a side draws the same few.

    Args:
        readings: With holders and others on both sides.
        confidence: Of the interval.

    Returns:
        The difference, ``n`` counts patients.

    References:
        Zou and Donner, Stat. Med. 27, 2008.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> member, held = np.arange(400) < 200, rng.random(400) < 0.3
        >>> readings = Readings(patient=np.arange(400), member=member, held=held,
        ...                     odds=rng.normal(size=400) + 2.0 * (held & member))
        >>> area_difference(readings).low > 0.2
        True
    """
    a, b = read_side(readings, True, confidence), read_side(readings, False, confidence)
    value = a.value - b.value
    return Estimate(
        value=value,
        low=max(value - math.hypot(a.value - a.low, b.high - b.value), -1.0),
        high=min(value + math.hypot(a.high - a.value, b.value - b.low), 1.0),
        n=a.n + b.n,
        method="DeLong of either side, square-and-add",
        confidence=confidence,
    )


def average_precision(odds: Floats, held: Bools, *, confidence: float = 0.95) -> Estimate:
    """Area under the precision-recall curve, with its interval on the logit scale.

    Without any skill it is the share of holders, which is to be shown beside it. The area leans upward where holders
    are few. The interval takes it for a share of the holders; ``tests/probes/test_embedding.py`` measures its coverage,
    which a percentile bootstrap does not reach.

    Args:
        odds: ``(P,)`` one for each patient; ties count as one threshold.
        held: ``(P,)`` with holders and others.
        confidence: Of the interval.

    References:
        Boyd, Eng and Page, ECML PKDD 2013, LNCS 8190 (the logit interval).

    Example:
        >>> found = average_precision(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False]))
        >>> print(found)
        0.833 [0.108, 0.995]
    """
    order = np.argsort(-odds, kind="stable")
    ranked, truth = odds[order], held[order]
    last = np.flatnonzero(np.concatenate([ranked[1:] != ranked[:-1], [True]]))
    hits = np.cumsum(truth)[last]
    value = float(np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / hits[-1])
    n = int(hits[-1])
    inside = min(max(value, 0.5 / (n + 1)), 1.0 - 0.5 / (n + 1))  # at 1 the scale ends
    centre = math.log(inside / (1.0 - inside))
    half = float(stats.norm.ppf(0.5 + confidence / 2)) / math.sqrt(n * inside * (1.0 - inside))
    low, high = (1.0 / (1.0 + math.exp(-x)) for x in (centre - half, centre + half))
    return Estimate(
        value=value,
        low=min(low, value),
        high=1.0 if value == 1.0 else max(high, value),
        n=len(odds),
        method="average precision, logit",
        confidence=confidence,
    )
