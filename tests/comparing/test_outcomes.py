"""What the arithmetic takes in is checked: shapes, halves, seeds, names."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from simulated import Cohort, outcomes, runs

from memguard.comparing.compute import compute
from memguard.errors import DataError, MemguardError, ResolutionError

SMALL = Cohort(patients=60, held_out=20, seeds=3, stages=2)


def arm(**changes):
    return dataclasses.replace(runs(SMALL, "plain", 1), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inside": SMALL.inside[:, :50]}, "is needed"),
        ({"inside": SMALL.inside.astype(float)}, "float64"),
        ({"loss": np.zeros((6, 2, 60))}, "loss"),
        ({"held_out": np.zeros((6, 1, 20))}, "held_out"),
        ({"epochs": np.zeros(6)}, "epochs"),
        ({"touched": np.zeros((6, 60))}, "touched"),
        ({"epsilon": np.zeros(5)}, "epsilon"),
        ({"metrics": {"auroc": np.zeros(5)}}, "auroc"),
        ({"metrics": {"tpr": np.zeros(6)}}, "of that name"),
        ({"loss": np.full((6, 2, 1, 60), np.nan)}, "diverged"),
        ({"seed": np.zeros(6, dtype=int)}, "1 seeds"),
        ({"seed": np.array([0, 0, 0, 1, 1, 2])}, "do not split the pool"),
        ({"inside": np.concatenate([SMALL.inside[:5], SMALL.inside[:1]])}, "do not split the pool"),
    ],
)
def test_runs_that_would_make_numbers_wrong_are_refused(changes, said):
    with pytest.raises(MemguardError, match=said):
        outcomes(SMALL, arm(**changes))


def test_arms_must_be_paired():
    other = Cohort(patients=60, held_out=20, seeds=3, stages=2, draw=1)
    with pytest.raises(DataError, match="no longer be paired"):
        outcomes(SMALL, arm(), runs(other, "other", 2))


def test_names_and_patients():
    good = outcomes(SMALL, arm(), runs(SMALL, "other", 2))
    for changes, said in [
        ({"baseline": "nobody"}, "none of the arms"),
        ({"control": "plain"}, "baseline and control"),
        ({"arms": (good.arms[0], good.arms[0])}, "one name"),
        ({"judging": np.ones(20, dtype=bool)}, "20 of 20"),
        ({"strata": {"all": good.strata["rare"]}, "held_out_strata": {}}, "'all'"),
        ({"held_out_strata": {"others": good.held_out_strata["rare"]}}, "'others'"),
        ({"tokens": np.ones(3)}, "tokens"),
        ({"unit": "bits"}, "bits"),
    ]:
        with pytest.raises(MemguardError, match=said):
            dataclasses.replace(good, **changes)
    with pytest.raises(MemguardError, match="no arm"):
        good.arm("nobody")


def test_a_signal_that_is_not_whole_is_not_measured():
    loss = np.repeat(arm().loss, 3, axis=2)
    loss[:, :, 1] = np.nan
    loss[0, 1, 2, 0] = np.nan
    mine = arm(loss=loss, signals=("as deployed", "none", "partly"))
    assert mine.measured(0) == (0, 2) and mine.measured(1) == (0,)
    found = compute(outcomes(SMALL, mine), fpr=0.05)
    assert any("left out: partly" in note for note in found.notes)


def test_shares_and_resolution():
    good = outcomes(SMALL, arm())
    for name in ("fpr", "hardest", "tolerance", "confidence"):
        with pytest.raises(MemguardError, match=name):
            compute(good, **{name: 1.0})
    with pytest.raises(ResolutionError, match="less than one of them"):
        compute(good, fpr=0.001)
