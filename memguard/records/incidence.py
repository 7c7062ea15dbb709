"""Which patient carries which code, and how often, as one sparse matrix.

Rarity and near-duplicates are both read off this matrix. It is built on the codes that the model sees: a code
that the vocabulary dropped makes nobody rare, and a bin of a laboratory value can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from memguard.errors import DataError
from memguard.records._ids import as_ids, number
from memguard.records.content import Ragged, RecordContent
from memguard.records.patients import PatientMap

__all__ = ["Incidence", "discretize", "incidence"]

_DIRECT = 1 << 22  # columns that are cheap to keep even if most are empty
_PROBE = 20_000
_CATEGORIES, _STRIDE = 32, 64  # most values of a column that is not continuous; codes set aside for each


@dataclass(frozen=True)
class Incidence:
    """How often each patient carries each code.

    Attributes:
        counts: ``(P, V)`` int32 sparse, columns sorted within each row, no stored zeros.
        code: int64 ``(V,)``, the code of each column.
        ids: ``(P,)`` the patients' ids.
        observed: bool ``(P,)``; false where no record of the patient has been seen.
    """

    counts: sparse.csr_array
    code: NDArray[np.int64]
    ids: NDArray[Any]
    observed: NDArray[np.bool_]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The patient of each stored entry."""
        return np.repeat(np.arange(len(self.ids)), np.diff(self.counts.indptr))

    def code_patients(self) -> NDArray[np.int64]:
        """In how many patients each code is, ``(V,)``."""
        return np.bincount(self.counts.indices, minlength=len(self.code)).astype(np.int64)


def incidence(
    content: RecordContent, patient: PatientMap | ArrayLike, *, continuous_bins: int = 0
) -> Incidence:
    """Count the codes of every patient, over all records of the patient.

    Args:
        content: N records.
        patient: The patient of each, a map or N ids.
        continuous_bins: For features, see `discretize`.

    Raises:
        DataError: The numbers of records differ.

    Example:
        >>> content = RecordContent.from_codes(Ragged.from_lists([[5, 5, 7], [7], [9]]))
        >>> table = incidence(content, ["a", "b", "a"])
        >>> table.code.tolist(), table.counts.toarray().tolist()
        ([5, 7, 9], [[2, 1, 1], [0, 1, 0]])
    """
    ids, owner = patient_codes(patient, len(content))
    codes = (
        content.codes if content.codes is not None else discretize(content, continuous_bins=continuous_bins)
    )
    seen = content.observed & (owner >= 0)
    observed = np.bincount(owner[seen], minlength=len(ids)) > 0
    order = np.argsort(owner, kind="stable")
    order = order[seen[order]]
    if not np.array_equal(order, np.arange(len(owner))):  # one record a patient, in order: no copy
        codes, owner = codes.take(order), owner[order]
    per_patient = np.bincount(owner, codes.lengths, minlength=len(ids)).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(per_patient)])
    column, labels = _columns(codes.values)
    counts = sparse.csr_array((np.ones(len(column), np.int32), column, indptr), shape=(len(ids), len(labels)))
    counts.sum_duplicates()
    return Incidence(counts, labels, ids, observed)


def patient_codes(patient: PatientMap | ArrayLike, n_records: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The distinct patients, and the number of each record's patient among them (-1 where not known)."""
    if isinstance(patient, PatientMap):
        ids, owner = patient.ids, patient.code
    else:
        ids, owner = number(as_ids(patient, "patient"), "patient")
    if len(owner) != n_records:
        raise DataError(
            f"{len(owner)} patients for {n_records} records",
            "codes would be given to the wrong patient",
            "pass one id per record",
        )
    return ids, owner


def _columns(values: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Column of each code, and the code of each column."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, -1)
    if low >= 0 and high < _DIRECT:
        used = np.bincount(values, minlength=high + 1) > 0
        column = np.cumsum(used, dtype=np.int32) - np.int32(1)
        return column[values], np.flatnonzero(used)
    labels, column = np.unique(values, return_inverse=True)
    return column.astype(np.int32), labels.astype(np.int64)


def discretize(content: RecordContent, *, continuous_bins: int = 0) -> Ragged:
    """Write feature vectors as codes, one for each column and value, so that rarity can be counted.

    A column with two values gives a code only for the less frequent one (multi-hot and one-hot inputs: what
    is present), a column with up to 32 values one code a value. Other columns are continuous: each is
    cut in quantile bins, or left out, since nobody is told apart by the ninth digit of a number.

    Args:
        content: N feature vectors of d columns.
        continuous_bins: Bins of a continuous column, up to 63; 0 leaves them out.

    Returns:
        N sequences of codes, ``64 * column + value``.

    Example:
        >>> content = RecordContent.from_features([[1, 3], [0, 3], [0, 3]])
        >>> discretize(content).values.tolist(), discretize(content).lengths.tolist()
        ([1], [1, 0, 0])
    """
    assert content.x is not None
    x = content.x
    n, d = x.shape
    if d * _STRIDE > np.iinfo(np.int32).max:
        raise DataError(f"{d:,} features", "their codes do not fit in 32 bits", "pass fewer features")
    codes = np.full((n, d), -1, np.int32)
    probe = x[np.linspace(0, n - 1, min(n, _PROBE)).astype(np.int64)] if n else x
    for j in range(d):  # over features, not over records
        few = len(np.unique(probe[:, j])) <= _CATEGORIES
        values = np.unique(x[:, j]) if few else np.zeros(0)
        if few and len(values) <= _CATEGORIES:
            at = np.searchsorted(values, x[:, j]) if len(values) > 1 else np.zeros(0, np.int64)
            if len(values) == 2:
                rarer = int(at.mean() <= 0.5)
                codes[at == rarer, j] = j * _STRIDE + rarer
            elif len(values) > 2:
                codes[:, j] = j * _STRIDE + at
        elif continuous_bins > 1:
            edges = np.unique(np.quantile(probe[:, j], np.arange(1, continuous_bins) / continuous_bins))
            codes[:, j] = j * _STRIDE + np.searchsorted(edges, x[:, j], side="right")
    return Ragged.from_padded(codes, codes >= 0)
