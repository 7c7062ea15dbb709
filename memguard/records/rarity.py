"""How easily is a patient told from the others by what the model was given?

Rarity says who could be recognized if the model gave the record away. It does not say that it does: most
memorized patients carry no rare code at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.records._hashing import scramble
from memguard.records.content import RecordContent
from memguard.records.incidence import Incidence, incidence, patient_codes
from memguard.records.patients import PatientMap

__all__ = ["RarityTable", "rarity"]

_BLOCK = 1 << 16
_BANDS = 10  # of a continuous quasi-identifier: what somebody knows of an age, not its ninth digit


@dataclass(frozen=True, kw_only=True)
class RarityTable:
    """Facts about each of ``P`` patients, within the records that were given and nowhere else.

    A patient of whom no record has been seen has 0 in every column and no `mean_idf`.

    Attributes:
        ids: ``(P,)`` the patients.
        n_rare_codes: int64, how many of the patient's codes at most `rare_at_most` patients carry.
        min_code_patients: int64, how many patients carry the patient's rarest code, the patient included.
        mean_idf: float64, mean over the patient's codes of log(patients / patients with the code), in nats.
        equivalence_class: int64, how many patients share the quasi-identifiers, the patient included.
        unique: bool, whether nobody shares them.
        rare_at_most: The bound used.
    """

    ids: NDArray[Any]
    n_rare_codes: NDArray[np.int64]
    min_code_patients: NDArray[np.int64]
    mean_idf: NDArray[np.float64]
    equivalence_class: NDArray[np.int64]
    unique: NDArray[np.bool_]
    rare_at_most: int

    def __len__(self) -> int:
        return len(self.ids)

    def frame(self) -> pl.DataFrame:
        """One row a patient: `patient` and the five facts."""
        return pl.DataFrame(
            {
                "patient": pl.Series(self.ids.tolist(), strict=False)
                if self.ids.dtype == object
                else self.ids,
                "n_rare_codes": self.n_rare_codes,
                "min_code_patients": self.min_code_patients,
                "mean_idf": self.mean_idf,
                "equivalence_class": self.equivalence_class,
                "unique": self.unique,
            }
        )


def rarity(
    content: RecordContent,
    patient: PatientMap | ArrayLike,
    *,
    rare_at_most: int = 3,
    quasi_identifiers: Sequence[int] | None = None,
    static: int = 2,
) -> RarityTable:
    """Count, for each patient, how many others share what the model saw of them.

    Args:
        content: N records, in the model's own vocabulary.
        patient: The patient of each record: a map, or N ids.
        rare_at_most: A code is rare when at most so many patients carry it.
        quasi_identifiers: The codes (for features: the columns) that somebody else may know. Patients that
            carry the same of them are one equivalence class. A column of more than 32 values is cut at its
            deciles: an age is known as an age band. None: the first `static` codes of the patient's first
            record (for features: all columns of few values, so that nearly everybody is alone in a wide table).
        static: See above.

    Returns:
        One row a patient.

    Raises:
        DataError: The numbers of records differ, or a quasi-identifier does not exist.

    Example:
        >>> from memguard.records.content import Ragged
        >>> records = RecordContent.from_codes(Ragged.from_lists([[1, 5], [1, 5, 6], [2, 5]]))
        >>> table = rarity(records, ["a", "b", "c"], rare_at_most=1)
        >>> table.n_rare_codes.tolist(), table.min_code_patients.tolist(), table.equivalence_class.tolist()
        ([0, 1, 1], [2, 1, 1], [2, 2, 1])
    """
    table = incidence(content, patient)
    observed, carriers = table.observed, table.code_patients()
    carried = np.diff(table.counts.indptr)
    idf = np.log(max(int(observed.sum()), 1) / np.maximum(carriers, 1))
    with np.errstate(invalid="ignore"):
        mean_idf = _sums(table, idf) / carried
    if quasi_identifiers is not None:
        key = _known(content, patient, table, np.unique(np.asarray(quasi_identifiers, dtype=np.int64)))
    elif content.codes is None:
        key = _carried(table, np.ones(len(table.code), dtype=bool))
    else:
        key = _first_codes(content, patient, static)
    _, group = np.unique(key[observed], return_inverse=True)
    size = np.zeros(len(table.ids), np.int64)
    size[observed] = np.bincount(group)[group] if len(group) else 0
    return RarityTable(
        ids=table.ids,
        n_rare_codes=_sums(table, (carriers <= rare_at_most).astype(np.int64)),
        min_code_patients=_minima(table, carriers),
        mean_idf=mean_idf,
        equivalence_class=size,
        unique=size == 1,
        rare_at_most=rare_at_most,
    )


def _blocks(table: Incidence) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.int32]]]:
    """Patients in blocks, so that no temporary array is as long as the data."""
    start, column = table.counts.indptr.astype(np.int64), table.counts.indices
    for low in range(0, len(table.ids), _BLOCK):
        high = min(low + _BLOCK, len(table.ids))
        yield slice(low, high), start[low : high + 1] - start[low], column[start[low] : start[high]]


def _sums(table: Incidence, weight: NDArray[Any]) -> NDArray[Any]:
    """Sum, for each patient, of the weights of the codes that the patient carries."""
    sums = np.zeros(len(table.ids), weight.dtype)
    for rows, start, column in _blocks(table):
        total = np.concatenate([np.zeros(1, weight.dtype), np.cumsum(weight[column], dtype=weight.dtype)])
        sums[rows] = total[start[1:]] - total[start[:-1]]
    return sums


def _minima(table: Incidence, weight: NDArray[np.int64]) -> NDArray[np.int64]:
    """Least weight among the codes of each patient, 0 for a patient without codes."""
    minima = np.zeros(len(table.ids), np.int64)
    for rows, start, column in _blocks(table):
        some = np.diff(start) > 0
        if np.any(some):
            minima[rows][some] = np.minimum.reduceat(weight[column], start[:-1][some])
    return minima


def _known(
    content: RecordContent, patient: PatientMap | ArrayLike, table: Incidence, asked: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """A 64-bit key of what each patient carries of the quasi-identifiers."""
    if content.x is None:
        return _carried(table, np.isin(table.code, asked))  # a code that nobody carries tells nobody apart
    width = content.x.shape[1]
    if len(asked) and (asked[0] < 0 or asked[-1] >= width):
        raise DataError(
            f"quasi-identifiers from column {asked[0]} to {asked[-1]} of {width}",
            "the classes would be too large",
            "pass column numbers",
        )
    if len(asked) == 0:
        return np.zeros(len(table.ids), np.uint64)
    columns = RecordContent(kind="features", x=content.x[:, asked], observed=content.observed)
    banded = incidence(columns, patient, continuous_bins=_BANDS)
    return _carried(banded, np.ones(len(banded.code), dtype=bool))


def _carried(table: Incidence, chosen: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """A 64-bit key of the set of chosen codes that each patient carries."""
    hashes = scramble(np.arange(len(table.code), dtype=np.uint64))
    return np.asarray(_sums(table, np.where(chosen, hashes, np.uint64(0))), dtype=np.uint64)


def _first_codes(content: RecordContent, patient: PatientMap | ArrayLike, static: int) -> NDArray[np.uint64]:
    """A 64-bit key of the first codes of each patient's first record, order included."""
    assert content.codes is not None
    ids, owner = patient_codes(patient, len(content))
    known = np.flatnonzero((owner >= 0) & content.observed)
    patients, first = np.unique(owner[known], return_index=True)
    record = known[first]
    start, length = content.codes.offsets[record], content.codes.lengths[record]
    key = np.zeros(len(ids), np.uint64)
    for place in range(static):
        has = length > place
        code = content.codes.values[start[has] + place].astype(np.int64).view(np.uint64)
        key[patients[has]] = scramble(key[patients[has]] ^ scramble(code + np.uint64(place + 1)))
    return key
