"""From a number and what it is without each seed to an estimate; at the edges of a scale no interval is a point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memguard.attacks import Estimate, jackknife
from memguard.attacks._intervals import auc_interval, clopper_pearson

__all__ = ["Number", "difference", "estimate"]

_FEW = 5.0  # hits, or misses, below which a jackknife alone is not trusted


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of an arm, and what it is without each seed.

    Attributes:
        value: From all seeds.
        without: ``(S,)``.
        patients: Behind it.
        kind: ``"rate"`` and ``"auc"`` lie in [0, 1] and have edges; ``"mean"`` has none.
        attack: The strongest attack; empty for utility.
        pairs: Of a model and a patient of the group whom it trained on, for what lies in [0, 1].
    """

    value: float
    without: NDArray[np.float64]
    patients: int
    kind: Literal["rate", "auc", "mean"] = "mean"
    attack: str = ""
    pairs: int = 0

    def edge(self, confidence: float) -> tuple[float, float] | None:
        """The interval that pairs alone give, where it has to be used: near 0 and 1, or where no seed differs."""
        if self.kind == "mean" or (
            self.pairs * min(self.value, 1.0 - self.value) >= _FEW and bool(np.ptp(self.without) > 0.0)
        ):
            return None
        if self.kind == "auc":
            return auc_interval(self.value, 0.0, 0.0, self.pairs, self.pairs, confidence)
        return clopper_pearson(self.value, self.pairs, confidence)


def estimate(number: Number, confidence: float) -> Estimate:
    """The number with its interval over seeds.

    A jackknife over seeds says nothing where no seed differs from another, as where everybody is found. Near the edges
    of a scale (fewer than 5 pairs of a model and a patient found, or not found) the interval is therefore at least as
    wide as that of so many independent pairs: Clopper-Pearson for a rate, Newcombe's for an AUC. Given the patients,
    their chances differ, and a sum of unlike coins varies less than one of like coins: for other seeds over the same
    patients it is wide enough.
    """
    low, high = (-math.inf, math.inf) if number.kind == "mean" else (0.0, 1.0)
    found = _jackknife(number.value, number.without, number.patients, confidence, low, high)
    edge = number.edge(confidence)
    if edge is None:
        return found
    return _widened(found, *edge)


def difference(one: Number, other: Number, confidence: float) -> Estimate:
    """``one`` minus ``other``, paired by seed; ``n`` is the smaller number of patients.

    Where one of the two is at an edge of its scale, the interval is at least that of the square-and-add rule from the
    two intervals.
    """
    bound = math.inf if one.kind == "mean" else 1.0
    value, without = one.value - other.value, one.without - other.without
    patients = min(one.patients, other.patients)
    found = _jackknife(value, without, patients, confidence, -bound, bound)
    if one.kind == "mean" or (one.edge(confidence) is None and other.edge(confidence) is None):
        return found
    a, b = estimate(one, confidence), estimate(other, confidence)
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return _widened(found, max(low, -bound), min(high, bound))


def _jackknife(
    value: float, without: NDArray[np.float64], n: int, confidence: float, low: float, high: float
) -> Estimate:
    method = f"jackknife over {len(without)} seeds"
    return jackknife(value, without, n=n, confidence=confidence, low=low, high=high, method=method)


def _widened(found: Estimate, low: float, high: float) -> Estimate:
    return Estimate(
        value=found.value,
        low=min(found.low, low),
        high=max(found.high, high),
        n=found.n,
        method=f"{found.method}, no narrower than over pairs",
        confidence=found.confidence,
    )
