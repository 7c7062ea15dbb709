"""Policies on arrays: who gets which weight, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memguard.errors import MemguardError
from memguard.mitigations import at_worst, drop_weights, floor_weights, reweight, worst

LOSS = [1.0, 2.0, 3.0, np.nan, 1.0, 1.0]
EXPECTED = [2.0, 2.0, 2.0, 2.0, np.nan, 2.0]
FLAGGED = [True, True, True, True, True, False]


def test_the_floor_holds_flagged_records_that_are_strictly_below_it():
    wanted = [0, 1, 1, 1, 1, 1]
    found = floor_weights(np.array(LOSS), np.array(EXPECTED), np.array(FLAGGED))
    assert found.tolist() == wanted
    as_tensor = floor_weights(torch.tensor(LOSS), torch.tensor(EXPECTED), torch.tensor(FLAGGED))
    assert as_tensor.tolist() == wanted


def test_dropped_is_dropped_whatever_the_loss():
    assert (
        drop_weights(np.array(FLAGGED)).tolist()
        == drop_weights(torch.tensor(FLAGGED)).tolist()
        == [0, 0, 0, 0, 0, 1]
    )


def test_the_schedule_is_continuous_and_falls():
    score = np.linspace(-3, 5, 2001)
    weights = reweight(score, start=0.5, stop=2.5, lowest=0.1)
    steps = np.diff(weights)
    assert (steps <= 0).all() and -steps.min() < 0.002
    assert (weights[score <= 0.5] == 1).all()
    np.testing.assert_allclose(weights[score >= 2.5], 0.1)
    np.testing.assert_allclose(np.interp(1.5, score, weights), 0.55)
    each = reweight([1.0, 1.0], start=[0.0, 1.0], stop=[1.0, 2.0])
    assert each.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "given", [{"stop": 1}, {"stop": 0.5}, {"stop": 2, "lowest": 1}, {"stop": 2, "lowest": -0.1}]
)
def test_a_schedule_that_does_not_fall_is_refused(given):
    with pytest.raises(MemguardError, match="stop= above start="):
        reweight([1.0], start=1, **given)


def test_a_record_whose_patient_is_not_known_yet_is_nobodys():
    before = np.full(5, -np.inf, np.float32)
    # Two patients, the last of them flagged; nobody has named the patients of records 2 and 4.
    first = at_worst(before, [0, 1, -1, 1, -1], [0, 1], [1.0, 7.0], [False, True])
    assert first.tolist() == [-np.inf, 7, -np.inf, 7, -np.inf]
    # Record 2 turns out to be of the flagged patient, who is not flagged any more, and record 4 of a third one.
    then = at_worst(first, [0, 1, 1, 1, 2], [0, 1, 2], [1.0, 2.0, 3.0], [True, False, False])
    assert then.tolist() == [1, 7, 7, 7, -np.inf]


def test_the_worst_are_chosen_among_the_flagged():
    severity, flagged = [np.nan, 4.0, 4.0, 1.0, 9.0], [True, True, True, True, False]
    assert worst(severity, flagged, 1).tolist() == [False, True, False, False, False]
    assert worst(severity, flagged, 3).tolist() == [False, True, True, True, False]
    assert worst(severity, flagged, 9).tolist() == flagged
    assert not worst(severity, flagged, 0).any()
