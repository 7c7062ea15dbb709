"""From ragged sequences to padded batches and back, after a look at whether the model can read them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memguard.errors import AbilityError, DataError
from memguard.records.content import Ragged

__all__ = ["batches", "check_readable", "padded", "places"]

Ints = NDArray[np.int64]

_CELLS = 1 << 25  # logits of one batch: 128 MB in float32


def check_readable(
    sequences: Ragged,
    vocabulary: int,
    longest: int | None,
    *,
    forbidden: int | None = None,
    empty: bool = True,
) -> None:
    """Refuse what a model cannot read, or would read wrongly.

    Args:
        sequences: What it is to read.
        vocabulary: Tokens that it knows.
        longest: Most tokens that it reads, ``None`` without a limit.
        forbidden: A token that it takes for padding, if it does so.
        empty: Whether empty sequences may come.

    Raises:
        DataError: For tokens outside the vocabulary, padding inside a sequence, or an empty sequence.
        AbilityError: For a sequence longer than ``longest``.
    """
    values, lengths = sequences.values, sequences.lengths
    if not empty and len(lengths) and int(lengths.min()) == 0:
        raise DataError(
            f"{int((lengths == 0).sum())} empty sequences of {len(lengths)}",
            "there is nothing to predict from",
            "begin every prompt with a token, the one that begins a record for instance",
        )
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < vocabulary:
        outside = np.unique(values[(values < 0) | (values >= vocabulary)])[:5].tolist()
        raise DataError(
            f"tokens {outside} outside the model's vocabulary of {vocabulary}",
            "the sequences were made with another tokenizer, and every probability would be of another code",
            "pass sequences in the model's own tokens",
        )
    if forbidden is not None and np.any(values == forbidden):
        raise DataError(
            f"token {forbidden}, which is padding to this model, inside {_count(sequences, forbidden)} sequences",
            "the model does not read it, and what follows would be predicted from something else",
            "leave padding out of the sequences",
        )
    if longest is not None and len(lengths) and int(lengths.max()) > longest:
        raise AbilityError(
            f"a sequence of {int(lengths.max())} tokens for a model that reads {longest}",
            "it has no places for the rest",
            f"cut sequences to {longest} tokens, or pass longest= if the model reads more",
        )


def _count(sequences: Ragged, token: int) -> int:
    return len(np.unique(sequences.rows[sequences.values == token]))


def batches(
    lengths: Ints, most: int, vocabulary: int, *, least: int = 1, growth: int = 0, equal: bool = False
) -> Iterator[Ints]:
    """Rows that are asked together: sorted by length, so that little is padding.

    Args:
        lengths: ``(n,)`` tokens of each sequence.
        most: Sequences of a batch; fewer where the logits would be large.
        vocabulary: Logits of a token.
        least: Shorter sequences are left out.
        growth: Tokens that will be added to each.
        equal: Only sequences of one length together.

    Yields:
        Row numbers.

    Example:
        >>> [rows.tolist() for rows in batches(np.array([5, 0, 2, 5, 3]), 2, 10)]
        [[2, 4], [0, 3]]
    """
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] >= least]
    start = 0
    while start < len(order):
        longest = int(lengths[order[min(start + most, len(order)) - 1]])
        stop = start + max(1, min(most, _CELLS // ((longest + growth) * vocabulary)))
        rows = order[start:stop]
        if equal:
            rows = rows[lengths[rows] == lengths[rows[0]]]
        yield rows
        start += len(rows)


def padded(sequences: Ragged, pad: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """``(B, T)`` tokens, padded on the right, and which of them are real.

    Example:
        >>> tokens, real = padded(Ragged.from_lists([[3, 4], [5]]), 0)
        >>> tokens.tolist(), real.tolist()
        ([[3, 4], [5, 0]], [[True, True], [True, False]])
    """
    lengths = sequences.lengths
    real = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    tokens = np.full(real.shape, pad, dtype=np.int64)
    tokens[real] = sequences.values
    return tokens, real


def places(sequences: Ragged, rows: Ints) -> Ints:
    """Where the tokens of these rows, all but the first of each, stand in ``sequences.values``."""
    counts = sequences.lengths[rows] - 1
    ends = np.cumsum(counts)
    inner = np.arange(ends[-1], dtype=np.int64) - np.repeat(ends - counts, counts)
    at: Ints = np.repeat(sequences.offsets[rows] + 1, counts) + inner
    return at
