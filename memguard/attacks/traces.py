"""Scores read off the loss traces of training: one loss per snapshot and record, NaN where unseen."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.attacks._checks import Floats
from memguard.errors import MemguardError

__all__ = ["best_minus_final", "last_seen", "lt_iqr"]

_CHUNK = 4_000_000  # values sorted at once: bounded memory at a million records


def lt_iqr(trace: ArrayLike) -> Floats:
    """Interquartile range of each record's loss over training (LT-IQR, arXiv 2411.05743).

    Records whose loss fell far between early and late training are fitted late and individually. Needs no
    other model. It ranks; it has no null of its own, and hard records that everybody learns late score high
    as well.

    Args:
        trace: ``(S, N)`` losses, snapshots by records, any float type; NaN where a record was not seen.

    Returns:
        ``(N,)`` quartile differences by linear interpolation, over the snapshots seen; NaN for a record seen
        less than twice.

    Raises:
        MemguardError: if ``trace`` is not two-dimensional or has no snapshot.

    Example:
        >>> nan = float("nan")
        >>> lt_iqr([[4.0, 2.0, nan], [3.0, 2.0, nan], [2.0, nan, 1.0], [1.0, 2.0, nan]])
        array([1.5, 0. , nan])
    """
    table = _table(trace)
    out = np.full(table.shape[1], np.nan)
    step = max(1, _CHUNK // table.shape[0])
    for start in range(0, table.shape[1], step):
        # one record per row, so that the sort runs over contiguous memory; NaN go last
        rows = np.sort(table[:, start : start + step].T.astype(np.float32), axis=1)
        seen = rows.shape[1] - np.isnan(rows).sum(axis=1)
        spread = _quantile(rows, seen, 0.75) - _quantile(rows, seen, 0.25)
        out[start : start + step] = np.where(seen >= 2, spread, np.nan)
    return out


def best_minus_final(trace: ArrayLike, best: int) -> Floats:
    """Loss at the best held-out snapshot minus the last loss: how far a record went on falling after it.

    After that snapshot the model no longer learns what patients share, so a further fall is individual.

    Args:
        trace: ``(S, N)`` losses, snapshots by records; NaN where a record was not seen.
        best: Index of the snapshot with the lowest held-out loss (negative counts from the end).

    Returns:
        ``(N,)``, positive = fell after the best snapshot. Both losses are the last seen at or before their
        snapshot; NaN for a record not seen by then.

    Raises:
        MemguardError: for a wrong shape or a snapshot that is not there.

    Example:
        >>> nan = float("nan")
        >>> best_minus_final([[4.0, 4.0], [3.0, nan], [0.5, 3.0]], best=1)
        array([2.5, 1. ])
    """
    table = _table(trace)
    snapshots = len(table)
    if not -snapshots <= best < snapshots:
        raise MemguardError(
            f"best = {best} for {snapshots} snapshots",
            "there is no such snapshot",
            "pass the index of the snapshot with the lowest held-out loss",
        )
    return last_seen(table[: best % snapshots + 1]) - last_seen(table)


def last_seen(trace: ArrayLike) -> Floats:
    """Latest loss of each record that is not NaN, ``(N,)``; NaN for a record never seen.

    Example:
        >>> nan = float("nan")
        >>> last_seen([[4.0, 4.0, nan], [3.0, nan, nan]])
        array([ 3.,  4., nan])
    """
    table = _table(trace)
    out = np.full(table.shape[1], np.nan)
    open_ = np.arange(table.shape[1])
    for row in table[::-1]:
        values = row[open_].astype(np.float64)
        seen = ~np.isnan(values)
        out[open_[seen]] = values[seen]
        open_ = open_[~seen]
        if len(open_) == 0:
            break
    return out


def _quantile(rows: NDArray[np.float32], seen: NDArray[np.int64], q: float) -> Floats:
    """Linear-interpolation quantile over the first ``seen`` values of each sorted row."""
    place = q * np.maximum(seen - 1, 0)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(seen - 1, 0))
    index = np.arange(len(rows))
    below, above = rows[index, low].astype(np.float64), rows[index, high].astype(np.float64)
    return below + (place - low) * (above - below)


def _table(trace: ArrayLike) -> NDArray[np.floating]:
    table = np.asarray(trace)
    if table.dtype.kind != "f":
        table = table.astype(np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise MemguardError(
            f"a trace of shape {table.shape}",
            "snapshots and records cannot be told apart",
            "pass losses of shape (snapshots, records), at least one snapshot",
        )
    return table
