"""Canaries: exposure and epsilon where they were learned, silence where they were not, and gaps that are said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from memguard.errors import DataError
from memguard.probes.asked import Asked, Budget
from memguard.probes.canary import CanaryProbe
from memguard.probes.subject import Subject
from memguard.records.canaries import make_canaries
from memguard.records.content import Ragged, RecordContent
from tests.probes._attacked import Pool, Table

NOBODY = Subject(
    n_members=0, patient=np.zeros(0, np.int64), content=RecordContent.from_codes(Ragged.from_lists([]))
)


def run(probe, target=None):
    asked = Asked(
        target=target,
        references=Pool(np.zeros((0, 0), bool), "none"),
        loss=np.zeros(0),
        reference_loss=np.zeros((0, 0)),
    )
    return probe.run(NOBODY, asked, Budget())


def planted(seed, m=200, gain=0.0, alternatives=400):
    rng = np.random.default_rng(seed)
    coins = rng.random(m) < 0.5
    return coins, rng.normal(5, 1, m) - gain * coins, rng.normal(5, 1, alternatives)


def test_exposure_is_that_of_a_naive_rank():
    coins, loss, other = planted(0, 40, gain=1.0, alternatives=63)
    found = run(CanaryProbe(included=coins, canary_loss=loss, alternative_loss=other))
    naive = [6 - np.log2(1 + np.sum(other < x)) for x in loss[coins]]
    null = [6 - np.log2(1 + np.sum(other < x)) for x in loss[~coins]]
    assert found.numbers["exposure.mean"].value == pytest.approx(np.mean(naive))
    assert found.numbers["exposure.minus_held_out"].value == pytest.approx(np.mean(naive) - np.mean(null))
    pairs = [a < b for a in loss[coins] for b in loss[~coins]]
    assert found.numbers["auc"].value == pytest.approx(np.mean(pairs))
    assert all(len(row) == 3 for row in found.tables["canaries"].rows)


def test_a_bound_above_the_claim_is_an_alarm():
    coins, loss, other = planted(1, gain=4.0)
    found = run(CanaryProbe(included=coins, canary_loss=loss, alternative_loss=other, claimed_epsilon=1.0))
    assert found.settings["alarm"] and found.answer.startswith("ALARM")
    bound = found.numbers["epsilon_lower_bound"]
    assert (
        1.0 < bound.low == bound.value <= found.settings["largest_certifiable_epsilon"]
        and bound.high == np.inf
    )
    quiet = run(CanaryProbe(included=coins, canary_loss=loss, alternative_loss=other, claimed_epsilon=50.0))
    assert not quiet.settings["alarm"] and any("could not have refuted" in note for note in quiet.notes)
    assert not run(CanaryProbe(included=coins, canary_loss=loss)).settings["alarm"]


def test_where_canaries_were_not_learned_error_rates_hold():
    runs, bound, above, wrong = 60, 0, 0, 0
    for seed in range(runs):
        coins, loss, other = planted(seed, 100)
        numbers = run(CanaryProbe(included=coins, canary_loss=loss, alternative_loss=other)).numbers
        bound += numbers["epsilon_lower_bound"].low > 0
        above += numbers["auc"].low > 0.5
        wrong += not numbers["exposure.minus_held_out"].covers(0)
    assert stats.binom.sf(bound - 1, runs, 0.05) > 0.005
    assert stats.binom.sf(above - 1, runs, 0.025) > 0.005
    assert stats.binom.sf(wrong - 1, runs, 0.05) > 0.005


def test_randomized_response_is_not_overstated():
    """A mechanism of which epsilon is known: the truth about each coin with probability e / (1 + e)."""
    runs, over = 60, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        coins = rng.random(300) < 0.5
        honest = rng.random(300) < np.e / (1 + np.e)
        numbers = run(
            CanaryProbe(included=coins, canary_loss=np.where(honest == coins, 0.0, 1.0), delta=0.0)
        ).numbers
        over += numbers["epsilon_lower_bound"].low > 1.0
    assert stats.binom.sf(over - 1, runs, 0.05) > 0.005


class Knows(Table):
    """Knows some sequences by heart."""

    def __init__(self, sequences, better):
        super().__init__()
        self.hearts, self.better = {tuple(row) for row in sequences}, better

    def log_probs(self, sequences, *, patient=None):
        value = super().log_probs(sequences, patient=np.full(len(sequences), -1))
        knows = np.array([tuple(sequences[i]) in self.hearts for i in range(len(sequences))])
        return value + self.better * knows[sequences.rows]


def test_canaries_are_asked_of_the_model_with_their_alternatives():
    rng = np.random.default_rng(0)
    records = Ragged.from_lists([rng.integers(1, 50, 14).tolist() for _ in range(80)])
    drawn = make_canaries(records, 120, n_alternatives=40, seed=1)
    planted = [drawn.planted[i] for i in range(len(drawn.planted))]
    found = run(CanaryProbe(canaries=drawn, alternatives=31, claimed_epsilon=0.5), Knows(planted, 1.0))
    assert found.settings["alternatives"] == 31 and found.settings["planted"] == int(drawn.included.sum())
    assert found.numbers["exposure.mean"].value > 4.5 and found.settings["alarm"]
    model = Knows(planted, 1.0)
    losses = np.array(
        [-np.nanmean(model.log_probs(Ragged.from_lists([drawn.sequences[i]]))) for i in range(120)]
    )
    others = np.array(
        [
            [-np.nanmean(model.log_probs(drawn.alternatives([i]).take([j]))) for j in range(31)]
            for i in range(120)
        ]
    )
    by_hand = run(CanaryProbe(included=drawn.included, canary_loss=losses, alternative_loss=others))
    assert found.numbers["auc"].value == pytest.approx(by_hand.numbers["auc"].value)
    assert found.numbers["exposure.mean"].value == pytest.approx(by_hand.numbers["exposure.mean"].value)
    innocent = run(CanaryProbe(canaries=drawn), Knows([], 0.0))
    assert innocent.numbers["exposure.minus_held_out"].covers(0) and innocent.numbers["auc"].covers(0.5)
    silent = run(CanaryProbe(canaries=drawn))
    assert not silent.numbers and "probabilities" in silent.not_tested[0].why


def test_ties_say_nothing():
    coins, loss, other = planted(2, 60)
    numbers = run(CanaryProbe(included=coins, canary_loss=0 * loss, alternative_loss=0 * other)).numbers
    assert numbers["auc"].value == 0.5 and numbers["epsilon_lower_bound"].value == 0
    assert numbers["exposure.mean"].value == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("coins", [np.ones(50, bool), np.zeros(50, bool), np.arange(50) < 45])
def test_coins_that_were_not_fair_give_no_bound(coins):
    found = run(CanaryProbe(included=coins, canary_loss=np.arange(50.0), alternative_loss=np.arange(30.0)))
    assert (
        "epsilon_lower_bound" not in found.numbers and found.settings["largest_certifiable_epsilon"] is None
    )
    assert any(gap.what == "Epsilon from one run" for gap in found.not_tested)


def test_losses_that_are_not_numbers_are_left_out_and_counted():
    coins, loss, other = planted(3, 100, gain=2.0)
    loss[:3], other[:2] = np.nan, np.inf
    found = run(CanaryProbe(included=coins, canary_loss=loss, alternative_loss=other))
    assert [gap.what for gap in found.not_tested[:2]] == ["2 of the alternatives", "3 of the canaries"]
    assert found.numbers["auc"].n == 97


def test_few_canaries():
    coins = np.array([True, False])
    found = run(CanaryProbe(included=coins, canary_loss=[0.0, 1.0], fprs=(0.1,)))
    assert found.numbers["epsilon_lower_bound"].value == 0.0
    assert any("10" in gap.fix for gap in found.not_tested) and any(
        "nothing leaks" in note for note in found.notes
    )


def test_bad_input():
    with pytest.raises(DataError, match="neither"):
        CanaryProbe(included=np.ones(3, bool))
    with pytest.raises(DataError, match=r"shape \(2,\), \(3,\)"):
        CanaryProbe(included=np.ones(2, bool), canary_loss=np.zeros(3))
    with pytest.raises(DataError, match=r"and \(4, 9\)"):
        CanaryProbe(included=np.ones(3, bool), canary_loss=np.zeros(3), alternative_loss=np.zeros((4, 9)))
