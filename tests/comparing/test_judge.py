"""Sentences from made-up numbers: each claim only where its interval says so."""

from __future__ import annotations

import pytest

from memguard.attacks import Estimate
from memguard.comparing.judge import judge
from memguard.report.comparison import ArmSummary, Comparison, Group, Point, Row


def est(value, half=0.02):
    return Estimate(value=value, low=value - half, high=value + half, n=100, method="jackknife over 8 seeds")


def row(group, measure, minus, *, arm="arm", stage="final", base=0.5, half=0.02):
    """Rows of the baseline and of the arm."""
    apart = est(minus, half)
    mine = Row(
        arm=arm,
        stage=stage,
        epoch=3.0,
        group=group,
        measure=measure,
        attack="x",
        value=est(base + minus),
        minus_baseline=apart,
        adjusted=apart if (group, measure) == ("hardest", "tpr") else None,
    )
    plain = Row(
        arm="plain", stage=stage, epoch=3.0, group=group, measure=measure, attack="x", value=est(base)
    )
    return [plain, mine]


def judged(*rows, arms=(), control=None, seeds=8, beside=None, epsilon=None, points=(), **more):
    summaries = [
        ArmSummary(name="plain", signals=("as deployed",)),
        ArmSummary(name="arm", epsilon=epsilon, signals=("as deployed", "as trained")),
        *arms,
    ]
    found = Comparison(
        version="0",
        baseline="plain",
        control=control,
        seeds=seeds,
        models=2 * seeds,
        patients=900,
        held_out=300,
        arms=summaries,
        groups=[Group(name=name, patients=90, held_out=9) for name in ("all", "hardest", "rare")],
        rows=[one for two in rows for one in two],
        points=points,
    )
    result = judge(found, beside or {}, **more)
    return "\n".join(result.may), "\n".join(result.may_not)


WON = row("hardest", "tpr", -0.2)


def test_a_win_and_utility_within_the_tolerance():
    may, _ = judged(WON, row("all", "held_out_loss", 0.001, base=2.0, half=0.01))
    assert "arm exposes the hardest 5 % of the patients less" in may and "no worse within 1 %" in may
    assert "finds 30.0 % of them, under plain 50.0 %" in may


def test_utility_not_shown_and_utility_lost():
    may, _ = judged(WON, row("all", "held_out_loss", 0.01, base=2.0, half=0.015))
    assert "no worse within 1 % is not shown" in may
    may, _ = judged(WON, row("all", "held_out_loss", 0.1, base=2.0))
    assert "It pays with held-out loss" in may and "+5.0 %" in may


def test_matched_utility():
    assert "never came within 1 %" in judged(WON)[0]
    assert "The difference stands" in judged(WON, row("hardest", "tpr", -0.2, stage="best + 1 %"))[0]
    assert "no difference is shown" in judged(WON, row("hardest", "tpr", -0.01, stage="best + 1 %"))[0]


def test_an_arm_that_is_still_the_baseline_at_equal_utility():
    may, _ = judged(WON, row("hardest", "tpr", 0.0, stage="best + 1 %", half=0.0))
    assert "nothing has changed yet" in may and "no difference is shown" not in may


def test_prices_and_rises_are_named_for_winners_and_for_others():
    rows = [row("rare", "unseen_loss", 0.3, base=2.0), row("rare", "tpr", 0.1)]
    for first, winner in ((WON, True), (row("hardest", "tpr", 0.0), False)):
        may, may_not = judged(first, *rows)
        text = may if winner else may_not
        assert "never saw pay with a higher loss: rare +" in text and "Leakage rises: rare +" in text
        assert ("costs nobody" in may_not) != winner


def test_a_drop_as_deployed_alone_is_hiding():
    may, may_not = judged(row("hardest", "tpr", 0.0), row("hardest", "tpr_as_deployed", -0.4))
    assert not may and "it hides its losses, it does not protect" in may_not and "as trained" in may_not
    assert "hides" not in judged(WON, row("hardest", "tpr_as_deployed", -0.4))[1]


def test_an_average_is_not_the_hardest():
    may, may_not = judged(row("hardest", "tpr", -0.01), row("all", "auc", -0.05))
    assert not may and "That arm protects the most vulnerable: the AUC over all patients fell" in may_not


def test_more_exposed():
    may, may_not = judged(row("hardest", "tpr", 0.2))
    assert "exposes the hardest patients more" in may and "alike" not in may_not


def test_dp_is_the_baseline_to_beat():
    dp = ArmSummary(name="dp", epsilon=8.0)
    assert "no DP-SGD arm was run" in judged(WON)[1]
    assert "not both came within" in judged(WON, arms=[dp])[1]
    key = ("best + 1 %", "arm", "dp")
    assert "against dp the difference" in judged(WON, arms=[dp], beside={key: est(0.0)})[1]
    assert "DP-SGD" not in judged(WON, arms=[dp], beside={key: est(-0.2)})[1]
    may, may_not = judged(WON, epsilon=3.0)
    assert "It guarantees epsilon 3" in may and "give no guarantee" not in may_not


def test_no_win_within_what_new_seeds_change():
    again = ArmSummary(name="again")
    noise = row("hardest", "tpr", -0.25, arm="again", half=0.3)
    may, may_not = judged(WON, noise, arms=[again], control="again")
    assert not may and "training the baseline again with other seeds changes as much" in may_not
    may, _ = judged(WON, row("hardest", "tpr", -0.1, arm="again", half=0.3), arms=[again], control="again")
    assert may
    assert "was not trained again" in judged(WON)[1]


@pytest.mark.parametrize("seeds", [4, 8])
def test_few_seeds_are_said(seeds):
    assert ("only large effects show" in judged(WON, seeds=seeds)[1]) == (seeds < 6)


def test_alike_is_not_shown():
    _, may_not = judged(row("hardest", "tpr", 0.0))
    assert "That arm and plain are alike" in may_not and "from -2.0 to +2.0 points" in may_not


def test_no_arm_wins_whose_models_know_patients_whom_they_were_not_given():
    may, may_not = judged(WON, row("all", "auc", -0.2), seen={"arm": (-0.3, 0.01)})
    assert not may and "as if the models had seen them" in may_not
    assert "alike" not in may_not and "most vulnerable" not in may_not


def test_a_held_out_loss_that_the_weights_do_not_have_by_the_baselines_code_is_named():
    loss = row("all", "held_out_loss", -0.2, base=2.0)
    assert "its own code makes 1.0000" in judged(WON, loss, codes={"arm": (1.0, 2.0)})[1]
    assert "its own code" not in judged(WON, loss, codes={"arm": (1.0, 1.01)})[1]


def test_a_winner_that_could_not_be_asked_in_every_way_is_named_with_the_way():
    plain = ArmSummary(name="other", signals=("as deployed",), same=("as trained", "by the baseline's code"))
    assert "its losses by the baseline's code could not be measured" in judged(WON, arms=[plain])[1]


def test_with_one_stage_nothing_is_said_of_equal_utility():
    matched = row("hardest", "tpr", -0.2, stage="best + 1 %")
    point = Point(arm="plain", stage=0, epoch=1.0, group="all", utility=1.0, tpr=0.5)
    assert "The difference stands" not in judged(WON, matched, points=[point])[0]
    assert "with one stage" in judged(WON, matched, points=[point])[0]
    assert "The difference stands" in judged(WON, matched, points=[point, point])[0]
