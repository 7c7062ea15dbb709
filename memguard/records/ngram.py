"""Leave-one-patient-out n-gram features: how surprising a record is to everybody else's records.

Every feature is closed form, from counts over the training records with the patient's own counts taken off,
so that no feature of a record depends on the record itself or on another record of the same patient. A
held-out record is scored with all the counts, which is what a patient who is not there would see.

Cost: a handful of sorts of the training codes; memory is linear in their number. No loop over codes or
records.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.records.content import Ragged

__all__ = ["ngram_features"]

_Int = NDArray[np.int64]
_Float = NDArray[np.float64]

_ALPHA = 0.5  # added to the count of each code (Krichevsky-Trofimov)
_STRENGTH = 5.0  # counts that a lower order is worth where a higher one is interpolated with it
_LARGEST = 1 << 62  # packed keys stay below
_BLOCK = 2_000_000  # codes counted together: bounds the working memory at about 0.4 GB


def ngram_features(
    train: Ragged,
    train_patient: ArrayLike | None,
    held_out: Ragged,
    *,
    lags: int = 3,
    block: int = _BLOCK,
    seed: int = 0,
) -> tuple[_Float, _Float, tuple[str, ...]]:
    """Describe each record by its surprise under models of the other patients.

    Args:
        train: codes of the ``N`` training records.
        train_patient: ``(N,)`` patient of each, integers; every record its own patient when ``None``.
        held_out: codes of the ``M`` held-out records, none of them of a training patient.
        lags: skip-bigram features at distances ``2 .. lags``.
        block: where there are more codes than this, patients are divided at random into blocks of about so
            many, held-out records too, and each block is its own population: time stays linear, memory
            bounded.
        seed: of the blocks.

    Returns:
        ``(N, F)`` and ``(M, F)`` float64 features and their ``F`` names. Surprises are in nats per code,
        averaged over the record; an empty record has the training records' mean.

    Raises:
        DataError: if there is no code, or the patients do not match the records.

    What it does and does not show: the fit to a trained model's losses on held-out records says how good this
    surrogate is, and it differs between data sets (r .91 on real patients, .79 on a synthetic cohort, for
    models at the end of training; docs/results/ranking.md).

    Example:
        >>> train = Ragged.from_lists([[1, 2, 3], [1, 2, 3], [9, 9, 9]])
        >>> a, b, names = ngram_features(train, [0, 1, 2], Ragged.from_lists([[1, 2, 3], [9, 9, 9]]))
        >>> a.shape, b.shape, bool(a[2, 0] > a[0, 0]), bool(a[2, 0] > b[1, 0])
        ((3, 8), (2, 8), True, True)
    """
    n = len(train)
    patient = _as_patients(train_patient, n)
    if len(train.values) == 0 or len(held_out) == 0:
        raise DataError(
            "no codes to count", "the surrogate has nothing to stand on", "pass non-empty records"
        )
    size = 1 + max(int(train.values.max()), int(held_out.values.max(initial=0)))
    if min(int(train.values.min()), int(held_out.values.min(initial=0))) < 0:
        raise DataError("negative codes", "they collide with the start of a record", "mask padding out")
    n_blocks = -(-len(train.values) // block)
    if n_blocks == 1:
        return _features(train, patient, held_out, size, lags)
    rng = np.random.default_rng(seed)
    of_train = (rng.permutation(int(patient.max()) + 1) % n_blocks)[patient]
    of_held_out = rng.permutation(len(held_out)) % n_blocks
    x, y, names = np.empty((n, 0)), np.empty((len(held_out), 0)), tuple[str, ...]()
    for k in range(n_blocks):
        rows, columns = np.flatnonzero(of_train == k), np.flatnonzero(of_held_out == k)
        a, b, names = _features(
            train.take(rows), _as_patients(patient[rows], len(rows)), held_out.take(columns), size, lags
        )
        if k == 0:
            x, y = np.empty((n, len(names))), np.empty((len(held_out), len(names)))
        x[rows], y[columns] = a, b
    return x, y, names


def _features(
    train: Ragged, patient: _Int, held_out: Ragged, size: int, lags: int
) -> tuple[_Float, _Float, tuple[str, ...]]:
    """The features of one block; ``patient`` is numbered from 0."""
    a = _Tokens(train, patient, size)
    b = _Tokens(held_out, None, size)
    inside: list[_Float] = []
    outside: list[_Float] = []
    names: list[str] = []

    def keep(name: str, x: _Float, y: _Float) -> None:
        inside.append(a.mean(x))
        outside.append(b.mean(y))
        names.append(name)

    uni = _Table(a.code, b.code, a)
    n_a, n_b = len(a.code) - a.own_total(), np.full(len(b.code), float(len(a.code)))
    p1_a = (uni.train + _ALPHA) / (n_a + _ALPHA * size)
    p1_b = (uni.held_out + _ALPHA) / (n_b + _ALPHA * size)
    s1_a, s1_b = -np.log(p1_a), -np.log(p1_b)
    keep("unigram", s1_a, s1_b)
    scale = size + 1
    bi = _Table(a.before(1) * scale + a.code, b.before(1) * scale + b.code, a)
    p2_a, p2_b = _interpolate(bi, uni.as_context(a, b, 1), p1_a, p1_b)
    keep("bigram", -np.log(p2_a), -np.log(p2_b))
    past_a, past_b = a.before(2) * scale + a.before(1), b.before(2) * scale + b.before(1)
    tri = _Table(past_a * scale + a.code, past_b * scale + b.code, a)
    p3_a, p3_b = _interpolate(tri, bi.as_context(a, b, 1), p2_a, p2_b)
    keep("trigram", -np.log(p3_a), -np.log(p3_b))
    del tri, past_a, past_b, p3_a, p3_b, p2_a, p2_b
    for lag in range(2, lags + 1):
        skip = _Table(a.before(lag) * scale + a.code, b.before(lag) * scale + b.code, a)
        q_a, q_b = _interpolate(skip, uni.as_context(a, b, lag), p1_a, p1_b)
        keep(f"lag{lag}", -np.log(q_a), -np.log(q_b))
    seen_a, seen_b = a.seen_before(), b.seen_before()
    keep("new_codes", (seen_a == 0).astype(float), (seen_b == 0).astype(float))
    keep("new_surprise", s1_a * (seen_a == 0), s1_b * (seen_b == 0))
    inside.append(np.log1p(a.lengths))
    outside.append(np.log1p(b.lengths))
    names.append("log_length")
    x, y = np.column_stack(inside), np.column_stack(outside)
    empty = a.lengths == 0
    x[empty] = y[b.lengths == 0] = x[~empty].mean(0)
    return x, y, tuple(names)


def _as_patients(patient: ArrayLike | None, n: int) -> _Int:
    if patient is None:
        return np.arange(n, dtype=np.int64)
    given = np.asarray(patient)
    if given.shape != (n,):
        raise DataError(
            f"{given.shape} patients for {n} records",
            "a patient's own codes would be left in the counts",
            "pass one patient per record",
        )
    return np.unique(given, return_inverse=True)[1].astype(np.int64)


class _Tokens:
    """Codes laid end to end, with what came before them in the same record."""

    def __init__(self, codes: Ragged, patient: _Int | None, size: int) -> None:
        self.codes, self.size = codes, size
        self.code = codes.values.astype(np.int64)
        self.lengths = codes.lengths
        self.patient = None if patient is None else np.repeat(patient, self.lengths)
        starts = np.repeat(codes.offsets[:-1], self.lengths)
        self.place = np.arange(len(self.code), dtype=np.int64) - starts
        self.n_patients = 0 if patient is None else int(patient.max()) + 1

    def before(self, lag: int) -> _Int:
        """The code ``lag`` places earlier in the record, ``size`` where there is none."""
        out = np.full(len(self.code), self.size, dtype=np.int64)
        out[lag:] = self.code[:-lag] if lag else self.code
        out[self.place < lag] = self.size
        return out

    def mean(self, value: _Float) -> _Float:
        """Mean over each record; 0 where it is empty."""
        total = np.concatenate([[0.0], np.cumsum(value)])[self.codes.offsets]
        return np.diff(total) / np.maximum(self.lengths, 1)

    def seen_before(self) -> _Int:
        """How often each code occurred earlier in its record."""
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return _cumulative(row * (self.size + 1) + self.code)

    def own_total(self) -> _Float:
        assert self.patient is not None
        return np.bincount(self.patient).astype(float)[self.patient]


class _Table:
    """Counts of one kind of n-gram at each position, the patient's own taken off for training codes.

    Args:
        train: key of the n-gram at each training position.
        held_out: the same at each held-out position; a negative key is one that cannot be known.
        tokens: the training codes.
    """

    def __init__(self, train: _Int, held_out: _Int, tokens: _Tokens) -> None:
        assert tokens.patient is not None
        keys = train
        renumber = int(train.max()) >= _LARGEST // tokens.n_patients
        if renumber:
            known, keys = np.unique(train, return_inverse=True)
        # One sort by n-gram, then patient: runs of both are own counts, runs of the first are all counts.
        both = keys * tokens.n_patients + tokens.patient
        order = np.argsort(both)
        ranked = both[order]
        start = _run_starts(ranked)
        own = np.diff(start, append=len(ranked))
        gram_of_run = ranked[start] // tokens.n_patients
        first = _run_starts(gram_of_run)
        total, carriers = np.add.reduceat(own, first), np.diff(first, append=len(start))
        self.gram_of_run = np.repeat(np.arange(len(first)), carriers)
        self.run = np.empty(len(train), dtype=np.int64)
        self.run[order] = np.repeat(np.arange(len(start)), own)
        self.train = (total[self.gram_of_run] - own)[self.run].astype(float)
        table = known[gram_of_run[first]] if renumber else gram_of_run[first]
        place = np.minimum(np.searchsorted(table, held_out), len(table) - 1)
        self.found = np.where(table[place] == held_out, place, -1)
        self.held_out = np.where(self.found < 0, 0, total[place]).astype(float)

    def as_context(self, a: _Tokens, b: _Tokens, lag: int) -> tuple[_Float, _Float]:
        """How often the n-gram that ends ``lag`` places earlier is a context there, the patient's own taken off.

        No sort: the runs are known already. Where the record is not that old, the context is its start.
        """
        assert a.patient is not None
        old = np.flatnonzero(a.place >= lag)
        run = self.run[old - lag]
        own = np.bincount(run, minlength=len(self.gram_of_run))
        total = np.bincount(self.gram_of_run, weights=own)
        out = np.empty(len(a.code))
        out[old] = (total[self.gram_of_run] - own)[run]
        young = np.flatnonzero(a.place < lag)
        out[young] = len(young) - np.bincount(a.patient[young], minlength=a.n_patients)[a.patient[young]]
        out_b = np.full(len(b.code), float(len(young)))
        old_b = np.flatnonzero(b.place >= lag)
        found = self.found[old_b - lag]
        out_b[old_b] = np.where(found < 0, 0.0, total[found])
        return out, out_b


def _interpolate(
    joint: _Table, whole: tuple[_Float, _Float], low_a: _Float, low_b: _Float
) -> tuple[_Float, _Float]:
    """Probability of each code after its context, drawn towards the lower order (Dirichlet smoothing)."""
    p_a = (joint.train + _STRENGTH * low_a) / (whole[0] + _STRENGTH)
    p_b = (joint.held_out + _STRENGTH * low_b) / (whole[1] + _STRENGTH)
    return p_a, p_b


def _run_starts(ranked: _Int) -> _Int:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))


def _cumulative(key: _Int) -> _Int:
    """For each position, how many earlier positions hold the same key."""
    order = np.argsort(key, kind="stable")
    ranked = key[order]
    start = _run_starts(ranked)
    place = np.arange(len(key)) - np.repeat(start, np.diff(start, append=len(key)))
    out = np.empty(len(key), dtype=np.int64)
    out[order] = place
    return out
