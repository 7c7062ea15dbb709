"""The public constants of a run, and what the Trainer counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard.errors import PrivacyError
from memguard.privacy.pace import Pace, done_in_epoch, planned_steps
from memguard.privacy.plan import EVERYBODY, fingerprint_of, make_plan
from memguard.records.patients import PatientMap

PATIENTS = PatientMap.from_ids([3, 3, 3, 1, 2, 2, 9, 9], source="a list")


def plan(patients=PATIENTS, unit="patient", batch_size=2, **settings):
    return make_plan(patients, unit=unit, batch_size=batch_size, **settings)


def test_an_epoch_has_as_many_steps_as_without_privacy():
    made = plan()
    assert (made.n_owners, made.n_records, made.most_records, made.steps_per_epoch) == (4, 8, 3, 4)
    assert (made.sample_rate, made.expected_owners) == (0.25, 1.0)


def test_the_divisor_is_of_public_numbers():
    assert plan(expected_batch_size=2).expected_owners == 2
    assert plan(expected_batch_size=2).sample_rate == 0.5
    assert plan(expected_batch_size=99).sample_rate == 1
    assert plan(sample_rate=0.3).steps_per_epoch == 3


def test_records_as_owners():
    made = plan(unit="record")
    assert (made.n_owners, made.expected_owners, made.most_records) == (8, 2.0, 3)
    assert plan(PatientMap.of_records(8), unit="record").most_records is None


def test_parts_grow_where_less_fits_in_memory():
    parts = [plan(sample_rate=0.5, physical_batch_size=n).parts for n in (1000, 8, 2, 1)]
    assert parts[0] == 1
    assert parts == sorted(parts)
    assert plan(sample_rate=0.5, physical_batch_size=2, max_records=1).parts < parts[2]


def test_strata_go_by_patient():
    by_id = plan(strata={3: "a", 1: "b", 2: "a", 9: "b"})
    in_order = plan(strata=["b", "a", "a", "b"])  # of 1, 2, 3, 9
    assert by_id.stratum.tolist() == in_order.stratum.tolist()
    assert by_id.counts() == {"a": 2, "b": 2}
    assert by_id.rates({"a": 0.1, "b": 0.2}).tolist() == [0.2, 0.1, 0.1, 0.2]
    assert plan().counts() == {EVERYBODY: 4}
    assert plan().rates({EVERYBODY: 0.3}) == 0.3
    assert by_id.facts()["strata_fingerprint"] == in_order.facts()["strata_fingerprint"]
    assert (
        by_id.facts()["strata_fingerprint"] != plan(strata=["a", "a", "b", "b"]).facts()["strata_fingerprint"]
    )
    assert plan().facts()["strata_fingerprint"] is None


def test_fingerprints_tell_data_sets_apart_and_no_ids():
    same = PatientMap.from_ids([3, 3, 3, 1, 2, 2, 9, 9], source="elsewhere")
    assert fingerprint_of(same) == fingerprint_of(PATIENTS)
    others = [
        fingerprint_of(PatientMap.of_records(8)),
        fingerprint_of(PatientMap.from_ids([3, 3, 3, 1, 2, 2, 9, 8], source="")),
        fingerprint_of(PatientMap.from_ids([3, 3, 1, 3, 2, 2, 9, 9], source="")),
        fingerprint_of(PATIENTS.take(np.arange(7))),
    ]
    assert len({*others, fingerprint_of(PATIENTS)}) == 5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sample_rate": 0}, "it is a probability"),
        ({"sample_rate": float("nan")}, "it is a probability"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"patients": PatientMap.of_records(3)}, "no patient ids"),
        ({"patients": PatientMap.from_ids([], source="")}, "without records"),
    ],
)
def test_numbers_that_make_no_plan(settings, match):
    with pytest.raises(PrivacyError, match=match):
        plan(**settings)


@given(
    st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.floats(0.01, 1.0) | st.integers(1, 80),
    st.floats(0.01, 1.0) | st.integers(1, 80),
)  # fmt: skip
def test_validation_falls_between_draws(per_epoch, parts, accumulate, limit, interval):
    pace = Pace.of(steps_per_epoch=per_epoch, parts=parts, accumulate=accumulate, limit=limit)
    assert 1 <= pace.steps <= per_epoch
    every = pace.validate_every(interval)
    assert every == 1.0 or (isinstance(every, int) and every % parts == 0)
    assert pace.loss_factor * accumulate == pytest.approx(parts)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 9))
def test_an_interrupted_epoch_keeps_its_whole_draws(done, then, now):
    again = done_in_epoch(done, then, now)
    assert again == done if then == now else (again // now == done // then and again % now == 0)


def test_planned_ends():
    assert planned_steps(7, None, None) is None
    assert planned_steps(7, 2, 100) == 14


@pytest.mark.parametrize(("ids", "unit"), [([7] * 5, "patient"), ([7], "record")])
def test_nobody_is_protected_by_being_alone(ids, unit):
    with pytest.raises(PrivacyError, match=f"a training set of one {unit}"):
        plan(PatientMap.from_ids(ids, source="a list"), unit=unit)
