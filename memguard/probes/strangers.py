"""Which references are strangers to a patient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["never_saw"]


def never_saw(in_mask: NDArray[np.bool_], patient: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which references saw no record at all of a record's patient, ``(K, n)``.

    Args:
        in_mask: ``(K, n)`` whether reference k was trained on the record.
        patient: ``(n,)`` whose it is; any other grouping (copies) serves too.

    Example:
        >>> never_saw(np.array([[True, False, False]]), np.array([4, 4, 5])).tolist()
        [[False, False, True]]
    """
    _, code = np.unique(patient, return_inverse=True)
    out = np.ones((len(in_mask), len(patient)), np.bool_)
    for k, row in enumerate(in_mask):
        out[k] = np.bincount(code, weights=row, minlength=int(code.max(initial=-1)) + 1)[code] == 0
    return out
