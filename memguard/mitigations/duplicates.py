"""How much a record counts that is nearly another one, or one of many of its patient: arrays in, weights out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import MemguardError
from memguard.mitigations.arguments import is_number

__all__ = ["cluster_weights", "even_patients"]


def cluster_weights(cluster_size: ArrayLike, power: float = 1.0) -> NDArray[np.float64]:
    """Weights with which a cluster of near-duplicates counts like fewer records.

    Args:
        cluster_size: ``(N,)`` records in the cluster of each record, itself included.
        power: 1: a cluster counts like one record. 0: like all of its records. Between them, n records count like
            ``n ** (1 - power)``.

    Returns:
        ``(N,)`` weights, ``cluster_size ** -power``.

    Raises:
        MemguardError: If ``power`` is not in [0, 1], or a size is below one.

    Guarantees:
        None. Copies that are not found count in full, and what copies have in common is still learned.

    Example:
        >>> cluster_weights([1, 4, 4], power=0.5).tolist()
        [1.0, 0.5, 0.5]
    """
    size = np.asarray(cluster_size, np.float64)
    if not is_number(power) or not 0 <= power <= 1 or (size < 1).any():
        raise MemguardError(
            f"power={power!r} for clusters of {size.min(initial=1):g} records and more",
            "a cluster would count like less than one record, or like more than it has",
            "pass power= from 0 to 1",
        )
    weights: NDArray[np.float64] = size**-power
    return weights


def even_patients(weights: ArrayLike, patient: ArrayLike) -> NDArray[np.float64]:
    """Weights lowered so that no patient counts for more records than the patient with the fewest has.

    Args:
        weights: ``(N,)`` so far.
        patient: ``(N,)`` code of each record's patient.

    Returns:
        ``(N,)`` weights; the records of one patient keep their proportions. Without near-duplicates every patient has
        the same total.

    Guarantees:
        None.

    Example:
        >>> even_patients([1.0, 1.0, 1.0, 1.0], [0, 0, 0, 1]).round(3).tolist()
        [0.333, 0.333, 0.333, 1.0]
    """
    given, code = np.asarray(weights, np.float64), np.asarray(patient, np.int64)
    if not code.size:
        return given.copy()
    _, inverse, records = np.unique(code, return_inverse=True, return_counts=True)
    total = np.bincount(inverse, weights=given)
    factor = np.minimum(1.0, records.min() / np.where(total > 0, total, 1.0))
    lowered: NDArray[np.float64] = given * factor[inverse]
    return lowered
