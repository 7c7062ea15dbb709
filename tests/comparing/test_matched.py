"""Stages are chosen by the choosing half alone, the earliest within the limit, and the baseline's too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from simulated import Cohort, outcomes, runs

from memguard.comparing.matched import bars

COHORT = Cohort(patients=60, held_out=40, seeds=3, stages=4)


def arm(name, by_stage, judging_shift=0.0):
    """Held-out losses that are the same for everybody, but for those who judge."""
    one = runs(COHORT, name, 1)
    held = np.tile(np.array(by_stage, dtype=float)[None, :, None], (6, 1, 40))
    held[:, :, ::2] += judging_shift
    return dataclasses.replace(one, held_out=held)


def stages(*arms, tolerance=0.01):
    return {bar.name: bar for bar in bars(outcomes(COHORT, *arms), tolerance)}


def test_the_earliest_stage_within_each_limit():
    found = stages(
        arm("plain", [3.0, 2.0, 2.01, 2.5]), arm("slow", [3.0, 2.6, 2.09, 2.015]), arm("bad", [9.0] * 4)
    )
    assert found["baseline's end"].limit == 2.5 and found["baseline's end"].stages == {"plain": 1, "slow": 2}
    assert found["baseline's best"].stages == {"plain": 1}
    assert found["best + 1 %"].limit == pytest.approx(2.02)
    assert found["best + 1 %"].stages == {"plain": 1, "slow": 3}
    assert found["best + 5 %"].stages == {"plain": 1, "slow": 2}
    assert found["best + 5 %"].without["slow"] == (2, 2, 2)


def test_those_who_judge_have_no_say():
    for shift in (-1.0, 1.0):
        found = stages(arm("plain", [3.0, 2.0, 2.1, 2.2]), arm("other", [3.0, 2.5, 2.0, 2.0], shift))
        assert found["baseline's best"].stages == {"plain": 1, "other": 2}


def test_a_stage_on_the_edge_moves_when_a_seed_is_left_out():
    one = arm("other", [3.0, 2.019, 2.0, 2.0])
    one.held_out[one.seed == 0, 1] = 1.9  # one seed alone carries it over the bar at the second stage
    one.held_out[one.seed != 0, 1] = 2.07
    bar = stages(arm("plain", [3.0, 2.0, 2.1, 2.2]), one)["best + 1 %"]
    assert bar.stages["other"] == 1 and bar.without["other"] == (2, 1, 1)


def test_losses_below_zero_and_one_tolerance():
    found = stages(arm("plain", [-1.0, -2.0, -2.0, -2.0]), tolerance=0.05)
    assert found["best + 5 %"].limit == pytest.approx(-1.9) and len(found) == 3
