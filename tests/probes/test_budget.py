"""Sizes: what a look may cost, and which records it takes."""

from __future__ import annotations

import numpy as np
import pytest

from memguard.probes.budget import final_budget, reference_steps
from memguard.probes.sides import WatchSettings


@pytest.mark.parametrize("epochs", [1, 3, 16, 17, 100])
@pytest.mark.parametrize("n_trained", [0, 16, 17, 500, 33_333])
def test_the_final_pass_costs_at_most_two_percent_of_the_training(n_trained: int, epochs: int) -> None:
    n = final_budget(n_trained, epochs)
    assert n <= n_trained
    assert n / 3 <= 0.02 * epochs * n_trained + 1e-6  # in units of training on one record
    assert n == n_trained or (n + 1) / 3 > 0.02 * epochs * n_trained - 1e-6


def test_all_none_and_an_epoch_that_was_not_finished() -> None:
    assert (final_budget(500, 2, True), final_budget(500, 2, False)) == (500, 0)
    assert final_budget(500, 0) == final_budget(500, 1) == 30


def test_a_reference_takes_at_least_one_step() -> None:
    assert [reference_steps(share, 50) for share in (0.001, 0.4, 1.0, 2.5)] == [1, 20, 50, 125]


@pytest.mark.parametrize(("n_held_out", "n_members", "size"), [
    (150, 4_000, 150), (1_000, 100, 200), (1_000, 4_000, 200), (1_000, 8_000, 320), (9_000, 10**6, 2_000),
])  # fmt: skip
def test_held_out_records_of_a_look_between_validations(n_held_out: int, n_members: int, size: int) -> None:
    rows = WatchSettings(seed=3).draw_held_out(n_held_out, n_members)
    assert len(rows) == len(np.unique(rows)) == size
    assert rows.min() >= 0
    assert rows.max() < n_held_out
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == WatchSettings(seed=3).draw_held_out(n_held_out, n_members).tolist()
    if size < n_held_out:
        assert rows.tolist() != WatchSettings(seed=4).draw_held_out(n_held_out, n_members).tolist()
        assert abs(rows.mean() / n_held_out - 0.5) < 0.1  # from everywhere, not from the front
