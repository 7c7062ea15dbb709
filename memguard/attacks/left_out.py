"""Intervals over a few independent groups of data: what a number becomes when each of them is left out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from memguard.attacks._checks import finite, share
from memguard.attacks.estimate import Estimate
from memguard.errors import ResolutionError

__all__ = ["jackknife"]


def jackknife(
    value: float,
    left_out: ArrayLike,
    *,
    n: int | None = None,
    confidence: float = 0.95,
    low: float = -math.inf,
    high: float = math.inf,
    method: str = "",
) -> Estimate:
    """Delete-one-group jackknife: a number with an interval from what it is without each group.

    With G groups and ``left_out[g]`` the number computed without group g, the variance is
    ``(G - 1) / G`` times the sum of squared deviations of ``left_out`` from its mean (Tukey 1958), and the interval
    is Student's with G - 1 degrees of freedom. A group leaves with everything that depends on it (in a comparison of
    trainings a seed leaves as a target and as a reference), so no step of the computation is taken for known. The
    variance is biased upward in expectation (Efron and Stein, Ann. Stat. 9, 1981), which keeps the interval honest
    for few groups; it is not valid for numbers that a single group can make jump, and says nothing where all groups
    agree exactly: look at the width.

    For the difference of two numbers over the same groups pass the differences: the interval is then paired.

    Args:
        value: The number from all groups.
        left_out: ``(G,)`` the number without each group.
        n: Independent units, for `Estimate.n`; the groups if omitted.
        confidence: Coverage that the interval aims at.
        low: Least possible number; the interval ends there.
        high: Largest possible number.
        method: For `Estimate.method`; names the jackknife if omitted.

    Raises:
        ResolutionError: With fewer than two groups.
        MemguardError: For NaN or infinite numbers.

    Example:
        >>> import numpy as np
        >>> x = np.array([1.0, 2.0, 4.0])
        >>> print(jackknife(x.mean(), [np.delete(x, g).mean() for g in range(3)]))  # Student's interval of the mean
        2.333 [-1.461, 6.128]
    """
    without = finite(left_out, "left_out")
    centre = float(finite([value], "value")[0])
    share(confidence, "confidence")
    groups = len(without)
    if groups < 2:
        raise ResolutionError(
            f"{groups} group",
            "how far a number varies between groups cannot be told from one",
            "pass the number without each of at least two groups",
        )
    error = math.sqrt((groups - 1) / groups * float(np.sum((without - without.mean()) ** 2)))
    half = float(stats.t.ppf(0.5 + confidence / 2, groups - 1)) * error
    return Estimate(
        value=centre,
        low=max(low, centre - half),
        high=min(high, centre + half),
        n=groups if n is None else n,
        method=method or f"jackknife over {groups} groups",
        confidence=confidence,
    )
