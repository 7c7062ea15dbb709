"""The expectation, the choice of epoch and weight, and above all the null of the score."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from memguard.errors import DataError, HeldOutError
from memguard.records.content import Ragged, RecordContent
from memguard.records.early import early_lag
from memguard.records.surrogate import (
    ContentFeatures,
    Expectation,
    ModeSample,
    content_features,
    early_epoch,
    early_trust,
    fit_status,
    match_train_noise,
    memorization_score,
)


def p_values(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Conformal: ``(1 + #{null >= s}) / (n + 1)``."""
    ranked = np.sort(null)
    return (1 + len(null) - np.searchsorted(ranked, score, side="left")) / (len(null) + 1)


def test_expectation_matches_a_plain_ridge_on_each_fold() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, size=(240, 3))
    y = x @ [1.0, -0.5, 0.0] + rng.normal(0, 0.3, 240)
    patient = rng.integers(0, 120, 240)
    fit = Expectation.fit(x, y, patient, ridge=0.0)
    assert fit.n == len(np.unique(patient))
    code = np.unique(patient, return_inverse=True)[1]
    fold = (np.random.default_rng(0).permutation(fit.n) % 5)[code]
    design = np.column_stack([x, np.ones(240)])
    for k in range(5):
        beta = np.linalg.lstsq(design[fold != k], y[fold != k], rcond=None)[0]
        assert np.allclose(fit.cross_fitted[fold == k], design[fold == k] @ beta)
    assert fit.status == "ok"


def test_a_held_out_patient_never_helps_to_predict_itself() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(150, 40))
    y = rng.normal(size=150)
    doubled = Expectation.fit(np.repeat(x, 2, 0), np.repeat(y, 2), np.repeat(np.arange(150), 2), ridge=0.0)
    assert abs(doubled.fit_r) < 0.3  # with the copies in different folds this would be near 1
    assert doubled.status == "refuse"


def test_refusals_name_what_is_missing() -> None:
    x = np.ones((99, 2))
    with pytest.raises(HeldOutError, match="99 held-out patients"):
        Expectation.fit(x, np.ones(99))
    with pytest.raises(HeldOutError, match="50 held-out"):
        Expectation.fit(np.ones((200, 1)), np.ones(200), np.arange(200) % 50)
    with pytest.raises(DataError, match="NaN"):
        Expectation.fit(np.full((120, 1), np.nan), np.ones(120))
    with pytest.raises(DataError, match="at least 10"):
        match_train_noise(np.ones(5), np.ones(9), np.ones(9), np.random.default_rng(0))
    assert fit_status(0.49) == "refuse"


def test_constant_loss_or_features_do_not_divide_by_zero() -> None:
    fit = Expectation.fit(np.ones((120, 2)), np.full(120, 2.0))
    assert fit.status == "refuse"
    assert np.allclose(fit.predict(np.ones((3, 2))), 2.0)


def test_epoch_and_weight() -> None:
    curve = np.array([3.0, 2.5, np.nan, 2.1, np.nan, 2.0, 2.2, 2.3, 2.5, 2.7])
    assert early_epoch(curve) in (1, 3)
    assert early_epoch([2.0, 3.0]) == 0
    assert early_trust([2.0, 3.0]) == 1.0
    assert early_trust([5.0, 2.1, 2.0, 2.0, 2.2]) > 0.9
    assert early_trust([5.0, 4.5, 3.0, 2.0]) < 0.1
    with pytest.raises(HeldOutError, match="validate once"):
        early_epoch([np.nan])


def test_lag_is_half_the_fall_in_the_early_epoch() -> None:
    falling = 2 + np.exp(-np.arange(9) / 3)
    early = early_epoch(falling)
    assert early == 4
    assert early_lag(falling) == pytest.approx((falling[3] - falling[4]) / 2)
    falling[[2, 3]] = np.nan  # not validated: three epochs share the fall
    assert early_lag(falling) == pytest.approx((falling[1] - falling[4]) / 6)
    falling[:2] = np.nan
    assert early_lag(falling) == 0.0
    assert early_lag([2.0, 3.0]) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_matched_losses_look_like_train_mode_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    level = rng.gamma(6, 0.4, 1200)
    train = level + 0.05 + 0.1 * level * rng.normal(size=1200)
    members, held_out = np.arange(600), np.arange(600, 1200)
    sample = members[:200]
    matched = match_train_noise(level[held_out], train[sample], level[sample], rng)
    assert ks_2samp(matched, train[members]).pvalue > 0.001
    assert abs((matched - level[held_out]).mean() - 0.05) < 0.06
    quiet = match_train_noise(level[held_out], train[sample], level[sample], rng, noise_only=True)
    assert abs((quiet - level[held_out]).mean()) < 0.06


def simulate(rng: np.random.Generator, n: int, *, memorized: float = 0.0) -> dict[str, np.ndarray]:
    """Losses of ``n`` records over 8 epochs: a difficulty, a learning curve, dropout noise in train mode."""
    difficulty = rng.normal(0, 0.4, n) + 0.1 * rng.standard_t(4, n)
    level = 2 + np.exp(-np.arange(8) / 2)[:, None] + difficulty
    evaluated = level + 0.05 * rng.normal(size=(8, n))
    evaluated -= memorized * np.arange(8)[:, None] / 8
    penalty = 0.15 + 0.1 * np.abs(rng.normal(size=(8, n)))
    return {
        "eval": evaluated,
        "train": evaluated + penalty + 0.1 * rng.normal(size=(8, n)),
        "x": (difficulty + 0.3 * rng.normal(size=n))[:, None],
    }


@pytest.mark.parametrize("loss_mode", ["train", "eval"])
@pytest.mark.parametrize("with_content", [True, False])
def test_the_null_is_valid_where_nothing_is_memorized(loss_mode: str, with_content: bool) -> None:
    false = {0.01: [], 0.05: [], 0.2: []}
    centre = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b = simulate(rng, 500), simulate(rng, 300)
        rows = rng.choice(500, 100, replace=False)
        result = memorization_score(
            ContentFeatures(kind="codes", train=a["x"], held_out=b["x"], names=("x",))
            if with_content
            else None,
            traces=a["train"],
            held_out_traces=b["eval"],
            loss=a["train"][-1] if loss_mode == "train" else a["eval"][-1],
            held_out_loss=b["eval"][-1],
            sample=ModeSample(rows=rows, losses=a["eval"][:, rows]),
            loss_mode=loss_mode,
            seed=seed,
        )
        p = p_values(result.gap, result.held_out_gap)
        for level, rates in false.items():
            rates.append((p <= level).mean())
        centre.append((np.median(result.gap) - np.median(result.held_out_gap)) / result.held_out_gap.std())
    for level, rates in false.items():
        error = np.std(rates) / np.sqrt(len(rates))
        assert np.mean(rates) <= level + 2.5 * error, (level, np.mean(rates), error)
    if loss_mode == "eval":
        assert abs(np.mean(centre)) < 0.1  # centred; in train mode the dropout penalty errs to fewer flags
    else:
        assert np.mean(centre) < 0.1


def test_unmatched_early_losses_would_break_the_null() -> None:
    """Why the sample is paid for: without it, dropout's penalty on the early loss reads as memorization."""
    rng = np.random.default_rng(0)
    a, b = simulate(rng, 2000), simulate(rng, 1000)
    common = {"held_out_traces": b["eval"], "held_out_loss": b["eval"][-1], "loss": a["eval"][-1]}
    naive = memorization_score(None, traces=a["train"], loss_mode="eval", **common)
    rows = np.arange(200)
    matched = memorization_score(
        None,
        traces=a["train"],
        loss_mode="eval",
        sample=ModeSample(rows=rows, losses=a["eval"][:, rows]),
        **common,
    )
    assert (p_values(naive.gap, naive.held_out_gap) <= 0.05).mean() > 0.15
    assert (p_values(matched.gap, matched.held_out_gap) <= 0.05).mean() < 0.07


def test_memorization_is_found() -> None:
    rng = np.random.default_rng(0)
    a, b = simulate(rng, 500), simulate(rng, 300)
    guilty = np.arange(40)
    a["train"][2:, guilty] -= np.linspace(0.1, 0.8, 6)[:, None]
    result = memorization_score(
        ContentFeatures(kind="codes", train=a["x"], held_out=b["x"], names=("x",)),
        traces=a["train"],
        held_out_traces=b["eval"],
        loss=a["train"][-1],
        held_out_loss=b["eval"][-1],
        weight=1.0,
    )
    assert np.isin(np.argsort(-result.score)[:40], guilty).mean() > 0.8
    assert result.names == ("x", "early_loss")
    assert np.array_equal(result.score, result.gap)


def test_first_epoch_uses_content_alone_and_gaps_in_the_trace_fall_back_to_it() -> None:
    rng = np.random.default_rng(0)
    a, b = simulate(rng, 300), simulate(rng, 200)
    features = ContentFeatures(kind="codes", train=a["x"], held_out=b["x"], names=("x",))
    one = memorization_score(
        features,
        traces=a["train"][:1],
        held_out_traces=b["eval"][:1],
        loss=a["train"][0],
        held_out_loss=b["eval"][0],
    )
    assert one.early is None
    with pytest.raises(HeldOutError, match="second validated epoch"):
        memorization_score(
            None,
            traces=a["train"][:1],
            held_out_traces=b["eval"][:1],
            loss=a["train"][0],
            held_out_loss=b["eval"][0],
        )
    trace = a["train"].copy()
    trace[:, 7] = np.nan
    b["eval"][3, 11] = np.nan
    late = memorization_score(
        features, traces=trace, held_out_traces=b["eval"], loss=a["train"][-1], held_out_loss=b["eval"][-1]
    )
    assert np.isfinite(late.score).all()


def test_no_number_is_guessed_where_the_fit_fails() -> None:
    rng = np.random.default_rng(0)
    noise = ContentFeatures(
        kind="codes", train=rng.normal(size=(50, 1)), held_out=rng.normal(size=(150, 1)), names=("x",)
    )
    result = memorization_score(
        noise,
        traces=np.zeros((0, 50)),
        held_out_traces=np.zeros((0, 150)),
        loss=rng.normal(size=50),
        held_out_loss=rng.normal(size=150),
    )
    assert result.status == "refuse"
    assert np.isnan(result.score).all()
    assert np.isnan(result.held_out_gap).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(DataError, match="compared across"):
        memorization_score(
            None,
            traces=np.zeros((2, 5)),
            held_out_traces=np.zeros((3, 5)),
            loss=np.zeros(5),
            held_out_loss=np.zeros(5),
        )
    codes = RecordContent.from_codes(Ragged.from_lists([[1]]))
    with pytest.raises(DataError, match="no surrogate"):
        content_features(codes, None, RecordContent.from_features([[1.0]]))


def test_the_early_loss_of_a_patient_with_several_records_is_not_used() -> None:
    rng = np.random.default_rng(0)
    a, b = simulate(rng, 300), simulate(rng, 200)
    features = ContentFeatures(kind="codes", train=a["x"], held_out=b["x"], names=("x",))
    patient = np.arange(300)
    patient[:10] = 0
    arguments = {
        "held_out_traces": b["eval"],
        "loss": a["train"][-1],
        "held_out_loss": b["eval"][-1],
        "patient": patient,
    }
    before = memorization_score(features, traces=a["train"], **arguments)
    trace = a["train"].copy()
    trace[:-1, :12] -= 1.0  # as if their other records had been learned early
    after = memorization_score(features, traces=trace, **arguments)
    assert np.array_equal(before.expected[:10], after.expected[:10])
    assert np.all(after.expected[10:12] < before.expected[10:12])


@pytest.mark.parametrize("seed", range(3))
def test_patients_with_several_records_are_ranked_at_the_level_of_the_others(seed: int) -> None:
    """They are judged without the early loss, which was taken while the model was still worse."""
    rng = np.random.default_rng(seed)
    n, epochs = 3000, 9
    level = 2 + 2 * np.exp(-np.arange(epochs + 1) / 2)  # before the first epoch and after each
    difficulty, difficulty_out = rng.normal(0, 0.4, n), rng.normal(0, 0.4, 600)
    seen = rng.random((epochs, n))  # share of the epoch that is over when a member is seen
    train = level[:-1, None] * (1 - seen) + level[1:, None] * seen + difficulty
    train += 0.05 * rng.normal(size=train.shape)
    held_out = level[1:, None] + difficulty_out + 0.05 * rng.normal(size=(epochs, 600))
    result = memorization_score(
        ContentFeatures(
            kind="codes",
            train=(difficulty + 0.2 * rng.normal(size=n))[:, None],
            held_out=(difficulty_out + 0.2 * rng.normal(size=600))[:, None],
            names=("x",),
        ),
        traces=train,
        held_out_traces=held_out,
        loss=train[-1],
        held_out_loss=held_out[-1],
        patient=np.where(np.arange(n) < n // 2, np.arange(n) // 3, n + np.arange(n)),
    )
    assert early_lag(held_out.mean(1)) > 0.02
    apart = result.expected - difficulty
    several = np.arange(n) < n // 2
    error = np.sqrt(apart[several].var() / several.sum() + apart[~several].var() / (~several).sum())
    assert abs(apart[several].mean() - apart[~several].mean()) < 4 * error
