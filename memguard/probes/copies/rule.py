"""When a record counts as extractable: a numeric rule whose error on never-trained patients is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.conformal import conformal_p_values
from memguard.errors import ResolutionError

__all__ = ["Extractable", "extractable", "fewest_null"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def fewest_null(error: float) -> int:
    """Never-trained patients that the rule needs: each half of them must allow a p-value of ``error``.

    Example:
        >>> fewest_null(0.05), fewest_null(0.01)
        (38, 198)
    """
    return 2 * (int(np.ceil(1.0 / error - 1e-9)) - 1)


@dataclass(frozen=True, kw_only=True)
class Extractable:
    """Who stands out from never-trained patients.

    Attributes:
        p_value: ``(n,)`` of each record against all never-trained patients; NaN for theirs.
        hit: ``(n,)`` share of two tests that the record passes, each against one half of the never-trained
            patients: 0, 1/2 or 1; for never-trained patients 0 or 1, against the half that they are not in.
    """

    p_value: Floats
    hit: Floats


def extractable(score: Floats, null: Bools, *, error: float, seed: int) -> Extractable:
    """Test each record against never-trained patients.

    Never-trained patients are cut in two halves at random; a half judges the other one, so that their own rate of
    hits is measured and not set by construction.

    Args:
        score: ``(n,)``, larger = more extractable.
        null: ``(n,)`` which are of never-trained patients, one record of each.
        error: A record is a hit where its p-value is at most this.
        seed: Of the halves.

    Guarantees:
        A record that is exchangeable with those of never-trained patients is a hit with probability ``error`` at
        most, on average over never-trained patients (conformal p-values, arXiv 2104.08279, section 2).

    Raises:
        ResolutionError: If there are too few never-trained patients for this error.

    Example:
        >>> score = np.r_[np.full(10, 5.0), np.sin(np.arange(100))]
        >>> found = extractable(score, np.arange(110) >= 10, error=0.05, seed=0)
        >>> float(found.hit[:10].mean()), float(found.p_value[0].round(4)), bool(found.hit[10:].mean() < 0.1)
        (1.0, 0.0099, True)
    """
    where = np.flatnonzero(null)
    if where.size < fewest_null(error):
        raise ResolutionError(
            f"{where.size} never-trained patients for an error of {error:g}",
            "no p-value against half of them can be so small",
            f"hold out {fewest_null(error)} patients, or pass a larger error",
        )
    half = np.zeros(len(score), np.int64)
    half[where[np.random.default_rng([seed, 11]).permutation(where.size)[: where.size // 2]]] = 1
    hit, p = np.zeros(len(score)), np.full(len(score), np.nan)
    p[~null] = conformal_p_values(score[~null], score[null])
    for part in (0, 1):
        judges = null & (half == part)
        judged = ~judges
        each = conformal_p_values(score[judged], score[judges]) <= error + 1e-12
        hit[judged] += np.where(null[judged], 1.0, 0.5) * each
    return Extractable(p_value=p, hit=hit)
