"""Weights of near-duplicates and of patients: what a cluster and a patient count for in all."""

from __future__ import annotations

import numpy as np
import pytest

from memguard.errors import MemguardError
from memguard.mitigations.duplicates import cluster_weights, even_patients


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_a_cluster_counts_like_fewer_records(power):
    cluster = np.repeat(np.arange(5), [1, 2, 3, 7, 20])
    weights = cluster_weights(np.bincount(cluster)[cluster], power)
    totals = np.bincount(cluster, weights=weights)
    np.testing.assert_allclose(totals, np.array([1, 2, 3, 7, 20]) ** (1 - power))
    assert weights[0] == 1 and (weights <= 1).all()


def test_every_patient_has_the_same_total_where_nothing_is_copied():
    rng = np.random.default_rng(0)
    patient = np.concatenate([np.repeat(np.arange(30), 2), rng.integers(0, 30, 100)])
    weights = even_patients(np.ones(patient.size), patient)
    np.testing.assert_allclose(np.bincount(patient, weights=weights), 2)
    assert weights.max() <= 1
    # the numbers of the patients mean nothing, nor does the order of the records
    order = rng.permutation(patient.size)
    np.testing.assert_allclose(even_patients(np.ones(patient.size), 7 * patient[order] + 3), weights[order])


def test_copies_of_one_patient_are_not_punished_twice():
    patient = np.array([0] * 10 + [1] + [2] * 4)
    once = cluster_weights([10] * 10 + [1] * 5)
    weights = even_patients(once, patient)
    np.testing.assert_allclose(np.bincount(patient, weights=weights), 1)
    np.testing.assert_allclose(weights, [0.1] * 10 + [1] + [0.25] * 4)


def test_a_patient_whose_record_many_share_is_not_raised():
    weights = even_patients([0.5, 0.5, 1.0, 1.0], [0, 1, 2, 2])
    np.testing.assert_allclose(weights, [0.5, 0.5, 0.5, 0.5])
    assert even_patients([], []).size == 0


@pytest.mark.parametrize("power", [-0.1, 1.5, float("nan")])
def test_a_power_that_cannot_be(power):
    with pytest.raises(MemguardError, match="power="):
        cluster_weights([1, 2], power)
    with pytest.raises(MemguardError, match="clusters of 0"):
        cluster_weights([0, 2])
