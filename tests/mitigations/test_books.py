"""Who counted for less than one: in an epoch, and ever."""

import numpy as np

from memguard.mitigations import Books, Epoch, severity_weights, worst


def test_an_epoch_counts_patients_once_and_each_record_with_its_smallest_weight():
    books = Books([7, 7, 8, 9])
    steps = [(np.array([0, 1]), np.array([0.5, 1.0])), (np.array([0, 2]), np.array([0.25, 1.0]))]
    seen = np.array([True, True, True, False])
    assert books.close(steps, seen) == Epoch(1, (0.25 + 1 + 1) / 3)
    assert books.ever.tolist() == [True, False, False, False] and books.patients == 1


def test_ever_grows_over_epochs_and_an_open_epoch_is_not_booked():
    books = Books(np.arange(3))
    nobody = np.zeros(3, bool)
    assert books.close([], nobody) == Epoch(0, 1.0)
    step = [(np.array([1]), np.array([0.0]))]
    assert books.with_open(step).tolist() == [False, True, False] and not books.ever.any()
    books.close(step, ~nobody)
    books.close([(np.array([2]), np.array([0.9]))], ~nobody)
    assert books.ever.tolist() == [False, True, True] and books.patients == 2


def test_weights_by_severity_need_the_whole_interval_above_zero():
    weights = severity_weights([-1.0, 0.0, 0.5, 2.0, 2.0], [1.0, 2.0, 2.5, 4.0, 2.0], lowest=0.2)
    np.testing.assert_allclose(weights, [1, 1, 1 - 0.8 * 0.25, 0.2, 0.2])


def test_the_worst_are_patients_and_come_with_all_their_flagged_records():
    found = worst([1.0, 5.0, 2.0, np.nan, 9.0], [True, True, True, True, False], 2, of=[3, 3, 4, 5, 6])
    assert found.tolist() == [True, True, True, False, False]
    assert worst([1.0, np.nan], [True, True], 2).all() and not worst([1.0], [True], 0).any()
    assert worst([], [], 3).size == 0
