"""Token probabilities of the target, asked in blocks until the time is spent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.probes.clock import NO_LIMIT, Clock
from memguard.probes.subject import Subject
from memguard.records.content import Ragged

__all__ = ["token_log_probs"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 256  # records


def token_log_probs(
    target: ModelAdapter, subject: Subject, rows: Ints, *, clock: Clock = NO_LIMIT, seed: int
) -> tuple[Floats, Ragged, int, int]:
    """Log-probability of each token of the records, members and held-out patients in mixed order.

    The order is drawn at random, so that what is left when the time is spent is a random part of both sides.

    Args:
        target: Able to give ``log_probs``.
        subject: N + M records.
        rows: Records to ask about.
        clock: No new block is begun when it is over.
        seed: Of the order.

    Returns:
        Log-probabilities of all tokens, NaN for those that nothing predicts and those not asked; the sequences as
        they were asked, cut to what the model reads; how many were cut; and how many were not asked.
    """
    sequences = subject.sequences.take(rows)
    lengths = sequences.lengths
    cut = lengths if target.longest is None else np.minimum(lengths, target.longest)
    place = np.arange(len(sequences.values)) - np.repeat(sequences.offsets[:-1], lengths)
    read = Ragged.from_lengths(sequences.values[place < np.repeat(cut, lengths)], cut)
    found = np.full(len(read.values), np.nan)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(cut > 0))
    missed = 0
    for start in range(0, len(order), _BLOCK):
        block = np.sort(order[start : start + _BLOCK])
        if start and clock.over():
            missed = len(order) - start
            break
        some = read.take(block)
        inner = np.arange(len(some.values)) - np.repeat(some.offsets[:-1], some.lengths)
        at = np.repeat(read.offsets[block], some.lengths) + inner
        found[at] = target.log_probs(some, patient=subject.patient[rows[block]])
    return found, read, int(np.count_nonzero(cut < lengths)), missed
