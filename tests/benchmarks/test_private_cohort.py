"""The benchmark of repeated patients under DP-SGD: its attack, and one run of everything at toy size."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.cohort import STRATA, make_cohort
from benchmarks.private_cohort.attack import attack, by_group, patient_losses
from benchmarks.private_cohort.halves import run, unigram
from benchmarks.private_cohort.training import Recipe, load_pool
from benchmarks.ranking.truth import halves
from memguard.errors import ResolutionError
from memguard.records.content import Ragged


def test_a_patient_has_the_mean_of_the_records():
    losses = np.array([[1.0, 5.0, 3.0], [2.0, 0.0, 4.0]])
    mean, first = patient_losses(losses, np.array([7, 2, 7]))
    assert mean.tolist() == [[5.0, 2.0], [0.0, 3.0]] and first.tolist() == [1, 0]


@pytest.mark.parametrize("variance", ["pooled", "per_record", "global"])
def test_the_attack_finds_the_group_that_leaks_and_no_other(variance):
    rng = np.random.default_rng(0)
    inside = halves(np.arange(800), 16, seed=3)
    group = np.repeat([0, 1], [700, 100])
    losses = rng.normal(5.0, 0.5, 800) + rng.normal(0, 0.1, inside.shape) - 0.6 * (inside & (group == 1))
    scores = attack(losses, inside, group, variance)
    found = by_group(scores, inside, {"quiet": group == 0, "leaky": group == 1}, 0.01)
    assert found["leaky"].own > 0.9 and found["leaky"].own_low > 0.85 and found["leaky"].common.value > 0.9
    assert found["quiet"].own < 0.03 and found["quiet"].common.value < 0.03
    assert found["quiet"].auc.value == pytest.approx(0.5, abs=0.03)
    assert "nobody" not in by_group(scores, inside, {"nobody": group == 2}, 0.01)
    assert found["leaky"].patients == 100 and found["leaky"].pairs == inside[:, 700:].sum() == 800


def test_rates_at_the_groups_own_threshold_are_counted_by_patient():
    """Eight of twenty patients are always found, the others never: .4, as sure as twenty patients make it."""
    inside = np.tile([[True], [False]], (50, 20))
    scores = np.where(inside, np.arange(20) < 8, -1.0).astype(float)
    found = by_group(scores, inside, {"all": np.ones(20, bool)}, 0.05)["all"]
    assert found.own == 1.0
    scores[~inside] = 0.5
    found = by_group(scores, inside, {"all": np.ones(20, bool)}, 0.05)["all"]
    assert found.own == pytest.approx(0.4)
    assert found.own_low < 0.22 and found.own_high > 0.62  # of 1,000 pairs it would be .37 to .43


def test_too_few_references_for_a_variance_of_each_record():
    inside = halves(np.arange(40), 2, seed=1)
    with pytest.raises(ResolutionError):
        attack(np.ones(inside.shape), inside, np.zeros(40), "per_record")


def test_unigram_is_the_cross_entropy_of_the_code_frequencies():
    codes = Ragged.from_lists([[1, 20, 20, 30], [1, 20, 40, 50]] * 500)
    entropy = 0.5 * np.log(2) + 0.5 * np.log(6)
    assert unigram(codes, codes) == pytest.approx(entropy, abs=0.2)


def test_toy_run(tmp_path, capsys):
    recipe = Recipe(steps=3, batch=16, noise=4.0, patient_noise=4.0, plain_epochs=1, width=8)
    run(5, recipe, n=130, n_models=6, cache=tmp_path, fpr=0.1)
    told = capsys.readouterr().out
    assert "record: 3 steps" in told and "epsilon" in told and "of a patient with 2 records" in told
    assert told.count("| no privacy |") == told.count("| patient |") > len(STRATA)
    assert "Aim, at most 0.10 by patient" in told
    # What was trained is read, not trained again, and patients are whole.
    pool, outside = make_cohort(5, n=130, n_held_out=1000)
    folder = next(tmp_path.iterdir())
    again = load_pool("patient", pool, outside, recipe, n_models=6, seed=5, folder=folder)
    assert "CPU" not in capsys.readouterr().out
    assert again.losses.shape == (6, 130) and again.validation.shape == (6, 1000)
    for mask, (records, patients) in zip(again.inside, again.members, strict=True):
        assert records == mask.sum() and patients == len(set(pool.patient[mask]))
        assert not set(pool.patient[mask]) & set(pool.patient[~mask])
    assert len(list((folder / "ledgers").glob("*.jsonl"))) == 12
