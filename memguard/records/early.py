"""Which epoch of a record's own trace tells how hard it is, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.errors import HeldOutError

__all__ = ["best_epoch", "early_epoch", "early_trust"]

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
