"""Attacks of whole arms agree with the attacks of one model, and no model is its own reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from simulated import Cohort, runs

from memguard.attacks import bavaria, lira, rmia
from memguard.comparing.attack import attack, by_seed, cells, statistics
from memguard.comparing.strongest import area

COHORT = Cohort(patients=200, held_out=50, seeds=5, stages=1)
ARM = runs(COHORT, "plain", 1)
CELL = COHORT.is_rare[:200].astype(np.int64)


def scored(arm=ARM, *, unit="nats/token"):
    return {one.attack: one.scores for one in attack(arm, 0, unit=unit, cell=CELL)}


def naive(one):
    """Model by model, with the models of the other seeds: ``(2, S, P)``."""
    stat = -ARM.loss[:, 0, 0].astype(np.float64)
    out = []
    for k in range(ARM.models):
        others = ARM.seed != ARM.seed[k]
        out.append(one(stat[k], stat[others], ARM.inside[others], k, others))
    return by_seed(ARM, np.stack(out))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LiRA, one variance", {"variance": "pooled"}),
        ("LiRA, variance of the patient", {"variance": "per_record"}),
        ("LiRA, variance of the stratum", {"variance": "pooled", "strata": CELL}),
    ],
)
def test_lira_is_that_of_each_model_with_the_other_seeds(name, options):
    expected = naive(lambda now, others, inside, k, mask: lira(now, others, inside, **options).score)
    np.testing.assert_allclose(scored()[f"{name}, as deployed"], expected, rtol=1e-9, atol=1e-9)


def test_rmia_is_that_of_each_model_up_to_gamma():
    p, z = np.exp(-ARM.loss[:, 0, 0].astype(np.float64)), np.exp(-ARM.held_out[:, 0].astype(np.float64))

    def one(now, others, inside, k, mask):
        return rmia(p[k], p[mask], inside, z[k], z[mask], gamma=1.0, continuous=True).score

    np.testing.assert_allclose(scored()["RMIA, as deployed"], naive(one), rtol=1e-6, atol=1e-6)


def test_bavaria_with_a_shared_prior_ranks_as_with_its_own():
    expected = naive(lambda now, others, inside, k, mask: bavaria(now, others, inside).score)
    found, everyone = scored()["BaVarIA, as deployed"], np.ones((5, 200), dtype=bool)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97
    assert abs(area(found, everyone) - area(expected, everyone)) < 0.01


def test_a_seed_is_never_its_own_reference():
    """Moving a seed's scores by a constant moves no score of another attack's references for that seed."""
    loss = ARM.loss.copy()
    loss[ARM.seed == 2] += 5.0
    moved, plain = scored(dataclasses.replace(ARM, loss=loss)), scored()
    stat = by_seed(ARM, -loss[:, 0, 0].astype(np.float64))
    np.testing.assert_allclose(moved["loss, as deployed"], stat)
    # the RMIA score is log-linear in the target: references unchanged, so it moves by the constant exactly
    found = moved["RMIA, as deployed"][:, 2] - plain["RMIA, as deployed"][:, 2]
    np.testing.assert_allclose(found, -5.0, rtol=1e-5)


def test_records_are_attacked_on_logits_too_and_signals_by_name():
    loss = np.concatenate([ARM.loss, 2 * ARM.loss], axis=2)
    both = dataclasses.replace(ARM, loss=loss, signals=("as deployed", "as trained"))
    names = scored(both, unit="nats/record")
    assert "LiRA, one variance on logits, as trained" in names and "loss, as trained" in names
    assert "loss on logits, as deployed" not in names  # the same order
    assert len(names) == 2 * len(scored(unit="nats/record"))
    assert list(statistics(np.array([-0.1]), "nats/record")) == [""]


def test_constant_losses_are_no_error():
    flat = dataclasses.replace(ARM, loss=np.full_like(ARM.loss, 2.0))
    assert list(scored(flat)) == ["loss, as deployed"]


def test_three_seeds_are_enough_for_every_attack():
    few = Cohort(patients=200, held_out=50, seeds=3, stages=1)
    names = {one.attack for one in attack(runs(few, "plain", 1), 0, unit="nats/token", cell=CELL)}
    assert names == set(scored())


def test_cells_are_disjoint_and_not_small():
    a, b = np.arange(100) < 50, np.arange(100) % 2 == 0
    assert np.bincount(cells([a, b], 100)).tolist() == [25, 25, 25, 25]
    few = np.arange(100) < 3
    assert len(np.bincount(cells([a, few], 100))) == 2
    assert cells([], 100).tolist() == [0] * 100
    assert cells([few, ~few], 10 * 10).max() == 0
    assert cells([np.arange(8) < 4], 8).tolist() == [0] * 8
