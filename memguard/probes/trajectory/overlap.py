"""How much of a true continuation stands in a generated one, code by code. Pure arithmetic on pairs of sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.records.content import Ragged

__all__ = ["Runs", "common_runs", "exact_match", "multiset_overlap"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CELLS = 1 << 21  # of the table of pairs x positions; bounds the memory, not the number of pairs


def exact_match(made: Ragged, truth: Ragged) -> Floats:
    """Share of the true positions at which the generated sequence has the same code.

    Args:
        made: ``n`` generated sequences, without their prompts.
        truth: ``n`` true continuations, none of them empty.

    Returns:
        ``(n,)`` in [0, 1]; a position that the generated sequence does not reach is not matched.

    Raises:
        DataError: For different numbers of sequences, or an empty true one.

    Example:
        >>> made, truth = Ragged.from_lists([[1, 2, 3]]), Ragged.from_lists([[1, 9, 3, 4]])
        >>> exact_match(made, truth)
        array([0.5])
    """
    _paired(made, truth)
    rows = truth.rows
    place = np.arange(len(truth.values)) - truth.offsets[rows]
    reached = place < made.lengths[rows]
    same = np.zeros(len(place), np.bool_)
    same[reached] = made.values[made.offsets[rows[reached]] + place[reached]] == truth.values[reached]
    return np.bincount(rows, weights=same, minlength=len(truth)) / truth.lengths


def multiset_overlap(made: Ragged, truth: Ragged) -> Floats:
    """Share of the true codes that the generated sequence has too, repeats counted, wherever they stand.

    Args:
        made: ``n`` generated sequences.
        truth: ``n`` true continuations, none of them empty.

    Returns:
        ``(n,)`` in [0, 1].

    Raises:
        DataError: For different numbers of sequences, or an empty true one.

    Example:
        >>> multiset_overlap(Ragged.from_lists([[3, 3, 1]]), Ragged.from_lists([[1, 3, 4, 4]]))
        array([0.5])
    """
    _paired(made, truth)
    both = np.concatenate([made.values, truth.values]).astype(np.int64)
    _, code = np.unique(both, return_inverse=True)
    width = int(code.max(initial=0)) + 1
    cells = []
    for rows, part in ((made.rows, code[: len(made.values)]), (truth.rows, code[len(made.values) :])):
        cells.append(np.unique(rows * width + part, return_counts=True))
    shared, one, other = np.intersect1d(cells[0][0], cells[1][0], assume_unique=True, return_indices=True)
    common = np.minimum(cells[0][1][one], cells[1][1][other])
    return np.bincount(shared // width, weights=common, minlength=len(truth)) / truth.lengths


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Codes that stand in both sequences of a pair without anything between them.

    Attributes:
        length: ``(n,)`` codes of the longest common run.
        weight: ``(n,)`` weight of the heaviest common run, which need not be the longest.
    """

    length: Ints
    weight: Floats


def common_runs(made: Ragged, truth: Ragged, weight: Floats) -> Runs:
    """Longest and heaviest contiguous run of each generated sequence that stands in the true one, at any place.

    A run of codes that everybody has shows nothing of one patient; with ``weight`` the information of each code
    (log of patients over those who carry it, in nats), the heaviest run is the verbatim evidence.

    Args:
        made: ``n`` generated sequences.
        truth: ``n`` true continuations, none of them empty.
        weight: ``(V,)`` of each code, not negative.

    Raises:
        DataError: For different numbers of sequences, an empty true one, or a code without a weight.

    Example:
        >>> weight = np.array([0.0, 1.0, 1.0, 1.0, 7.0])
        >>> runs = common_runs(Ragged.from_lists([[1, 2, 3, 0, 4]]), Ragged.from_lists([[4, 0, 1, 2, 3]]), weight)
        >>> runs.length, runs.weight
        (array([3]), array([7.]))
    """
    _paired(made, truth)
    highest = max(int(made.values.max(initial=-1)), int(truth.values.max(initial=-1)))
    if highest >= len(weight):
        raise DataError(
            f"code {highest} with {len(weight)} weights",
            "a run with it would have no weight",
            "pass one weight for each token of the vocabulary",
        )
    n = len(truth)
    length, heaviest = np.zeros(n, np.int64), np.zeros(n)
    if n == 0:
        return Runs(length=length, weight=heaviest)
    wide = max(int(truth.lengths.max()), 1)
    step = max(_CELLS // wide, 1)
    for low in range(0, n, step):
        rows = np.arange(low, min(low + step, n))
        a, b = _padded(made.take(rows), -1), _padded(truth.take(rows), -2)
        # cell j: of the common run that ends at position i of the one and j of the other
        long, heavy = np.zeros((len(rows), b.shape[1] + 1), np.int64), np.zeros((len(rows), b.shape[1] + 1))
        for i in range(a.shape[1]):
            same = a[:, i, None] == b
            long[:, 1:] = np.where(same, long[:, :-1] + 1, 0)
            heavy[:, 1:] = np.where(same, heavy[:, :-1] + weight[np.maximum(a[:, i], 0)][:, None], 0.0)
            length[rows] = np.maximum(length[rows], long.max(axis=1))
            heaviest[rows] = np.maximum(heaviest[rows], heavy.max(axis=1))
    return Runs(length=length, weight=heaviest)


def _padded(sequences: Ragged, filler: int) -> Ints:
    lengths = sequences.lengths
    out = np.full((len(sequences), int(lengths.max(initial=0))), filler, np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = sequences.values
    return out


def _paired(made: Ragged, truth: Ragged) -> None:
    if len(made) != len(truth):
        raise DataError(
            f"{len(made)} generated sequences for {len(truth)} true ones",
            "a patient would be compared with somebody else",
            "pass one for each",
        )
    empty = int(np.count_nonzero(truth.lengths == 0))
    if empty:
        raise DataError(
            f"{empty} of {len(truth)} true continuations are empty",
            "there is no share of nothing",
            "leave those records out and count them",
        )
