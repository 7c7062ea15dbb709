"""The input of every bound: canaries that fair coins put into the training set, and their scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from memguard.attacks._checks import Floats, finite, labels, share
from memguard.errors import MemguardError

__all__ = ["canaries"]

_FAIR = 1e-6  # a fair coin is called unfair once in a million audits


def canaries(
    scores: ArrayLike, included: ArrayLike, delta: float, confidence: float, *, coins: bool
) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores and labels, checked.

    Args:
        scores: ``(m,)``.
        included: ``(m,)``.
        delta: In [0, 1).
        confidence: In (0, 1).
        coins: Whether the bound needs fair coins; an inclusion that cannot be one is then refused.

    Example:
        >>> canaries([1, 2], [0, 1], 1e-5, 0.95, coins=True)
        (array([1., 2.]), array([False,  True]))
    """
    values = finite(scores, "scores")
    truth = labels(included, len(values), "included")
    share(confidence, "confidence")
    if not 0.0 <= delta < 1.0:
        raise MemguardError(
            f"delta = {delta!r}", "it is the probability with which epsilon may fail", "pass delta in [0, 1)"
        )
    inside = int(np.count_nonzero(truth))
    if coins and 2 * special.bdtr(min(inside, len(truth) - inside), len(truth), 0.5) < _FAIR:
        raise MemguardError(
            f"{inside} of {len(truth)} canaries were included",
            "the bound rests on a fair coin for each canary, and these were not fair",
            "include each canary with probability 1/2, and pass the others with included=False",
        )
    return values, truth
