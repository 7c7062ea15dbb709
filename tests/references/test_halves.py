"""Who is in which half."""

from __future__ import annotations

import numpy as np
import pytest

from memguard.errors import ReferenceModelError
from memguard.references.halves import halves, patient_halves


@pytest.mark.parametrize(("members", "held_out"), [(10, 4), (11, 4), (10, 5), (11, 5), (2, 0), (1, 1)])
@pytest.mark.parametrize("n_models", [2, 4, 8])
def test_each_patient_is_in_half_of_an_even_number_of_models_and_each_side_is_halved(
    members, held_out, n_models
):
    member = np.arange(members + held_out) < members
    masks = patient_halves(member, n_models, seed=3)
    assert (masks.sum(0) == n_models // 2).all()
    assert (masks[1::2] == ~masks[::2]).all()
    for side in (member, ~member):
        assert (np.abs(2 * masks[:, side].sum(1) - side.sum()) <= side.sum() % 2).all()
    # Two odd sides give halves of equal size all the same.
    assert (np.abs(2 * masks.sum(1) - len(member)) <= len(member) % 2).all()


def test_an_odd_number_of_models_ends_without_a_complement():
    member = np.arange(12) < 8
    masks = patient_halves(member, 5, seed=1)
    assert (masks[:4] == patient_halves(member, 4, seed=1)).all(), (
        "more models leave the first ones as they are"
    )
    assert set(masks.sum(0)) == {2, 3} and masks[4].sum() == 6
    assert patient_halves(member, 1).sum() == 6


def test_pairs_and_seeds_differ_and_the_same_seed_draws_the_same():
    member = np.ones(40, bool)
    masks = patient_halves(member, 6, seed=1)
    assert len({mask.tobytes() for mask in masks}) == 6
    assert (masks == patient_halves(member, 6, seed=1)).all()
    assert (masks != patient_halves(member, 6, seed=2)).any()


def test_no_patient_is_favoured():
    counts = sum(patient_halves(np.arange(9) < 6, 1, seed=seed)[0] for seed in range(2000))
    assert (np.abs(counts - 1000) < 5 * np.sqrt(500)).all()


def test_all_records_of_a_patient_go_together():
    rng = np.random.default_rng(0)
    patient = np.concatenate([rng.integers(0, 30, 200), 100 + rng.integers(0, 11, 50)])
    masks = halves(patient, np.arange(250) < 200, 4, seed=5)
    for one in np.unique(patient):
        inside = masks[:, patient == one]
        assert (inside == inside[:, :1]).all() and inside[:, 0].sum() == 2


@pytest.mark.parametrize(
    ("patient", "member", "n_models", "seen"),
    [
        ([1, 1, 2], [True, False, False], 2, "1 patients on both sides"),
        ([1, 1, 1], [True, True, True], 2, "1 patient"),
        ([1, 2, 3], [True, True, False], 0, "0 models"),
        ([1, 2, 3], [True, True], 2, "shape"),
    ],
)
def test_what_cannot_be_halved_is_refused(patient, member, n_models, seen):
    with pytest.raises(ReferenceModelError, match=seen):
        halves(np.array(patient), np.array(member), n_models)
