"""The next code by counting: an interpolated n-gram of everybody's records but the patient's own.

The same arithmetic as :mod:`memguard.records.ngram` (codes are counted with 1/2 added to each, a longer context is
drawn towards the shorter one as if that had been seen five times), but fitted once and asked often, for single codes
and for all codes after a prompt. Counts add up, so that taking a patient's own off gives exactly the model that was
never shown the patient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.records.content import Ragged

__all__ = ["NextCodeCounts"]

_Int = NDArray[np.int64]
_Float = NDArray[np.float64]

_ALPHA = 0.5
_STRENGTH = 5.0


@dataclass(frozen=True)
class _Own:
    """How often each patient has each key."""

    key: _Int  # sorted; key * n_patients + patient
    count: _Int
    n_patients: int

    @classmethod
    def of(cls, keys: _Int, patient: _Int, n_patients: int) -> _Own:
        key, count = np.unique(keys * n_patients + patient, return_counts=True)
        return cls(key, count, n_patients)

    def at(self, keys: _Int, patient: _Int) -> _Int:
        """Own counts of these keys; 0 for a key or patient below 0, which are unknown."""
        return np.where(
            patient < 0, 0, _look_up(self.key, self.count, _joined(keys, self.n_patients, patient))
        )


@dataclass(frozen=True)
class _Level:
    """Counts of one length of n-gram; a context is 0 at the start of a record, otherwise 1 + number of its n-gram."""

    gram: _Int  # sorted; context * vocabulary + code
    count: _Int
    of_context: _Int
    own: _Own
    own_context: _Own


class NextCodeCounts:
    """How likely each code is after those before it, from counts of other patients.

    Args:
        train: Sequences of the patients who are counted.
        patient: ``(N,)`` whose they are, integers; every sequence its own patient when ``None``.
        vocabulary: V; by default one more than the largest code.
        order: Longest n-gram: the code and ``order - 1`` before it.

    Raises:
        DataError: If there is nothing to count, codes are outside the vocabulary, or patients do not match.

    What it does and does not show: what a code's nearest predecessors say about it in other people's records. It
    knows nothing of what came earlier than ``order - 1`` codes ago, so a code that this model does not expect may
    still be inferred by one that reads the whole record.

    Example:
        >>> counts = NextCodeCounts(Ragged.from_lists([[1, 2], [1, 2], [1, 3]]), [0, 1, 2], vocabulary=4)
        >>> everybody = counts.next_log_probs(Ragged.from_lists([[1]]), np.array([-1]))
        >>> others = counts.next_log_probs(Ragged.from_lists([[1]]), np.array([2]))
        >>> np.exp(everybody).round(2).tolist(), np.exp(others).round(2).tolist()
        ([[0.02, 0.17, 0.53, 0.28]], [[0.04, 0.21, 0.7, 0.04]])
    """

    def __init__(
        self,
        train: Ragged,
        patient: ArrayLike | None = None,
        *,
        vocabulary: int | None = None,
        order: int = 3,
    ) -> None:
        who = np.arange(len(train)) if patient is None else np.asarray(patient)
        if who.shape != (len(train),) or who.dtype.kind not in "iu":
            raise DataError(
                f"patients of shape {who.shape} and type {who.dtype} for {len(train)} sequences",
                "a patient's own codes would be left in the counts",
                "pass one integer for each sequence",
            )
        size = 1 + int(train.values.max(initial=-1)) if vocabulary is None else vocabulary
        if len(train.values) == 0 or order < 1:
            raise DataError(
                "no codes to count", "every code would be as likely as any", "pass sequences, order >= 1"
            )
        self.vocabulary, self.order = size, order
        self._refuse(train)
        self.patients, numbered = np.unique(who, return_inverse=True)
        n = len(self.patients)
        owner = np.repeat(numbered.astype(np.int64), train.lengths)
        self._total, self._own_total = len(train.values), np.bincount(owner, minlength=n)
        code, first = train.values.astype(np.int64), _firsts(train)
        self._levels: list[_Level] = []
        context = np.zeros(len(code), dtype=np.int64)
        for _ in range(order):
            gram, number, count = np.unique(context * size + code, return_inverse=True, return_counts=True)
            level = _Level(
                gram, count, np.bincount(context), _Own.of(number, owner, n), _Own.of(context, owner, n)
            )
            self._levels.append(level)
            context = _after(number, first)
        own = self._levels[0].own
        by = np.argsort(own.key % n, kind="stable")  # codes of each patient together
        self._codes, self._times = self._levels[0].gram[own.key[by] // n], own.count[by]
        self._begin = np.concatenate([[0], np.cumsum(np.bincount(own.key % n, minlength=n))])

    def log_probs(self, sequences: Ragged, patient: _Int) -> _Float:
        """Log-probability of every code, the first of a record too.

        Args:
            sequences: ``n`` with ``total`` codes.
            patient: ``(n,)`` whose they are; the own counts of those who were counted are taken off.

        Returns:
            ``(total,)`` natural logarithms.

        Raises:
            DataError: For codes outside the vocabulary, or patients that do not match.
        """
        owner = np.repeat(self._numbers(patient, sequences), sequences.lengths)
        code, first = sequences.values.astype(np.int64), _firsts(sequences)
        total = self._total - np.where(owner < 0, 0, self._own_total[owner])
        context = np.zeros(len(code), dtype=np.int64)
        p = np.zeros(len(code))
        for k, level in enumerate(self._levels):
            number = _find(level.gram, _joined(context, self.vocabulary, code))
            joint = np.where(number < 0, 0, level.count[number]) - level.own.at(number, owner)
            if k == 0:
                p = (joint + _ALPHA) / (total + _ALPHA * self.vocabulary)
            else:
                p = (joint + _STRENGTH * p) / (self._seen(level, context, owner) + _STRENGTH)
            context = _after(number, first)
        return np.log(p)

    def next_log_probs(self, prompts: Ragged, patient: _Int) -> _Float:
        """Log-probabilities of all V codes after each prompt (an empty one: at the start of a record), ``(n, V)``.

        Raises:
            DataError: For codes outside the vocabulary, or patients that do not match.
        """
        owner, size = self._numbers(patient, prompts), self.vocabulary
        counted = np.zeros(size)
        counted[self._levels[0].gram] = self._levels[0].count
        p = np.tile(counted + _ALPHA, (len(prompts), 1))
        known = np.flatnonzero(owner >= 0)
        row, entry = _ranges(self._begin[owner[known]], self._begin[owner[known] + 1])
        p[known[row], self._codes[entry]] -= self._times[entry]
        p /= (self._total - np.where(owner < 0, 0, self._own_total[owner]) + _ALPHA * size)[:, None]
        for k, level in enumerate(self._levels[1:], start=1):
            context = self._context(prompts, k)
            weight = self._seen(level, context, owner) + _STRENGTH
            p *= (_STRENGTH / weight)[:, None]
            known = np.flatnonzero(context >= 0)
            ends = (np.searchsorted(level.gram, (context[known] + end) * size) for end in (0, 1))
            row, entry = _ranges(*ends)
            row = known[row]
            joint = level.count[entry] - level.own.at(entry, owner[row])
            p[row, level.gram[entry] % size] += joint / weight[row]
        return np.log(p)

    def _context(self, prompts: Ragged, k: int) -> _Int:
        """Context of the level with ``k`` codes before the next one: 0 for an empty prompt, -1 if it was never seen."""
        context = np.zeros(len(prompts), dtype=np.int64)
        for j in range(k):
            # Level j reads the code that lies k - j places back; a younger record is still at its start.
            back = k - j
            old = np.flatnonzero(prompts.lengths >= back)
            code = prompts.values[prompts.offsets[1:][old] - back].astype(np.int64)
            level = self._levels[j]
            number = _find(level.gram, _joined(context[old], self.vocabulary, code))
            context[old] = np.where(number < 0, -1, number + 1)
        return context

    def _seen(self, level: _Level, context: _Int, owner: _Int) -> _Int:
        """How often a context was followed by a code, the own times taken off."""
        inside = (context >= 0) & (context < len(level.of_context))
        times = np.where(inside, level.of_context[np.where(inside, context, 0)], 0)
        return times - level.own_context.at(context, owner)

    def _numbers(self, patient: _Int, sequences: Ragged) -> _Int:
        """Numbers of patients, -1 for those who were not counted."""
        who = np.asarray(patient)
        if who.shape != (len(sequences),):
            raise DataError(
                f"patients of shape {who.shape} for {len(sequences)} sequences",
                "the wrong patient's counts would be left out",
                "pass one patient for each sequence, -1 for somebody who was not counted",
            )
        self._refuse(sequences)
        return _find(self.patients, who)

    def _refuse(self, sequences: Ragged) -> None:
        low, high = sequences.values.min(initial=0), sequences.values.max(initial=0)
        if low < 0 or high >= self.vocabulary:
            raise DataError(
                f"codes from {low} to {high} for a vocabulary of {self.vocabulary}",
                "they are not the codes that were counted",
                "pass sequences of the same tokenizer, and vocabulary= with its size",
            )


def _firsts(sequences: Ragged) -> _Int:
    """Where records begin, in the flat codes."""
    return sequences.offsets[:-1][sequences.lengths > 0]


def _after(number: _Int, first: _Int) -> _Int:
    """The context that each n-gram is to the code after it: 0 at the start of a record, -1 after an unknown one."""
    context = np.zeros(len(number), dtype=np.int64)
    context[1:] = np.where(number[:-1] < 0, -1, number[:-1] + 1)
    context[first] = 0
    return context


def _joined(high: _Int, factor: int, low: _Int) -> _Int:
    """``high * factor + low``, -1 where ``high`` is unknown."""
    return np.where(high < 0, -1, high * factor + low)


def _find(table: NDArray[np.integer], wanted: _Int) -> _Int:
    """Place of each value in a sorted table, -1 where it is not there."""
    place = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return np.where(table[place] == wanted, place, -1)


def _look_up(table: _Int, value: _Int, wanted: _Int) -> _Int:
    place = _find(table, wanted)
    return np.where(place < 0, 0, value[place])


def _ranges(start: _Int, end: _Int) -> tuple[_Int, _Int]:
    """Row and value of all integers in ``range(start[i], end[i])``."""
    counts = end - start
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - start, counts)
