"""The arithmetic of the ranking benchmark, and one tiny run of each kind of model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.cohort import STRATA, make_cohort
from benchmarks.ranking.lira import _lira, attack_table
from benchmarks.ranking.models import SequenceData, TabularData, record_loss
from benchmarks.ranking.score import lt_iqr, mean_idf, precision_at
from benchmarks.ranking.signals import predicted
from benchmarks.ranking.train import Recipe, train
from benchmarks.ranking.truth import Pool, halves, load_pool, memorization
from memguard.records.content import Ragged


def test_halves_are_complementary_and_keep_patients_whole() -> None:
    patient = np.repeat(np.arange(50), 3)
    inside = halves(patient, 6, seed=1)
    assert np.array_equal(inside[0], ~inside[1])
    assert not np.array_equal(inside[0], inside[2])
    for mask in inside:
        assert all(len(set(mask[patient == p])) == 1 for p in range(50))


def test_memorization_and_precision() -> None:
    inside = np.array([[True, False], [False, True], [True, True], [False, False]])
    losses = np.array([[1.0, 5.0], [3.0, 2.0], [2.0, 2.0], [4.0, 6.0]])
    assert memorization(inside, losses).tolist() == [2.0, 3.5]
    truth = np.arange(100.0)
    assert precision_at(truth, truth, 0.05) == 1.0
    assert precision_at(-truth, truth, 0.05) == 0.0
    assert lt_iqr(np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])).tolist() == [2.0]


def test_rarity_and_predicted_codes() -> None:
    codes = Ragged.from_lists([[1, 2, 2], [1, 3], [1, 2]])
    assert [predicted(codes)[i].tolist() for i in range(3)] == [[2, 2], [3], [2]]
    assert mean_idf(codes).argmax() == 1


def test_cohort_has_its_strata() -> None:
    pool, outside = make_cohort(5, n=1000, n_held_out=50)
    again, _ = make_cohort(5, n=1000, n_held_out=50)
    assert np.array_equal(pool.codes.values, again.codes.values)
    assert set(pool.stratum) == set(range(len(STRATA)))
    repeated = np.bincount(pool.patient)[pool.patient] > 1
    assert set(pool.stratum[repeated]) == {3}
    assert not set(pool.patient) & set(outside.patient)
    assert 0.02 < np.mean(pool.label != pool.phenotype) < 0.09
    assert pool.multi_hot().sum() > 0


@pytest.mark.parametrize("kind", ["codes", "features"])
def test_a_tiny_pool_is_trained_once(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data: SequenceData | TabularData
    if kind == "codes":
        data = SequenceData(Ragged.from_lists([rng.integers(0, 9, 2 + i % 4).tolist() for i in range(60)]), 9)
    else:
        data = TabularData(rng.normal(size=(60, 3)), rng.integers(0, 2, 60), 2)
    recipe = Recipe(epochs=2, rate=1e-2, batch=16, width=8)
    rows, held_out = np.arange(40), np.arange(40, 60)
    arguments = (tmp_path, data, rows, rows, held_out, recipe)
    pool = load_pool(*arguments, n_models=2, seed=3, at=(1, 2))
    assert pool.losses.shape == (2, 2, 40)
    assert pool.held_out.shape == (2, 2, 20)
    assert np.isfinite(pool.truth(2)).all()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert np.array_equal(pool.losses, load_pool(*arguments, n_models=2, seed=3, at=(1, 2)).losses)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    first, second = (train(data, rows, held_out, recipe, 5)["trace"] for _ in range(2))
    assert np.array_equal(first, second)


def test_losses_do_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    data = SequenceData(Ragged.from_lists([rng.integers(0, 9, 2 + i % 7).tolist() for i in range(30)]), 9)
    model = data.model(width=8)
    a, b = record_loss(model, data, np.arange(30), size=4), record_loss(model, data, np.arange(30), size=30)
    assert np.allclose(a, b, atol=1e-5)


def _known_pool(n: int = 400) -> Pool:
    """Half-models of which only the even records are learned: their loss is 2 nats lower inside."""
    rng = np.random.default_rng(0)
    inside = halves(np.arange(n), 8, seed=0)
    base = rng.normal(5, 2, n)
    runs = [
        {
            "at": np.array([3]),
            "every": (base - 2 * (mask & (np.arange(n) % 2 == 0)) + rng.normal(0, 0.2, n))[None],
            "trace": np.zeros((1, int(mask.sum()))),
            "held_out": np.zeros((1, 5)),
        }
        for mask in inside
    ]
    return Pool(inside, runs)


def test_lira_is_the_ratio_of_two_normals() -> None:
    pool = _known_pool(40)
    losses, others = pool.losses[:, 0], np.arange(1, 8)
    residuals: list[list[float]] = [[], []]
    means = np.zeros((2, 40))
    free = np.zeros(2)
    for i in range(40):
        for side in (0, 1):
            mine = [losses[k, i] for k in others if pool.inside[k, i] == side]
            means[side, i] = np.mean(mine)
            residuals[side] += [x - np.mean(mine) for x in mine]
            free[side] += len(mine) - 1
    spread = [np.sqrt(np.square(r).sum() / f) for r, f in zip(residuals, free, strict=True)]
    wanted = norm.logpdf(losses[0], means[1], spread[1]) - norm.logpdf(losses[0], means[0], spread[0])
    np.testing.assert_allclose(_lira(pool, losses, 0), wanted, rtol=1e-9)


def test_attack_table_finds_the_group_that_is_learned() -> None:
    even = np.arange(400) % 2 == 0
    rows = attack_table(_known_pool(), 3, {"learned": even, "not learned": ~even}).splitlines()
    aucs = {tuple(cells[1:4:2]): float(cells[4].split()[0]) for cells in map(_cells, rows[2:])}
    assert aucs["learned", "LiRA"] > 0.99 > aucs["learned", "loss"]
    assert 0.45 < aucs["not learned", "LiRA"] < 0.55


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")]
