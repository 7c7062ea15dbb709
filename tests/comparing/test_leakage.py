"""Groups, the strongest attack and intervals: against naive forms, and where intervals must not be points."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import Cohort, runs

from memguard.attacks import auc, tpr_at_fpr
from memguard.comparing.attack import Scores
from memguard.comparing.groups import fixed, hardest, untouched
from memguard.comparing.intervals import Number, difference, estimate
from memguard.comparing.strongest import area, found_above, strongest
from memguard.comparing.untouched import changed
from memguard.errors import ResolutionError

COHORT = Cohort(patients=200, held_out=50, seeds=4, stages=1)


def made_up(draw, seeds=4, patients=50, signal=0, shift=1.0, name="x"):
    rng = np.random.default_rng(draw)
    scores = rng.normal(size=(2, seeds, patients)).round(1)
    scores[0] += shift
    return Scores(attack=name, signal=signal, scores=scores)


# -- groups ------------------------------------------------------------------------------------------------


def test_the_hardest_of_a_seed_do_not_depend_on_its_own_models():
    arm = runs(COHORT, "plain", 1)
    loss = arm.loss.copy()
    loss[arm.seed == 1] = np.random.default_rng(0).normal(size=loss[arm.seed == 1].shape) * 9
    before, after = (hardest([one], "nats/token", 0.05) for one in (arm, dataclasses.replace(arm, loss=loss)))
    assert np.array_equal(before.of_seed[1], after.of_seed[1])
    assert not np.array_equal(before.of_seed[0], after.of_seed[0])
    assert before.of_seed.sum(axis=1).tolist() == [10] * 4 and before.patients == 10 and before.enough


def test_the_hardest_are_those_with_the_largest_gap():
    arm = runs(COHORT, "plain", 1)
    loss = arm.loss.copy()
    loss[:, 0, 0, :10] -= 3.0 * arm.inside[:, :10]
    assert hardest([dataclasses.replace(arm, loss=loss)], "nats/token", 0.05).of_seed[:, :10].all()


def test_untouched_are_chosen_by_the_other_seeds():
    touched = np.zeros((8, 200), dtype=bool)
    touched[0, 0] = True  # a model of seed 0
    arm = dataclasses.replace(runs(COHORT, "plain", 1), touched=touched)
    found = untouched(arm)
    assert found.of_seed[:, 0].tolist() == [True, False, False, False] and found.of_seed[:, 1:].all()
    assert untouched(runs(COHORT, "plain", 1)) is None


def test_small_groups_are_not_enough():
    mask = np.zeros(200, dtype=bool)
    mask[:4] = True
    assert not fixed(mask, 4).enough and fixed(~mask, 4).enough


# -- the strongest attack ----------------------------------------------------------------------------------


def test_rates_and_areas_are_those_of_the_attacks_room():
    one = made_up(0, patients=200)
    member = np.repeat([True, False], 800)
    flat = one.scores.reshape(-1)
    assert found_above(one.scores, 0.03).mean() == pytest.approx(tpr_at_fpr(flat, member, 0.03).value)
    everyone = np.ones((4, 200), dtype=bool)
    assert area(one.scores, everyone) == pytest.approx(auc(flat, member).value)
    some = np.random.default_rng(1).random((4, 200)) < 0.3
    both = np.concatenate([one.scores[0][some], one.scores[1][some]])
    assert area(one.scores, some) == pytest.approx(auc(both, np.arange(len(both)) < len(both) // 2).value)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.0, 2.0))
def test_one_more_attack_never_lowers_the_strongest(draw, n, shift):
    groups = {
        "all": fixed(np.ones(50, dtype=bool), 4),
        "some": fixed(np.random.default_rng(draw).random(50) < 0.5, 4),
    }
    attacks = [made_up((draw, i), shift=shift, signal=i % 2, name=str(i)) for i in range(n + 1)]
    fewer, more = (strongest(some, groups, 0.05, areas=True).numbers for some in (attacks[:-1], attacks))
    for key, one in fewer.items():
        assert more[key].value >= one.value and np.all(more[key].without >= one.without)


def test_the_attack_is_chosen_again_without_each_seed():
    a, b = made_up(1, name="a"), made_up(2, name="b")
    groups = {"all": fixed(np.ones(50, dtype=bool), 4)}
    both = strongest([a, b], groups, 0.05).numbers["all", "tpr"]
    alone = [strongest([one], groups, 0.05).numbers["all", "tpr"] for one in (a, b)]
    np.testing.assert_array_equal(both.without, np.maximum(alone[0].without, alone[1].without))
    assert both.value == max(one.value for one in alone) and both.attack in ("a", "b")


def test_without_a_seed_is_the_arm_without_it_as_a_target():
    one = made_up(3)
    found = strongest([one], {"all": fixed(np.ones(50, dtype=bool), 4)}, 0.05, areas=True).numbers
    for s in range(4):
        rest = dataclasses.replace(one, scores=np.delete(one.scores, s, axis=1))
        left = strongest([rest], {"all": fixed(np.ones(50, dtype=bool), 3)}, 0.05, areas=True).numbers
        for measure in ("tpr", "auc"):
            assert found["all", measure].without[s] == left["all", measure].value


def test_deployed_attacks_are_those_on_the_first_signal():
    a, b = made_up(1, name="a", shift=0.0), made_up(2, name="b", signal=1, shift=4.0)
    found = strongest([a, b], {"all": fixed(np.ones(50, dtype=bool), 4)}, 0.05).numbers
    assert found["all", "tpr"].attack == "b" and found["all", "tpr_as_deployed"].attack == "a"


# -- intervals ---------------------------------------------------------------------------------------------


def number(value, without, kind="rate", patients=20):
    return Number(value=value, without=np.array(without), patients=patients, kind=kind, pairs=4 * patients)


@pytest.mark.parametrize("kind", ["rate", "auc"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_at_the_edge_is_no_point(kind, value):
    one = number(value, [value] * 4, kind)
    found = estimate(one, 0.95)
    assert found.high - found.low > 0.01 and 0.0 <= found.low <= value <= found.high <= 1.0
    apart = difference(one, number(value, [value] * 4, kind), 0.95)
    assert apart.value == 0.0 and apart.low < -0.01 and apart.high > 0.01


def test_where_no_seed_differs_the_patients_speak():
    found = estimate(number(0.5, [0.5] * 4), 0.95)
    assert found.low < 0.42 and found.high > 0.58


def test_in_the_middle_it_is_the_paired_jackknife():
    one, other = number(0.5, [0.45, 0.5, 0.55, 0.5]), number(0.4, [0.35, 0.4, 0.45, 0.4])
    apart = difference(one, other, 0.95)
    assert apart.low == pytest.approx(0.1) and apart.high == pytest.approx(0.1)  # paired: nothing is left
    assert estimate(one, 0.95).low < 0.4
    wider = difference(one, number(0.4, [0.4, 0.35, 0.4, 0.45]), 0.99)
    assert wider.low < difference(one, number(0.4, [0.4, 0.35, 0.4, 0.45]), 0.95).low < 0.1


def test_one_seed_is_no_interval():
    with pytest.raises(ResolutionError):
        estimate(number(0.5, [0.5]), 0.95)


# -- who is newly exposed ----------------------------------------------------------------------------------


def test_counts_of_patients_who_changed_sides():
    found = np.array([[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 1]], dtype=bool)
    after = found[:, [1, 0, 3, 3]]
    everyone = np.ones((4, 4), dtype=bool)
    assert changed(found, after, everyone) == (1, 1)  # half of the runs before: neither hidden nor exposed
    few = everyone.copy()
    few[:3, 0] = False  # one run of four is too little
    assert changed(found, after, few) == (0, 1)
