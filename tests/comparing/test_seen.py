"""Models that know patients whom they were not given, and arms that do not."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import Cohort, outcomes, runs

from memguard.comparing.compute import compute
from memguard.comparing.seen import by_two_codes, seen_before


def everybody_seen(cohort, draw):
    """As of weights that were trained on all patients before: strangers are known as members are."""
    arm = runs(cohort, "pretrained", draw)
    known = arm.loss - 0.8 * (~arm.inside)[:, None, None] * np.ones_like(arm.loss)
    return replace(arm, loss=(known - 0.8 * arm.inside[:, None, None]).astype(np.float32))


@pytest.mark.parametrize("draw", range(3))
def test_weights_that_saw_everybody_are_told_and_do_not_win(draw):
    cohort = Cohort(draw=draw)
    plain = runs(cohort, "plain", 1)
    arm = everybody_seen(cohort, 2)
    mine, base = seen_before(arm, plain, np.arange(cohort.held_out) % 2 == 0)
    assert mine < -0.5 and abs(base) < 0.3
    found = compute(outcomes(cohort, plain, arm))
    assert not any(
        one.startswith("pretrained exposes the hardest 5 % of the patients less") for one in found.may
    )
    assert any("as if the models had seen them" in one for one in found.may_not)


@pytest.mark.parametrize("draw", range(6))
def test_arms_that_remember_less_or_cost_more_or_start_better_are_not_accused(draw):
    cohort = Cohort(draw=draw)
    judging = np.arange(cohort.held_out) % 2 == 0
    plain = runs(cohort, "plain", 1)
    for change in (
        {"memory": 0.0},
        {"price": 0.5},
        {"price": -0.5},
        {"rare_price": 1.0},
        {"rare_price": -0.5},
    ):
        assert seen_before(runs(cohort, "arm", 2, **change), plain, judging) is None
    # a split with harder patients on one side moves arm and baseline alike
    for shift in (-0.6, 0.6):
        arm, base = (
            replace(one, held_out=one.held_out + np.float32(shift)) for one in (runs(cohort, "arm", 2), plain)
        )
        assert seen_before(arm, base, judging) is None


def test_held_out_loss_by_two_codes_is_of_those_who_judge():
    cohort = Cohort()
    judging = np.arange(cohort.held_out) % 2 == 0
    arm = runs(cohort, "arm", 1)
    assert by_two_codes(arm, judging) is None
    mean = arm.held_out[:, -1].mean(axis=0)
    own, plain = by_two_codes(replace(arm, held_out_by_codes=np.stack([mean, 2 * mean])), judging)
    assert plain == pytest.approx(2 * own) and own == pytest.approx(
        float(arm.held_out[:, -1][:, judging].mean())
    )
