"""The validity benchmark at test size: its mechanisms are what it says, and every line is printed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.validity import (
    DELTA,
    INTERVALS,
    LOOKS,
    MU_1,
    experiment,
    looks,
    many_looks,
    null_exposure,
    null_intervals,
    one_look,
    share,
)
from memguard.attacks import gaussian_epsilon


def test_mechanisms_have_the_epsilon_that_they_claim():
    assert gaussian_epsilon(MU_1, DELTA) == pytest.approx(1.0, abs=1e-6)
    scores, included, epsilon, delta = experiment("response", 200_000, np.random.default_rng(0))
    told = np.floor(scores).astype(bool) == included
    assert (epsilon, delta) == (1.0, 0.0) and told.mean() == pytest.approx(math.e / (1 + math.e), abs=0.004)
    table, again, _, _ = looks("response", 500, np.random.default_rng(0))
    assert table.shape == (LOOKS, 500) and (np.floor(table) == np.floor(table[0])).all()
    assert len(np.unique(np.argsort(table, axis=1)[:, -1])) > 10 and again.any()
    shown = [experiment("fails", 50, np.random.default_rng(i)) for i in range(2000)]
    assert np.mean([np.array_equal(s, i) for s, i, _, _ in shown]) == pytest.approx(0.01, abs=0.008)


def test_every_line_is_printed(capsys):
    one_look(60, 4, 0)
    many_looks(60, 1, 0)
    printed = capsys.readouterr().out
    assert printed.count("audits") == 4 and printed.count("looks") == 4
    assert "one run, weighed" in printed and "GDP" in printed
    null_intervals(60, 20, 0)
    null_exposure(60, 20, 0)
    printed = capsys.readouterr().out
    assert "mean AUC" in printed and all(name in printed for name in INTERVALS)
    assert (
        printed.count("n/a") == 2 and printed.count("may be") == 5
    )  # 30 canaries of a kind are too few for 1 %


def test_null_values_are_those_of_scores_that_know_nothing():
    """On many canaries each measure comes close to the value beside which its interval is held."""
    scores, included, _, _ = experiment("null", 100_000, np.random.default_rng(1))
    for name, (measure, null) in INTERVALS.items():
        found = measure(scores, included)
        assert found.value == pytest.approx(null, abs=0.012) and found.covers(null), name
        moved = measure(scores + 0.3 * included, included)
        assert moved.low > null, name  # and where something is to be found, the interval lies above it


def test_a_share_above_what_may_be_is_marked():
    assert "ABOVE" in share(200, 2000) and "ABOVE" not in share(110, 2000)
    assert "ABOVE" in share(70, 2000, 0.025) and "ABOVE" not in share(60, 2000, 0.025)
