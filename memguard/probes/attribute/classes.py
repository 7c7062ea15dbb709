"""Which patients get a code of a category: how well the model's probability tells, for members and for strangers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import auc

__all__ = ["ClassSide", "average_precision", "difference", "read_side"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_DRAWS = 300


@dataclass(frozen=True, kw_only=True)
class ClassSide:
    """How well patients with the code are told from those without, on one side.

    Attributes:
        positives: Patients who get the code.
        n: Patients.
        auroc: Probability that the score of a patient with the code is the higher one.
        auprc: Average precision; a score that says nothing has the share of positives.
        precision: Share of those called who get it; ``None`` where nobody is called.
        recall: Share of those who get it that are called.
    """

    positives: int
    n: int
    auroc: Estimate
    auprc: Estimate
    precision: Estimate | None
    recall: Estimate


def average_precision(score: Floats, positive: Bools, copies: Floats | None = None) -> float:
    """Mean over positives of the precision at the score of each; ties count as one threshold.

    Args:
        score: ``(n,)``.
        positive: ``(n,)``, at least one.
        copies: ``(n,)`` how often each counts; once if omitted.

    Example:
        >>> round(average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])), 4)
        0.8333
    """
    weight = np.ones(len(score)) if copies is None else copies
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], (weight * positive)[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits, called = np.cumsum(hit)[last], np.cumsum(weight[order])[last]
    gained = np.diff(hits, prepend=0.0)
    if hits[-1] <= 0:
        return math.nan
    return float(np.sum(gained * hits / np.maximum(called, 1e-12)) / hits[-1])


def read_side(
    score: Floats, positive: Bools, threshold: float, *, confidence: float = 0.95, seed: int = 0
) -> ClassSide:
    """Numbers of one side, one record a patient.

    Args:
        score: ``(n,)`` probability, or its logarithm.
        positive: ``(n,)`` who gets the code; both kinds must occur.
        threshold: Who scores higher is called.
        confidence: Of the intervals.
        seed: Of the bootstrap draws of the average precision.

    Example:
        >>> side = read_side(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]), 2.5)
        >>> side.auroc.value, side.precision.value, side.recall.value
        (0.75, 0.5, 0.5)
    """
    rng = np.random.default_rng([seed, 41])
    n, n_positive = len(score), int(positive.sum())
    draws = np.empty(_DRAWS)
    for i in range(_DRAWS):
        copies = np.zeros(n)
        for kind in (np.flatnonzero(positive), np.flatnonzero(~positive)):
            np.add.at(copies, kind[rng.integers(0, len(kind), len(kind))], 1.0)
        draws[i] = average_precision(score, positive, copies)
    tails = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = average_precision(score, positive)
    called = score > threshold
    return ClassSide(
        positives=n_positive,
        n=n,
        auroc=auc(score, positive, confidence=confidence),
        auprc=Estimate(
            value=value,
            low=min(float(tails[0]), value),
            high=max(float(tails[1]), value),
            n=n,
            method="bootstrap of patients, positives and negatives apart",
            confidence=confidence,
        ),
        precision=_rate(positive[called], confidence) if called.any() else None,
        recall=_rate(called[positive], confidence),
    )


def difference(inside: Estimate | None, outside: Estimate | None) -> Estimate | None:
    """Members less never-trained patients, from two independent intervals by the square-and-add rule.

    References:
        Zou and Donner, Stat. Med. 27, 2008.

    Example:
        >>> a, b = (Estimate(value=v, low=v - .1, high=v + .1, n=50, method="") for v in (.8, .6))
        >>> print(difference(a, b))
        0.200 [0.059, 0.341]
    """
    if inside is None or outside is None:
        return None
    value = inside.value - outside.value
    return Estimate(
        value=value,
        low=value - math.hypot(inside.value - inside.low, outside.high - outside.value),
        high=value + math.hypot(inside.high - inside.value, outside.value - outside.low),
        n=inside.n + outside.n,
        method="square-and-add of two intervals over patients",
        confidence=inside.confidence,
    )


def _rate(hit: Bools, confidence: float) -> Estimate:
    """A share with Wilson's interval."""
    n, rate, z = len(hit), float(hit.mean()), float(stats.norm.ppf(0.5 + confidence / 2))
    centre, half = rate + z**2 / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return Estimate(
        value=rate,
        low=max(0.0, (centre - half) / scale),
        high=min(1.0, (centre + half) / scale),
        n=n,
        method="Wilson",
        confidence=confidence,
    )
