from __future__ import annotations

import warnings

import numpy as np
import pytest

from memguard.errors import DataError, MemguardWarning, PatientOverlapError
from memguard.records.content import Ragged, RecordContent
from memguard.records.patients import PatientMap
from memguard.records.splits import check_disjoint, content_overlap


def people(ids):
    return PatientMap.from_ids(ids, source="test")


def test_disjoint_splits_pass():
    assert check_disjoint(people([1, 2, 2]), people([3]))
    assert check_disjoint(people(["a"]), people(["b", "c"]))
    assert check_disjoint(people([]), people(["b", "c"]))


def test_overlap_names_the_count_and_never_an_id():
    train, held_out = people(list(range(1000, 1100))), people([*range(1090, 1200), 1091, 1091])
    with pytest.raises(
        PatientOverlapError, match="10 of 110 held-out patients are also trained on, with 12 held-out"
    ) as caught:
        check_disjoint(train, held_out)
    text = str(caught.value)
    assert text.count(", ") >= 5
    assert "..." in text
    assert "heldout=" in text
    assert not any(str(i) in text for i in range(1090, 1100))
    with pytest.raises(PatientOverlapError, match="hashed ids: <b>"):
        check_disjoint(people(["a", "b"]), people(["b"]), hash_id=lambda one: f"<{one}>")
    with pytest.raises(PatientOverlapError, match="1 of 2"):
        check_disjoint(people(["a", 1]), people([1, 2]))


def test_patients_without_a_record_do_not_count():
    train = PatientMap(np.array([1, 2]), np.array([0, 0, -1]), "test")
    assert check_disjoint(train, people([2]))


def test_record_units_cannot_be_compared():
    assert not check_disjoint(PatientMap.of_records(3), people([0, 1]))
    assert not check_disjoint(PatientMap.of_records(3), PatientMap.of_records(3))


def test_numbers_against_strings_are_refused():
    with pytest.raises(DataError, match="of type int and held-out patients of type str"):
        check_disjoint(people([1, 2]), people(["1", "2"]))


def codes(rows):
    return RecordContent.from_codes(Ragged.from_lists(rows))


def test_content_overlap_against_a_naive_search():
    rng = np.random.default_rng(3)
    train = [rng.integers(1, 4, rng.integers(0, 7)).tolist() for _ in range(300)]
    held_out = [rng.integers(1, 4, rng.integers(0, 7)).tolist() for _ in range(200)]
    found = content_overlap(codes(train), codes(held_out), min_length=4, warn=False)
    naive = [i for i, row in enumerate(held_out) if len(row) >= 4 and row in train]
    assert found.held_out.tolist() == naive
    assert found.records == len(naive) > 5
    assert found.compared == sum(len(row) >= 4 for row in held_out)
    assert all(train[t] == held_out[h] for t, h in zip(found.train, found.held_out, strict=True))
    assert found.share == found.records / found.compared


def test_content_overlap_of_features_and_of_unseen_records():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 9)).astype(np.float32)
    x[3, 2] = 0.0
    other = np.vstack([rng.normal(size=(5, 9)), x[[3]]]).astype(np.float32)
    other[5, 2] = -0.0
    one, two = RecordContent.from_features(x), RecordContent.from_features(other)
    with pytest.warns(MemguardWarning, match="1 of 6 held-out records are equal to a training record"):
        found = content_overlap(one, two)
    assert found.held_out.tolist() == [5]
    assert found.train.tolist() == [3]
    unseen = RecordContent(kind="features", x=other, observed=np.arange(6) < 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert content_overlap(one, unseen).records == 0
        assert content_overlap(one, two, min_length=10).share == 0.0
    with pytest.raises(DataError, match="are features and held-out records codes"):
        content_overlap(one, codes([[1]]))
