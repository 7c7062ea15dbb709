"""One draw of patients in parts that fit in memory: what a part is, how many there are, and who is in which."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memguard.errors import PrivacyError

__all__ = ["Chunk", "balance", "expected_draw", "n_chunks", "whole_draw"]

_Ints = np.ndarray[Any, np.dtype[np.int64]]
_Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Chunk:
    """One part of one draw, as one process sees it: whole patients with the records that were drawn of each.

    Attributes:
        draw: Number of the draw, the same on every process; no number comes twice.
        part: Which part of the draw this is, ``0 .. parts - 1``.
        parts: How many parts the draw has.
        positions: ``(n,)`` int64, positions in the dataset; the records of one patient stand together.
        owner: ``(n,)`` int64, whose record each is: ``0 .. n_owners - 1``, numbers within the chunk.
        n_owners: Patients in the chunk.

    Example:
        >>> chunk = Chunk(draw=0, part=0, parts=1, positions=np.array([4, 5, 9]), owner=np.array([0, 0, 1]), n_owners=2)
        >>> chunk.empty
        False
    """

    draw: int
    part: int
    parts: int
    positions: _Ints
    owner: _Ints
    n_owners: int

    @property
    def empty(self) -> bool:
        """Whether no patient fell into this part."""
        return self.n_owners == 0


def whole_draw(chunks: Sequence[Chunk]) -> int:
    """The draw that these chunks are, all of it and nothing else.

    Parts of two draws in one sum may hold a patient twice, who then contributes up to twice the clip norm: the noise
    would be half of what is accounted.

    Args:
        chunks: What was summed for one optimizer step, in order.

    Returns:
        The number of the draw.

    Raises:
        PrivacyError: If the chunks are not parts ``0 .. parts - 1`` of one draw.

    Example:
        >>> none = np.empty(0, np.int64)
        >>> whole_draw([Chunk(7, 0, 2, none, none, 0), Chunk(7, 1, 2, none, none, 0)])
        7
    """
    if not chunks:
        raise PrivacyError(
            "an optimizer step without any part of a draw",
            "the accountant counts a step, and no draw belongs to it",
            "let every optimizer step follow the batches of the private loader",
        )
    first = chunks[0]
    wanted = [(first.draw, part, first.parts) for part in range(first.parts)]
    found = [(chunk.draw, chunk.part, chunk.parts) for chunk in chunks]
    if found != wanted:
        listed = ", ".join(f"{part + 1}/{parts} of draw {draw}" for draw, part, parts in found[:8])
        raise PrivacyError(
            f"one optimizer step sums the parts {listed}{' ...' if len(found) > 8 else ''}",
            "a patient could be in the sum twice, which doubles what he can change, or the draw is not the one "
            "that is accounted",
            f"step once every {first.parts} batches: leave accumulate_grad_batches as it was set, skip no batch, "
            "and let limit_train_batches be a multiple of it",
        )
    return first.draw


def expected_draw(
    rates: float | Sequence[float] | _Floats, records: Sequence[int] | _Ints, max_records: int | None = None
) -> tuple[float, float]:
    """Expected number of records in a draw, and its standard deviation.

    Args:
        rates: Sampling rate, or ``(P,)`` one for each patient.
        records: ``(P,)`` records of each patient.
        max_records: Most records of one patient in a draw; None for all.

    Returns:
        ``sum(q r)`` and ``sqrt(sum(q (1 - q) r^2))`` over patients, r being the capped number of records.

    Example:
        >>> expected_draw(0.5, [1, 1, 1, 10], max_records=1)
        (2.0, 1.0)
    """
    r = np.asarray(records, dtype=np.float64)
    if max_records is not None:
        r = np.minimum(r, max_records)
    q = np.broadcast_to(np.asarray(rates, dtype=np.float64), r.shape)
    return float((q * r).sum()), math.sqrt(float((q * (1 - q) * r * r).sum()))


def n_chunks(expected: float, sd: float, physical: int) -> int:
    """In how many parts to cut each draw, so that a part fits in memory in all but about one of 1e9 draws.

    Args:
        expected: Expected records in a draw, of :func:`expected_draw`.
        sd: Their standard deviation.
        physical: Records that fit in memory at once, all processes together.

    Returns:
        ``ceil((expected + 6 sd) / physical)``, at least 1. Parts are balanced by records, but hold whole patients: one
        may be larger than the mean by at most the records of one patient.

    Example:
        >>> n_chunks(256, 16, 64)
        6
    """
    if physical < 1:
        raise PrivacyError(
            f"physical={physical}", "no record would fit in memory", "pass the batch size that fits in memory"
        )
    return max(1, math.ceil((expected + 6 * sd) / physical))


def balance(sizes: _Ints, cells: int) -> _Ints:
    """Which cell each patient goes to: the largest first, each to the cell with the fewest records so far.

    Args:
        sizes: ``(P,)`` records of each patient.
        cells: Number of cells.

    Returns:
        ``(P,)`` int64. The fullest cell holds at most the mean plus the records of one patient (Graham 1969).

    Example:
        >>> balance(np.array([1, 5, 2, 2]), 2)
        array([1, 0, 1, 1])
    """
    cell = np.zeros(len(sizes), dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    if cells == 1 or len(sizes) == 0:
        return cell
    if sizes[order[0]] == sizes[order[-1]]:
        cell[order] = np.arange(len(sizes)) % cells
        return cell
    loads = [(0, at) for at in range(cells)]
    for patient, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        load, at = loads[0]
        cell[patient] = at
        heapq.heapreplace(loads, (load + size, at))
    return cell
