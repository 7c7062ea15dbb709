"""Columns of features by the entries of a batch that they were made of, where batches are not alike.

An entry padded to the longest record of its batch has another shape in each, and one that equals the targets of a batch
by chance is left out as if it were the label. Under one set of columns no feature is taken for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["Columns", "rearranged", "shared", "width_of"]

Columns = tuple[tuple[str, tuple[int, ...]], ...]
"""Where columns of features come from: names of entries, and the shape that each has for one record."""


def width_of(columns: Columns) -> int:
    """How many features they are."""
    return sum(_sizes(columns))


def _sizes(columns: Columns) -> list[int]:
    return [prod(shape) for _, shape in columns]


def shared(several: Sequence[Columns]) -> Columns:
    """Entries that all have, in the order of the first, in the largest shape; others are left out.

    Example:
        >>> shared([(("age", ()), ("labs", (2,))), (("labs", (3,)),)])
        (('labs', (3,)),)
    """
    shapes = [dict(columns) for columns in several]
    found = []
    for name, first in several[0]:
        each = [one[name] for one in shapes if name in one and len(one[name]) == len(first)]
        if len(each) == len(several):
            found.append((name, tuple(max(sizes) for sizes in zip(*each, strict=True))))
    return tuple(found)


def rearranged(x: NDArray[np.float32], old: Columns, new: Columns) -> NDArray[np.float32]:
    """Features under other columns: entries in their order, filled with zeros to their shape."""
    ends = np.cumsum([0, *_sizes(old)])
    where = {name: (start, shape) for (name, shape), start in zip(old, ends[:-1].tolist(), strict=True)}
    made = [np.zeros((len(x), 0), dtype=np.float32)]
    for name, shape in new:
        start, before = where[name]
        entry = np.zeros((len(x), *shape), dtype=np.float32)
        inside = tuple(slice(size) for size in before)
        entry[(slice(None), *inside)] = x[:, start : start + prod(before)].reshape(len(x), *before)
        made.append(entry.reshape(len(x), -1))
    return np.concatenate(made, axis=1)
