"""What is put before a model: the start of a record, or what stands right before one of its codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from memguard.adapters.base import ModelAdapter
from memguard.errors import DataError
from memguard.records.content import Ragged

__all__ = ["Asking", "beginnings", "first_places", "log_probs_of", "mean_over_out", "prompts_before"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CELLS = 8_000_000  # log-probabilities held at once


@dataclass(frozen=True, kw_only=True)
class Asking:
    """n codes of records, each of which a model is asked for.

    Attributes:
        row: ``(n,)`` the record.
        place: ``(n,)`` where in its sequence the code stands.
        code: ``(n,)`` the token.
    """

    row: Ints
    place: Ints
    code: Ints

    def __len__(self) -> int:
        return len(self.row)

    def take(self, keep: ArrayLike) -> Asking:
        """Some of them: positions, or truth values."""
        chosen = np.asarray(keep)
        return Asking(row=self.row[chosen], place=self.place[chosen], code=self.code[chosen])


def first_places(sequences: Ragged, static: Ints, which: Bools) -> Ints:
    """Where each record first holds one of these tokens, its static tokens left out.

    Args:
        sequences: N records.
        static: ``(N,)`` static tokens at the head of each.
        which: ``(V,)`` the tokens.

    Returns:
        ``(N,)`` places in the record; -1 where it holds none.

    Example:
        >>> records = Ragged.from_lists([[9, 1, 2, 9], [9, 1], [1, 9, 9]])
        >>> first_places(records, np.array([1, 1, 1]), np.arange(10) == 9).tolist()
        [3, -1, 1]
    """
    values = sequences.values
    if values.size and int(values.max()) >= len(which):
        raise DataError(
            f"token {int(values.max())} with {len(which)} truth values",
            "codes would be taken for others",
            "pass one truth value for each token of the vocabulary",
        )
    place = np.arange(len(values)) - np.repeat(sequences.offsets[:-1], sequences.lengths)
    rows = sequences.rows
    hit = np.flatnonzero(which[values] & (place >= static[rows])) if values.size else np.zeros(0, np.int64)
    out = np.full(len(sequences), -1, np.int64)
    out[rows[hit][::-1]] = place[hit][::-1]  # of several the first is written last
    return out


def prompts_before(
    sequences: Ragged, row: Ints, place: Ints, static: Ints, k: int, *, longest: int | None = None
) -> Ragged:
    """The static tokens of each record and the k tokens right before a place in it.

    An attacker who knows the demographics and the k latest codes can type exactly this. The tokens between the two
    are left out, so that the places of the k tokens are not those of the training record.

    Args:
        sequences: N records.
        row: ``(n,)`` records asked about.
        place: ``(n,)`` place in the record, at or after its static tokens; what stands there is not in the prompt.
        static: ``(N,)`` static tokens at the head of each record.
        k: Known tokens; all there are where there are fewer.
        longest: Most tokens of a prompt; the earliest known ones are left out.

    Returns:
        n prompts; empty where nothing is known.

    Example:
        >>> records = Ragged.from_lists([[1, 2, 3, 4, 5]])
        >>> [prompts_before(records, np.array([0]), np.array([4]), np.array([1]), k)[0].tolist() for k in (0, 2, 9)]
        [[1], [1, 3, 4], [1, 2, 3, 4]]
    """
    head = static[row]
    known = np.minimum(place - head, k)
    if longest is not None:
        known = np.maximum(np.minimum(known, longest - head), 0)
    return _spans(sequences, row, head, place - known, place)


def beginnings(sequences: Ragged, row: Ints, static: Ints, k: int, *, longest: int | None = None) -> Ragged:
    """The static tokens of each record and the first k tokens after them.

    Example:
        >>> records = Ragged.from_lists([[1, 2, 3, 4], [1, 5]])
        >>> [p.tolist() for p in (beginnings(records, np.arange(2), np.array([1, 1]), 2)[i] for i in (0, 1))]
        [[1, 2, 3], [1, 5]]
    """
    end = np.minimum(static[row] + k, sequences.lengths[row])
    if longest is not None:
        end = np.minimum(end, longest)
    return _spans(sequences, row, np.zeros(len(row), np.int64), np.zeros(len(row), np.int64), end)


def _spans(sequences: Ragged, row: Ints, head: Ints, start: Ints, end: Ints) -> Ragged:
    """Tokens ``[0, head)`` and ``[start, end)`` of each record, joined."""
    lengths = head + end - start
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    inner = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    skipped = np.repeat(start - head, lengths) * (inner >= np.repeat(head, lengths))
    return Ragged(sequences.values[np.repeat(sequences.offsets[row], lengths) + inner + skipped], offsets)


def log_probs_of(
    model: ModelAdapter, prompts: Ragged, tokens: Ints | Bools, *, patient: Ints | None = None
) -> Floats:
    """Log-probability that the next token is this one, or that it is one of these.

    Args:
        model: Whom to ask.
        prompts: n prompts, none of them empty.
        tokens: ``(n,)`` token after each prompt, or ``(C, V)`` truth values of C groups of tokens.
        patient: ``(n,)`` whose prompts they are.

    Returns:
        ``(n,)`` natural logarithms; with groups ``(n, C)`` of the summed probabilities.
    """
    n = len(prompts)
    grouped = tokens.dtype == np.bool_
    out = np.empty((n, len(tokens)) if grouped else n)
    step = max(1, _CELLS // model.vocabulary)
    for start in range(0, n, step):
        part = np.arange(start, min(n, start + step))
        each = model.next_log_probs(prompts.take(part), patient=None if patient is None else patient[part])
        if grouped:
            with np.errstate(divide="ignore"):
                out[part] = np.log(np.exp(each) @ tokens.T.astype(np.float64))
        else:
            out[part] = each[np.arange(len(part)), tokens[part]]
    return out


def mean_over_out(log_p: Floats, out: Bools) -> Floats:
    """Logarithm of the mean probability over those references that never saw the patient.

    Args:
        log_p: ``(K, n)``.
        out: ``(K, n)`` whether reference k never saw the patient of record n.

    Returns:
        ``(n,)``; NaN where every reference saw the patient.

    Example:
        >>> mean_over_out(np.log([[0.1, 0.2], [0.3, 0.9]]), np.array([[True, False], [True, False]]))
        array([-1.60943791,         nan])
    """
    count = out.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = special.logsumexp(np.where(out, log_p, -np.inf), axis=0)
        mean: Floats = np.where(count > 0, total - np.log(count), np.nan)
    return mean
