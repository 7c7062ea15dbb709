"""Held-out losses made to look like train-time ones, where members are memorized."""

from __future__ import annotations

import numpy as np
import pytest

from memguard.attacks import adjusted_p, conformal_p_values
from memguard.records.surrogate import ContentFeatures, ModeSample, match_train_noise, memorization_score


def simulate(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Losses of ``n`` records over 8 epochs; the wobble of a training step has a heavy tail."""
    difficulty = rng.normal(0, 0.4, n)
    evaluated = 2 + np.exp(-np.arange(8) / 2)[:, None] + difficulty + 0.05 * rng.normal(size=(8, n))
    return {
        "eval": evaluated,
        "train": evaluated + 0.1 * rng.standard_t(3, (8, n)),
        "x": (difficulty + 0.1 * rng.normal(size=n))[:, None],
    }


def test_no_member_of_the_sample_decides_for_many_held_out_records() -> None:
    """Members are memorized: held-out losses lie above most of theirs, and one hard member is odd."""
    rng = np.random.default_rng(0)
    level = np.sort(rng.gamma(6, 0.4, 100))
    shift = rng.normal(0, 0.1, 100)
    shift[97] = -3.0
    held_out = 0.8 + rng.gamma(6, 0.4, 1200)
    held_out[::100] = np.nan
    for seed in range(5):
        moved = match_train_noise(held_out, level + shift, level, np.random.default_rng(seed)) - held_out
        assert np.isnan(moved[::100]).all() and np.isfinite(moved).sum() == 1188
        moved = moved[np.isfinite(moved)]
        assert 11 <= (moved < -2).sum() <= 12
        assert abs(moved.mean() - shift.mean()) < 0.01
    hardest = np.argsort(held_out)[:1188][-60:]  # NaN sort last
    moved = match_train_noise(held_out, level + np.arange(100.0), level, rng) - held_out
    assert moved[hardest].min() >= 89  # and each stays among its neighbours: hard records are noisier


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_flags_hold_among_memorized_members_and_do_not_hang_on_the_sample(share: float) -> None:
    """Members that are not memorized, among others that are: their p-values hold; other samples flag as many."""
    rng = np.random.default_rng(0)
    false: list[list[float]] = []
    for _ in range(4):
        a, b = simulate(rng, 2000), simulate(rng, 1000)
        taught = rng.random(2000) < share
        learned = np.where(taught, np.arange(8)[:, None] / 8 * rng.gamma(4, 0.2, 2000), 0.0)
        a["train"], a["eval"] = a["train"] - learned, a["eval"] - learned
        features = ContentFeatures(kind="codes", train=a["x"], held_out=b["x"], names=("x",))
        flagged = []
        for _ in range(6):
            rows = rng.choice(2000, 100, replace=False)
            result = memorization_score(
                features,
                traces=a["train"],
                held_out_traces=b["eval"],
                loss=a["train"][-1],
                held_out_loss=b["eval"][-1],
                sample=ModeSample(rows=rows, losses=a["eval"][:, rows]),
            )
            p = conformal_p_values(result.gap, result.held_out_gap)
            false.append([float((p[~taught] <= level).mean()) for level in (0.01, 0.05, 0.2)])
            flags = adjusted_p(p) <= 0.1
            flagged.append(int(flags.sum()))
            assert (flags & ~taught).sum() <= 0.1 * flags.sum() + 3
        assert max(flagged) < 2 * min(flagged), flagged
    assert np.all(np.mean(false, axis=0) <= [0.012, 0.055, 0.21])
