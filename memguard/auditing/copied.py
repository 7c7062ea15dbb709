"""Records that are a canary, value by value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.records.canaries import Canaries, FeatureCanaries
from memguard.records.content import Ragged, RecordContent

__all__ = ["matches"]

Ints = NDArray[np.int64]


def matches(canaries: Canaries | FeatureCanaries, content: RecordContent) -> tuple[Ints, Ints]:
    """Records that are a canary in every code, or in every feature and the label.

    Args:
        canaries: m of them.
        content: Of N records.

    Returns:
        Positions of records and number of the canary that each is; empty where the two are of different kinds.

    Example:
        >>> from memguard.records.canaries import make_feature_canaries
        >>> x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
        >>> canaries = make_feature_canaries(x, np.arange(40) % 2, m=3, n_alternatives=2)
        >>> more, labels = np.concatenate([x, canaries.x[[2]]]), np.append(np.arange(40) % 2, canaries.y[2])
        >>> mixed = RecordContent.from_features(more, labels)
        >>> [one.tolist() for one in matches(canaries, mixed)]
        [[40], [2]]
    """
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if isinstance(canaries, FeatureCanaries):
        if content.x is None or (len(canaries.y) > 0) != (content.y is not None):
            return nothing
        made = canaries.content().x
        assert made is not None
        if made.shape[1] != content.x.shape[1]:
            return nothing
        labels = (content.y, canaries.y) if content.y is not None else None
        ours, theirs = Ragged.from_padded(_bits(content.x)), Ragged.from_padded(_bits(made))
        rows, which = _equal(ours, theirs)
        if labels is not None and rows.size:
            same = (
                np.asarray(labels[0]).reshape(len(ours), -1)[rows]
                == labels[1].reshape(len(theirs), -1)[which]
            )
            rows, which = rows[same.all(axis=1)], which[same.all(axis=1)]
        return rows, which
    if content.codes is None:
        return nothing
    return _equal(content.codes, canaries.sequences)


def _bits(x: NDArray[np.float32]) -> NDArray[np.int32]:
    """Features as whole numbers that are the same where the features are; minus zero is zero."""
    return (np.ascontiguousarray(x, np.float32) + np.float32(0.0)).view(np.int32)


def _equal(ours: Ragged, theirs: Ragged) -> tuple[Ints, Ints]:
    """Pairs of equal sequences: found by a hash of each, then compared value by value."""
    longest = int(max(ours.lengths.max(initial=0), theirs.lengths.max(initial=0)))
    weight = np.random.default_rng(0).integers(1, 1 << 63, longest + 1, dtype=np.uint64) | np.uint64(1)
    mine, other = _hashes(ours, weight), _hashes(theirs, weight)
    order = np.argsort(other, kind="stable")
    first = np.searchsorted(other[order], mine, side="left")
    n = np.searchsorted(other[order], mine, side="right") - first
    rows = np.repeat(np.arange(len(ours)), n)
    inner = np.arange(len(rows)) - np.repeat(np.cumsum(n) - n, n)
    which = order[np.repeat(first, n) + inner]
    fits = ours.lengths[rows] == theirs.lengths[which]
    rows, which = rows[fits], which[fits]
    left, right = ours.take(rows), theirs.take(which)
    wrong = np.bincount(left.rows, weights=left.values != right.values, minlength=len(rows)) > 0
    return rows[~wrong].astype(np.int64), which[~wrong].astype(np.int64)


def _hashes(sequences: Ragged, weight: NDArray[np.uint64]) -> NDArray[np.uint64]:
    lengths, starts = sequences.lengths, sequences.offsets[:-1]
    place = np.arange(len(sequences.values)) - np.repeat(starts, lengths)
    mixed = (sequences.values.astype(np.int64).astype(np.uint64) + np.uint64(1)) * weight[place]
    found = lengths.astype(np.uint64)
    some = lengths > 0
    if some.any():
        found[some] += np.add.reduceat(mixed, starts[some])
    return found
