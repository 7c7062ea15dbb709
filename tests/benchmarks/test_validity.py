"""The validity benchmark at test size: its mechanisms are what it says, and every line is printed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.validity import DELTA, LOOKS, MU_1, experiment, looks, many_looks, null_auc, one_look, share
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
    null_auc(60, 20, 0)
    many_looks(60, 1, 0)
    printed = capsys.readouterr().out
    assert printed.count("audits") == 4 and printed.count("looks") == 4 and "mean AUC" in printed
    assert "one run, weighed" in printed and "GDP" in printed


def test_a_share_above_what_may_be_is_marked():
    assert "ABOVE" in share(200, 2000) and "ABOVE" not in share(110, 2000)
