from __future__ import annotations

import time

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from memguard.errors import DataError
from memguard.records.patients import PatientMap, resolve_patients


class Visits(Dataset):
    def __init__(self, n=6, **attributes):
        self.n = n
        self.__dict__.update(attributes)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.tensor(i)


def ids_of(patients):
    return patients.ids[patients.code].tolist()


PEOPLE = [7, 7, 3, 9, 3, 7]


@pytest.mark.parametrize(
    "ids",
    [
        PEOPLE,
        tuple(PEOPLE),
        np.array(PEOPLE),
        np.array(PEOPLE, dtype=np.uint8),
        np.array(PEOPLE, dtype=float),
        np.array(PEOPLE).reshape(-1, 1),
        np.array(PEOPLE, dtype=object),
        torch.tensor(PEOPLE),
        [torch.tensor(p) for p in PEOPLE],
        [np.int32(p) for p in PEOPLE],
        pl.Series(PEOPLE),
    ],
)
def test_ids_of_every_form_give_the_same_map(ids):
    for patients in (resolve_patients(Visits(patient_ids=ids)), resolve_patients(None, 6, ids)):
        assert patients.ids.tolist() == [3, 7, 9]
        assert patients.code.tolist() == [1, 1, 0, 2, 0, 1]
        assert patients.code.dtype == np.int64
        assert patients.unit == "patient"
        assert patients.complete
        assert patients.records_per_patient().tolist() == [2, 3, 1]


@pytest.mark.parametrize("name", ["patient_ids", "subject_ids", "patient_id", "subject_id"])
def test_each_attribute_is_found_and_named(name):
    patients = resolve_patients(Visits(**{name: PEOPLE}))
    assert ids_of(patients) == PEOPLE
    assert patients.source == f"dataset.{name}"


@pytest.mark.parametrize(
    "index",
    [
        [(p, i) for i, p in enumerate(PEOPLE)],
        np.c_[PEOPLE, range(6)],
        torch.tensor([[p, 0, 1] for p in PEOPLE]),
    ],
)
def test_index_of_pairs_comes_first(index):
    patients = resolve_patients(Visits(index=index, subject_ids=list("abcdef")))
    assert ids_of(patients) == PEOPLE
    assert patients.source == "the pairs in dataset.index"


def test_an_index_of_something_else_is_passed_over():
    for index in (list(range(6)), np.arange(6), "abcdef", [(1,), (2, 3)], lambda x: x, []):
        assert resolve_patients(Visits(index=index)).unit == "record"
    assert resolve_patients([1, 2, 3]).unit == "record"  # list.index is a method


def test_strings_objects_and_huge_numbers():
    words = ["b", "a", "b", "é", "a", "b"]
    patients = resolve_patients(Visits(patient_ids=words))
    assert patients.ids.tolist() == ["a", "b", "é"]
    assert ids_of(patients) == words
    assert ids_of(resolve_patients(Visits(patient_ids=np.array(words)))) == words
    pairs = [("site", 1), ("site", 2), ("site", 1), ("x", 1), 5, 5]
    assert ids_of(resolve_patients(Visits(patient_ids=pairs))) == pairs
    huge = [2**63 + 1, -1, 2**63 + 1, 2**70, 2**70, 0]
    assert ids_of(resolve_patients(Visits(patient_ids=huge))) == huge
    assert ids_of(resolve_patients(Visits(2, patient_ids=np.array([2**63 + 1, 5], dtype=np.uint64)))) == [
        2**63 + 1,
        5,
    ]


def test_subset_of_subset_of_concat():
    data = ConcatDataset(
        [Visits(index=[(p, 0) for p in PEOPLE]), Visits(3, subject_ids=torch.tensor([9, 1, 1]))]
    )
    inner = Subset(data, [8, 6, 0, 1, 5])
    outer = Subset(inner, torch.tensor([4, 0, 1]))
    patients = resolve_patients(outer)
    assert ids_of(patients) == [7, 1, 9]
    assert patients.ids.tolist() == [1, 7, 9]  # patients outside the subset are not counted
    assert "dataset.dataset.dataset.datasets[0].index" in patients.source
    empty = resolve_patients(Subset(inner, []))
    assert len(empty) == 0
    assert empty.n_patients == 0
    assert ids_of(resolve_patients(Subset(inner, range(2)))) == [1, 9]
    assert ids_of(resolve_patients(Subset(inner, [-1]))) == [7]


def test_a_subset_with_ids_of_its_own():
    part = Subset(Visits(), [0, 1])
    part.patient_ids = ["x", "y"]
    assert ids_of(resolve_patients(part)) == ["x", "y"]


def test_concat_of_numbers_and_strings_and_of_known_and_unknown():
    data = ConcatDataset([Visits(2, patient_ids=[1, 2]), Visits(2, patient_ids=["1", "2"])])
    assert ids_of(resolve_patients(data)) == [1, 2, "1", "2"]
    with pytest.raises(DataError, match="parts \\[1\\] of dataset carry no patient ids"):
        resolve_patients(ConcatDataset([Visits(2, patient_ids=[1, 2]), Visits(2)]))
    assert resolve_patients(ConcatDataset([Visits(2), Visits(2)])).unit == "record"


def test_a_column_of_a_hugging_face_data_set():
    class Table(list):
        column_names = ("text", "patient_id")

        def __getitem__(self, key):
            return PEOPLE if key == "patient_id" else super().__getitem__(key)

    assert ids_of(resolve_patients(Table("abcdef"))) == PEOPLE


def test_no_ids_says_so():
    patients = resolve_patients(TensorDataset(torch.zeros(4, 2)))
    assert patients.unit == "record"
    assert patients.n_patients == 4
    assert "carries no patient ids" in patients.source
    assert "record_to_patient=" in patients.source
    assert resolve_patients(Visits(patient_ids=PEOPLE), record_to_patient=None).unit == "record"
    wrapped = Visits(dataset=Visits(patient_ids=PEOPLE))  # a wrapper that may shuffle: not trusted
    assert resolve_patients(wrapped).unit == "record"


def test_ids_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="patient_ids has 5 entries for 6 records"):
        resolve_patients(Visits(patient_ids=[1, 2, 3, 4, 5]))
    with pytest.raises(DataError, match="has 7 ids for 6 records"):
        resolve_patients(Visits(), record_to_patient=range(7))
    with pytest.raises(DataError, match="7 records where 6 were expected"):
        resolve_patients(Visits(7), 6)
    # another attribute that fits is enough
    assert ids_of(resolve_patients(Visits(patient_ids=[1], subject_ids=PEOPLE))) == PEOPLE
    assert resolve_patients(Visits(patient_ids="P1")).unit == "record"  # one id for the whole data set
    assert resolve_patients(Visits(patient_id=torch.tensor(4))).unit == "record"
    assert resolve_patients(Visits(patient_id=np.array(4))).unit == "record"
    assert resolve_patients(Visits(patient_id=lambda i: i)).unit == "record"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, None, 2, 3, 4, 5], "without an id"),
        ([1.0, float("nan"), 2, 3, 4, 5], "NaN or no whole number"),
        (["a", float("nan"), "b", "c", "d", "e"], "without an id"),
        ([0.5, 1, 2, 3, 4, 5], "no whole number"),
        ([2.0**60, 1, 2, 3, 4, 5], "no whole number"),
        ([[1, 2]] * 6, "cannot be compared"),
        (np.zeros((6, 2), int), "shape \\(6, 2\\)"),
        (dict.fromkeys(range(6), 1), "is a dict"),
        (iter(range(6)), "does not hold one id"),
    ],
)
def test_broken_ids_are_refused(ids, message):
    with pytest.raises(DataError, match=message):
        resolve_patients(Visits(), record_to_patient=ids)


def test_an_iterable_data_set_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    with pytest.raises(DataError, match="without a length"):
        resolve_patients(Stream())


def test_a_function_of_the_position():
    assert ids_of(resolve_patients(Visits(), record_to_patient=lambda i: f"p{i // 2}")) == [
        "p0",
        "p0",
        "p1",
        "p1",
        "p2",
        "p2",
    ]
    with pytest.raises(DataError, match="KeyError"):
        resolve_patients(Visits(), record_to_patient={0: 1}.__getitem__)


def test_a_batch_key_waits_for_batches():
    patients = resolve_patients(Visits(), record_to_patient="mrn")
    assert len(patients) == 6
    assert not patients.complete
    assert patients.n_patients == 0
    assert "'mrn'" in patients.source
    with pytest.raises(DataError, match="not known yet"):
        patients.id_of([0])
    seen = PatientMap.from_observed([4, 1, 4], ["x", "y", "x"], n_records=6, source=patients.source)
    assert seen.code.tolist() == [-1, 1, -1, -1, 0, -1]
    assert seen.id_of([4, 1]).tolist() == ["x", "y"]
    assert seen.records_per_patient().tolist() == [1, 1]
    assert seen.take([0, 4]).code.tolist() == [-1, 0]
    assert len(PatientMap.from_observed([], [])) == 0
    with pytest.raises(DataError, match="two different patient ids"):
        PatientMap.from_observed([1, 1], ["x", "y"])
    with pytest.raises(DataError, match="2 ids for 1 records"):
        PatientMap.from_observed([1], ["x", "y"])
    with pytest.raises(DataError, match="positions from 1 to 8"):
        PatientMap.from_observed([1, 8], ["x", "y"], n_records=6)


def test_a_million_records_take_seconds():
    rng = np.random.default_rng(0)
    people = rng.integers(0, 300_000, 1_000_000)
    start = time.perf_counter()
    pairs = list(zip(people.tolist(), range(len(people)), strict=True))
    build = time.perf_counter() - start
    data = Subset(Visits(len(people), index=pairs), np.arange(0, len(people), 2))
    start = time.perf_counter()
    patients = resolve_patients(data)
    assert time.perf_counter() - start < 5 + build
    assert np.array_equal(patients.id_of(np.arange(10)), people[:20:2])
