"""Which patient does each record belong to?

Losses are measured per record, privacy is owed per patient: every interval, split and flag of memguard needs
this map. It is read from the data set without importing torch, by the attributes that data sets of health
records carry, or given by the user. It is never guessed: with no ids the unit is the record, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError, MemguardError
from memguard.records._ids import HOW_TO_GIVE_IDS, as_array, as_ids, as_objects, number

__all__ = ["PatientMap", "RecordToPatient", "resolve_patients"]

RecordToPatient: TypeAlias = "str | Callable[[int], Any] | Sequence[Any] | NDArray[Any] | None"

_ATTRIBUTES = ("patient_ids", "subject_ids", "patient_id", "subject_id")


@dataclass(frozen=True)
class PatientMap:
    """The patient of every record.

    Attributes:
        ids: ``(P,)`` distinct ids, ascending where they can be ordered; int64 or object.
        code: int64 ``(N,)``, index into ``ids``; -1 where no batch has shown the record yet.
        source: Where the ids came from, in words, for the report.
        unit: ``"patient"``, or ``"record"`` where there are no ids and each record stands for itself.

    Example:
        >>> patients = PatientMap.from_ids(["b", "a", "b"], source="a list")
        >>> patients.ids.tolist(), patients.code.tolist(), patients.n_patients
        (['a', 'b'], [1, 0, 1], 2)
    """

    ids: NDArray[Any]
    code: NDArray[np.int64]
    source: str
    unit: Literal["patient", "record"] = "patient"

    @classmethod
    def from_ids(cls, ids: ArrayLike | Sequence[Any], *, source: str) -> PatientMap:
        """Number the patients of a list of ids, one id per record.

        Raises:
            DataError: A record has no id (None, NaN), or an id is not a whole number, a string or an object.
        """
        unique, code = number(as_ids(ids, source), source)
        return cls(unique, code, source)

    @classmethod
    def of_records(cls, n_records: int, *, source: str = "no patient ids were found") -> PatientMap:
        """Each record stands for itself."""
        position = np.arange(n_records, dtype=np.int64)
        return cls(position, position, source, "record")

    @classmethod
    def from_observed(
        cls,
        positions: ArrayLike,
        ids: ArrayLike | Sequence[Any],
        *,
        n_records: int | None = None,
        source: str = "",
    ) -> PatientMap:
        """Build the map from what batches showed: positions in the data set and the ids that came with them.

        Args:
            positions: ``(B,)`` positions, in any order; repeats are welcome.
            ids: ``(B,)`` ids.
            n_records: Size of the data set; the highest position seen where it is not known.
            source: In words.

        Returns:
            The map, with code -1 for records not seen.

        Raises:
            DataError: One record came with two different ids, or a position lies outside the data set.

        Example:
            >>> PatientMap.from_observed([2, 0, 2], [7, 5, 7], n_records=4).code.tolist()
            [0, -1, 1, -1]
        """
        at = np.asarray(positions, dtype=np.int64).reshape(-1)
        source = source or "the batches"
        unique, seen = number(as_ids(ids, source), source)
        if len(at) != len(seen):
            raise DataError(
                f"{len(seen)} ids for {len(at)} records",
                "losses would go to the wrong patient",
                HOW_TO_GIVE_IDS,
            )
        size = int(at.max(initial=-1)) + 1 if n_records is None else n_records
        if len(at) and (at.min() < 0 or at.max() >= size):
            raise DataError(
                f"positions from {at.min()} to {at.max()} in a data set of {size} records",
                "losses would go to the wrong patient",
                "pass positions in the data set",
            )
        code = np.full(size, -1, np.int64)
        code[at] = seen
        if np.any(code[at] != seen):
            raise DataError(
                f"{len(np.unique(at[code[at] != seen]))} records came with two different patient ids",
                "losses would go to the wrong patient",
                HOW_TO_GIVE_IDS,
            )
        return cls(unique, code, source)

    def __len__(self) -> int:
        return len(self.code)

    @property
    def n_patients(self) -> int:
        """How many different patients, ``P``."""
        return len(self.ids)

    @property
    def complete(self) -> bool:
        """Whether the patient of every record is known."""
        return bool(np.all(self.code >= 0))

    def records_per_patient(self) -> NDArray[np.int64]:
        """Number of records of each patient, ``(P,)``."""
        return np.bincount(self.code[self.code >= 0], minlength=self.n_patients).astype(np.int64)

    def id_of(self, positions: ArrayLike) -> NDArray[Any]:
        """The ids of the patients of these records.

        Raises:
            DataError: No batch has shown one of the records yet.
        """
        code = self.code[np.asarray(positions, dtype=np.int64)]
        if np.any(code < 0):
            raise DataError(
                f"{int(np.sum(code < 0))} records whose patient is not known yet", "", HOW_TO_GIVE_IDS
            )
        return self.ids[code]

    def take(self, rows: ArrayLike) -> PatientMap:
        """The map of a part of the records; patients without a record in it are left out.

        Example:
            >>> PatientMap.from_ids([9, 4, 9, 6], source="a list").take([3, 1]).ids.tolist()
            [4, 6]
        """
        code = self.code[np.asarray(rows)]
        used, again = np.unique(code[code >= 0], return_inverse=True)
        part = np.full(len(code), -1, np.int64)
        part[code >= 0] = again
        return PatientMap(self.ids[used], part, self.source, self.unit)


def resolve_patients(
    dataset: Any = None,
    n_records: int | None = None,
    record_to_patient: RecordToPatient = "auto",
) -> PatientMap:
    """Find the patient of every record of a data set.

    ``"auto"`` looks, in this order, for a list ``index`` of ``(subject_id, ...)`` pairs, as MEDS data sets
    have; for an attribute ``patient_ids``, ``subject_ids``, ``patient_id`` or ``subject_id`` with one id per
    record; for a column of such a name; and then inside ``Subset`` and ``ConcatDataset``. The same id in two
    parts of a ``ConcatDataset`` is taken for the same patient.

    Args:
        dataset: Anything with a length; not needed where ``record_to_patient`` gives the ids.
        n_records: Its length, ``N``.
        record_to_patient: ``"auto"``; a sequence, array or tensor of N ids; a function from position to id;
            another string, the key under which batches carry the ids (the map is then empty, to be made with
            `PatientMap.from_observed`); None, each record stands for itself.

    Returns:
        The map. Where nothing is found its unit is ``"record"`` and its source says what that means.

    Raises:
        DataError: The number of ids is not the number of records, a record has no id, or the data set has no
            length.

    Example:
        >>> class Visits(list):
        ...     index = [(11, 3), (11, 5), (12, 4)]
        >>> patients = resolve_patients(Visits("abc"))
        >>> patients.code.tolist(), patients.unit, patients.source
        ([0, 0, 1], 'patient', 'the pairs in dataset.index')
    """
    size = _length(dataset, n_records)
    if record_to_patient is None:
        return PatientMap.of_records(size, source="asked for: each record stands for itself")
    if isinstance(record_to_patient, str):
        if record_to_patient == "auto":
            return _auto(dataset, size)
        return PatientMap(
            np.zeros(0, np.int64), np.full(size, -1, np.int64), f"the batch key {record_to_patient!r}"
        )
    if callable(record_to_patient):
        source = "the function record_to_patient"
        try:
            found = list(map(record_to_patient, range(size)))
        except MemguardError:
            raise
        except Exception as error:
            raise DataError(
                f"{source} failed with {error!r}", "the patients are not known", HOW_TO_GIVE_IDS
            ) from error
        return PatientMap.from_ids(found, source=source)
    ids = as_ids(record_to_patient, "record_to_patient")
    if len(ids) != size:
        raise DataError(
            f"record_to_patient has {len(ids)} ids for {size} records",
            "losses would go to the wrong patient",
            "pass one id per record, in the order of the data set",
        )
    return PatientMap.from_ids(ids, source="the sequence record_to_patient")


def _length(dataset: Any, n_records: int | None) -> int:
    try:
        size = n_records if dataset is None else len(dataset)
    except TypeError:
        size = n_records
    if size is None:
        raise DataError(
            f"a data set of type {type(dataset).__name__} without a length",
            "its records cannot be numbered",
            "pass a map-style data set",
        )
    if n_records is not None and size != n_records:
        raise DataError(
            f"a data set of {size} records where {n_records} were expected",
            "losses would go to the wrong patient",
            "pass the data set that the loader reads",
        )
    return size


def _auto(dataset: Any, size: int) -> PatientMap:
    misfits: list[str] = []
    found = _search(dataset, size, "dataset", misfits)
    if found is not None:
        return found
    if misfits:  # ids are there, and one cannot tell whose: to call each record a patient would be wrong
        raise DataError("; ".join(misfits), "losses would go to the wrong patient", HOW_TO_GIVE_IDS)
    inner = getattr(dataset, "dataset", None)
    hint = (
        ""
        if inner is None
        else f" ({type(inner).__name__}, inside it, may hold its records in another order)"
    )
    return PatientMap.of_records(
        size,
        source=f"{type(dataset).__name__} carries no patient ids{hint}: each record counts as a patient "
        f"of its own, and a patient with several records counts as several; {HOW_TO_GIVE_IDS}",
    )


def _search(dataset: Any, size: int, name: str, misfits: list[str]) -> PatientMap | None:
    """The map of a data set, looking first at itself and then inside the wrappers of torch."""
    pairs = _first_of_pairs(getattr(dataset, "index", None))
    if pairs is not None:
        if len(pairs) == size:
            return PatientMap.from_ids(pairs, source=f"the pairs in {name}.index")
        misfits.append(f"{name}.index has {len(pairs)} entries for {size} records")
    for attribute in _ATTRIBUTES:
        value: Any = getattr(dataset, attribute, None)
        if value is None and attribute in (getattr(dataset, "column_names", None) or ()):
            value = dataset[attribute]  # a Hugging Face data set
        if callable(value) or isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            continue
        if getattr(value, "ndim", 1) == 0:  # one id for the whole data set says nothing of its records
            continue
        if len(value) == size:
            return PatientMap.from_ids(value, source=f"{name}.{attribute}")
        misfits.append(f"{name}.{attribute} has {len(value)} entries for {size} records")
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None and hasattr(inner, "__len__"):
        rows = np.asarray(as_array(indices)).astype(np.int64).reshape(-1)
        whole = _search(inner, len(inner), f"{name}.dataset", misfits) if len(rows) == size else None
        if whole is not None:
            misfits.clear()
            return whole.take(rows)
    return _search_parts(getattr(dataset, "datasets", None), size, name, misfits)


def _search_parts(parts: Any, size: int, name: str, misfits: list[str]) -> PatientMap | None:
    """The map of a ConcatDataset; None unless every part has ids."""
    if not isinstance(parts, (list, tuple)) or not parts or sum(map(len, parts)) != size:
        return None
    found = [_search(part, len(part), f"{name}.datasets[{i}]", misfits) for i, part in enumerate(parts)]
    maps = [one for one in found if one is not None]
    if len(maps) < len(parts):
        if maps:
            missing = [i for i, one in enumerate(found) if one is None]
            misfits.append(f"parts {missing} of {name} carry no patient ids and the others do")
        return None
    ids = [one.ids[one.code] for one in maps]
    joined = (
        np.concatenate(ids) if len({part.dtype.kind for part in ids}) == 1 else as_objects([*_chain(ids)])
    )
    return PatientMap.from_ids(joined, source=" and ".join(dict.fromkeys(one.source for one in maps)))


def _chain(parts: list[NDArray[Any]]) -> list[Any]:
    return [one for part in parts for one in part.tolist()]


def _first_of_pairs(index: Any) -> Any:
    """The first column of a list of tuples or of a two-dimensional array; None for anything else."""
    if index is None or callable(index) or isinstance(index, (str, bytes)):
        return None
    index = as_array(index)
    if isinstance(index, np.ndarray):
        return index[:, 0] if index.ndim == 2 and index.shape[1] >= 2 else None
    if not isinstance(index, (list, tuple)) or not index:
        return None
    if not all(map(isinstance, index, repeat((tuple, list)))) or min(map(len, index)) < 2:
        return None
    return list(map(itemgetter(0), index))
