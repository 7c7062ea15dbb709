"""The patient-grouped ridge against a naive fit, and its place in the score of a classifier."""

from __future__ import annotations

import numpy as np
import pytest

from memguard.errors import DataError
from memguard.records.content import RecordContent
from memguard.records.ridge import ridge_features
from memguard.records.surrogate import content_features, memorization_score


def data(rng: np.random.Generator, n: int, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(n, d))
    return x, (x[:, 0] + 0.5 * x[:, 1] + rng.normal(0, 0.7, n) > 0).astype(int)


def test_against_a_naive_fit_without_the_patients_of_the_fold() -> None:
    rng = np.random.default_rng(0)
    x, y = data(rng, 120)
    patient = rng.integers(0, 40, 120)
    x_out, y_out = data(rng, 30)
    inside, outside, names = ridge_features(x, y, patient, x_out, y_out, ridge=0.1, temperature=4.0)
    assert names == ("ridge_nll", "ridge_p", "ridge_entropy")
    draw = np.random.default_rng(0)
    code = np.unique(patient, return_inverse=True)[1]
    fold = (draw.permutation(code.max() + 1) % 5)[code]
    fold_out = draw.permutation(30) % 5
    z = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(120)])
    z_out = np.column_stack([(x_out - x.mean(0)) / x.std(0), np.ones(30)])
    for k in range(5):
        a, t = z[fold != k], np.eye(2)[y[fold != k]]
        beta = np.linalg.solve(a.T @ a + np.diag([12.0] * 4 + [1e-9]), a.T @ t)
        for rows, design, label, found in ((fold == k, z, y, inside), (fold_out == k, z_out, y_out, outside)):
            s = np.exp(4 * design[rows] @ beta)
            p = (s / s.sum(1, keepdims=True))[np.arange(rows.sum()), label[rows]]
            assert np.allclose(found[rows, 1], p)
            assert np.allclose(found[rows, 0], -np.log(p))


def test_copies_of_a_patient_do_not_vouch_for_each_other() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(40, 60)), 3, axis=0)
    y = np.repeat(rng.integers(0, 2, 40), 3)  # labels without any law: only copies could tell
    patient = np.repeat(np.arange(40), 3)
    joined = ridge_features(x, y, patient, x[:3], y[:3], ridge=1e-3)[0][:, 1]
    apart = ridge_features(x, y, None, x[:3], y[:3], ridge=1e-3)[0][:, 1]
    assert apart.mean() > 0.9
    assert joined.mean() < 0.7


def test_constant_columns_new_labels_and_wide_inputs() -> None:
    rng = np.random.default_rng(0)
    x, y = data(rng, 50)
    x[:, 3] = 1.0
    inside, outside, _ = ridge_features(x, y, None, x[:4], [0, 1, 7, 0])
    assert np.isfinite(inside).all()
    assert outside[2, 1] == pytest.approx(1e-6)
    wide = rng.normal(size=(30, 5000)).astype(np.float32)
    assert ridge_features(wide, y[:30], None, wide[:5], y[:5])[0].shape == (30, 3)


def test_bad_input_is_refused() -> None:
    x = np.zeros((10, 2))
    with pytest.raises(DataError, match="class label"):
        ridge_features(x, np.linspace(0, 1, 10), None, x, np.zeros(10))
    with pytest.raises(DataError, match="wrong record"):
        ridge_features(x, np.zeros(9), None, x, np.zeros(10))
    with pytest.raises(DataError, match="finite"):
        ridge_features(np.full((10, 2), np.nan), np.zeros(10), None, x, np.zeros(10))
    with pytest.raises(DataError, match="classes"):
        ridge_features(np.zeros((2000, 1)), np.arange(2000), None, np.zeros((1, 1)), [0])


def test_a_classifier_is_ranked_in_probability_and_its_gap_is_in_nats() -> None:
    rng = np.random.default_rng(0)
    x, y = data(rng, 600)
    x_out, y_out = data(rng, 300)
    flipped = np.arange(20)
    y[flipped] = x[flipped, 0] + 0.5 * x[flipped, 1] < 0
    margin = np.where(y == 1, 1, -1) * (2 * x[:, 0] + x[:, 1])
    margin[flipped] = 4.0  # learned by heart
    loss = np.log1p(np.exp(-margin))
    loss_out = np.log1p(np.exp(-np.where(y_out == 1, 1, -1) * (2 * x_out[:, 0] + x_out[:, 1])))
    features = content_features(
        RecordContent.from_features(x, y), None, RecordContent.from_features(x_out, y_out)
    )
    arguments = {
        "traces": np.stack([loss] * 4),
        "held_out_traces": np.stack([loss_out + 0.1 * e for e in range(4)]),
        "loss": loss,
        "held_out_loss": loss_out,
    }
    result = memorization_score(features, **arguments)
    assert result.early is None
    assert result.weight == pytest.approx(2 / 3)
    assert np.isin(np.argsort(-result.score)[:20], flipped).mean() > 0.7
    assert np.allclose(result.gap, result.expected - loss)
    with_reference = memorization_score(features, reference=(loss + 0.1, loss_out + 0.1), **arguments)
    assert with_reference.fit_r > result.fit_r


def test_the_classifier_null_is_valid() -> None:
    rates = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = data(rng, 700)
        x_out, y_out = data(rng, 400)
        beta = np.array([2.0, 1.0, 0, 0]) + 0.3 * rng.normal(size=4)  # a model that has seen neither

        def loss(x: np.ndarray, y: np.ndarray, beta: np.ndarray = beta) -> np.ndarray:
            return np.log1p(np.exp(-np.where(y == 1, 1, -1) * (x @ beta)))

        a, b = loss(x, y), loss(x_out, y_out)
        held_out = RecordContent.from_features(x_out, y_out)
        f = content_features(RecordContent.from_features(x, y), None, held_out)
        s = memorization_score(f, traces=[a], held_out_traces=[b], loss=a, held_out_loss=b, loss_mode="eval")
        if s.status == "refuse":
            continue
        for score, null in ((s.score, s.held_out_score), (s.gap, s.held_out_gap)):
            p = (1 + (null[:, None] >= score).sum(0)) / (len(null) + 1)
            rates.append((p <= 0.05).mean())
    assert len(rates) > 40
    assert np.mean(rates) <= 0.05 + 2.5 * np.std(rates) / np.sqrt(len(rates))
