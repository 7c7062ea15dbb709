"""Which epoch of a record's own trace tells how hard it is, at what level, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.errors import HeldOutError

__all__ = ["best_epoch", "early_epoch", "early_lag", "early_trust"]

_Float = NDArray[np.float64]


def early_epoch(held_out_mean: Sequence[float] | _Float) -> int:
    """Index (0-based) of the early snapshot: half of the best held-out epoch so far.

    A record's own loss there tells how hard it is, for the model has not learned it yet.

    Args:
        held_out_mean: ``(S,)`` mean held-out loss at each snapshot so far; NaN where it was not evaluated.

    Example:
        >>> early_epoch([3.0, 2.5, 2.2, 2.1, 2.05, 2.04, 2.0, 2.1, 2.2])
        3
    """
    best = best_epoch(held_out_mean)
    usable = np.flatnonzero(np.isfinite(np.asarray(held_out_mean, dtype=np.float64)))
    wanted = -(-(best + 1) // 2) - 1
    return int(usable[np.argmin(np.abs(usable - wanted))])


def best_epoch(held_out_mean: Sequence[float] | _Float) -> int:
    """Index (0-based) of the snapshot with the lowest mean held-out loss so far.

    Example:
        >>> best_epoch([3.0, float("nan"), 2.0, 2.1])
        2
    """
    mean = np.asarray(held_out_mean, dtype=np.float64)
    if mean.ndim != 1 or not np.isfinite(mean).any():
        raise HeldOutError(
            "no held-out loss so far",
            "the early epoch is half of the best held-out one",
            "validate once first",
        )
    return int(np.nanargmin(mean))


def early_trust(held_out_mean: Sequence[float] | _Float) -> float:
    """How far the early loss speaks for a model that knows the population, 0 to 1.

    The square of the share of the held-out improvement so far that was made by the early snapshot. A model
    that was still learning what everybody has in common says little about what is particular to a record.

    Example:
        >>> early_trust([3.0, 2.0, 1.9, 1.9, 1.8]) > 0.6 > early_trust([3.0, 2.5, 2.0, 1.0])
        True
    """
    mean = np.asarray(held_out_mean, dtype=np.float64)
    finite = mean[np.isfinite(mean)]
    gained = finite[0] - finite.min()
    if gained <= 0:
        return 1.0
    share = (finite[0] - mean[early_epoch(mean)]) / gained
    return float(np.clip(share, 0.0, 1.0) ** 2)


def early_lag(held_out_mean: Sequence[float] | _Float) -> float:
    """How far a loss fell, on average, between the middle of the early epoch and its end.

    Members' train-time losses are taken as the epoch goes, on average in its middle, held-out losses at its
    end: half of what the held-out loss fell in that epoch lies between the two, while nothing is memorized.
    Only the level is known, not the dropout of train mode. 0 for the first epoch, whose beginning nobody
    measured; where epochs before were not validated, the fall is shared out evenly.

    Example:
        >>> early_lag([3.0, 2.5, 2.2, 2.1])
        0.25
    """
    mean = np.asarray(held_out_mean, dtype=np.float64)
    early = early_epoch(mean)
    before = np.flatnonzero(np.isfinite(mean[:early]))
    if not before.size:
        return 0.0
    last = before[-1]
    return float((mean[last] - mean[early]) / (early - last) / 2)
