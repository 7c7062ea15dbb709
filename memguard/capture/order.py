"""Does a collate function keep the order of its samples? Sorting by length is common, and moves every loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["has_own_order"]

_PAIRS = 6
_DEPTH = 6


def has_own_order(batch_of: Callable[[list[int]], Sequence[Any]], n_records: int) -> bool:
    """Whether two records make the same batch in either order, though they are different records.

    Then no row of a batch can be given to a record by its place. The records are a few pairs spread over the
    data set; what cannot be compared, and a collate function that fails on two records, counts as no evidence.

    Args:
        batch_of: Positions -> batches of these records, the same at every call.
        n_records: Of the data set.

    Returns:
        True only where it is certain.

    Example:
        >>> words = ["a", "to", "the", "when"]
        >>> has_own_order(lambda rows: [[words[row] for row in rows]], 4)
        False
        >>> has_own_order(lambda rows: [sorted((words[row] for row in rows), key=len)], 4)
        True
    """
    pairs = min(_PAIRS, n_records // 2)
    for first in np.linspace(0, n_records - 1, 2 * pairs).astype(int).reshape(-1, 2).tolist():
        try:
            there, back = batch_of(first), batch_of(first[::-1])
            if len(there) == len(back) == 1 and _same(there[0], back[0]):
                one, other = batch_of(first[:1]), batch_of(first[1:])
                if not _same(one[0], other[0]):
                    return True
        except Exception:  # the run itself will tell whether its batches can be made
            return False
    return False


def _same(one: Any, other: Any, depth: int = 0) -> bool:
    """Whether two batches certainly hold the same."""
    if type(one) is not type(other) or depth > _DEPTH:
        return False
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key], depth + 1) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b, depth + 1) for a, b in zip(one, other, strict=True))
    if one is None or isinstance(one, (str, bytes, int, float)):
        return bool(one == other)
    return hasattr(one, "__dict__") and _same(vars(one), vars(other), depth + 1)
