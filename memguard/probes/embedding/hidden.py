"""Records without their sensitive codes, and who held them: what a classifier is shown, and what it is to guess."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.records.content import Ragged

__all__ = ["first_tokens", "holders", "without_codes"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def first_tokens(sequences: Ragged, longest: int | None) -> Ragged:
    """Sequences cut to what a model can read.

    Example:
        >>> first_tokens(Ragged.from_lists([[1, 2, 3], [4]]), 2).values.tolist()
        [1, 2, 4]
    """
    if longest is None or not len(sequences) or int(sequences.lengths.max()) <= longest:
        return sequences
    kept = np.minimum(sequences.lengths, longest)
    return Ragged.from_lengths(sequences.values[_place(sequences) < np.repeat(kept, sequences.lengths)], kept)


def holders(sequences: Ragged, static: Ints, groups: Bools) -> Bools:
    """Which records hold a code of each group after their static tokens.

    Args:
        sequences: n records.
        static: ``(n,)`` static tokens at the head of each.
        groups: ``(C, V)`` tokens of C groups.

    Returns:
        ``(n, C)``.

    Raises:
        DataError: If a token is outside the vocabulary.

    Example:
        >>> records = Ragged.from_lists([[9, 1, 2], [9, 1], [2, 9]])
        >>> groups = np.stack([np.arange(10) == 9, np.arange(10) == 1])
        >>> holders(records, np.array([1, 0, 0]), groups).tolist()
        [[False, True], [True, True], [True, False]]
    """
    values = sequences.values
    if values.size and int(values.max()) >= groups.shape[1]:
        raise DataError(
            f"token {int(values.max())} with {groups.shape[1]} truth values",
            "codes would be taken for others",
            "pass one truth value for each token of the vocabulary",
        )
    rows = sequences.rows
    late = _place(sequences) >= static[rows]
    held = np.zeros((len(sequences), len(groups)), dtype=np.bool_)
    for c, group in enumerate(groups):
        held[rows[late & group[values]], c] = True
    return held


def without_codes(sequences: Ragged, static: Ints, hide: Bools) -> Ragged:
    """Sequences without these tokens; static ones stay.

    Where a code goes, two gaps in time may meet: a classifier may read off that something is missing. It may for both
    sides alike, and members minus held-out patients is not touched by that.

    Example:
        >>> records = Ragged.from_lists([[9, 1, 9, 2], [9]])
        >>> cut = without_codes(records, np.array([1, 0]), np.arange(10) == 9)
        >>> cut.values.tolist(), cut.lengths.tolist()
        ([9, 1, 2], [3, 0])
    """
    rows = sequences.rows
    stays = ~hide[sequences.values] | (_place(sequences) < static[rows])
    return Ragged.from_lengths(
        sequences.values[stays], np.bincount(rows[stays], minlength=len(sequences)).astype(np.int64)
    )


def _place(sequences: Ragged) -> Ints:
    """Where in its record each token stands."""
    starts = np.repeat(sequences.offsets[:-1], sequences.lengths)
    place: Ints = np.arange(len(sequences.values), dtype=np.int64) - starts
    return place
