"""The planted bugs: the correct pipeline is plain DP-SGD, the bugs change what they say, and each is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.broken_dp.__main__ import main
from benchmarks.broken_dp.bugs import BUGS
from benchmarks.broken_dp.examine import examine
from benchmarks.broken_dp.gradients import by_hooks, by_share, two_passes
from benchmarks.broken_dp.pipeline import Pipeline
from benchmarks.broken_dp.world import cohort, with_odd_patients

# What the task of this benchmark is; others were added.
CLASSICS = {
    "no_clipping", "clip_after_averaging", "noise_once", "noise_without_c", "shuffled", "actual_batch", "row_level",
    "rank_seeds", "noise_reused_on_resume", "accountant_reset", "unaccounted_tuner", "batch_norm", "ghost_misuse",
    "dropped_micro_batches", "reweighting", "wrong_rate",
}  # fmt: skip


def naive_sum(pipe, owners, c):
    """One patient after another: mean over his records, clipped."""
    total = [torch.zeros_like(p) for p in pipe.net.parameters()]
    for owner in owners:
        x, y = (a[owner][pipe.world.mask[owner]] for a in (pipe.world.x, pipe.world.y))
        mean = [torch.zeros_like(t) for t in total]
        for row, target in zip(x, y, strict=True):
            loss = F.cross_entropy(pipe.net(row[None]), target[None])
            for to, g in zip(mean, torch.autograd.grad(loss, list(pipe.net.parameters())), strict=True):
                to += g / len(x)
        norm = torch.cat([m.reshape(-1) for m in mean]).norm()
        for to, m in zip(total, mean, strict=True):
            to += m * (c / norm).clamp(max=1.0)
    return total


@pytest.mark.parametrize("c", [0.02, 2.0, 1e6])
def test_the_correct_pipeline_is_plain_dp_sgd(tmp_path, c):
    pipe = Pipeline(cohort(30), tmp_path)
    for ours, naive in zip(pipe.clipped_sum(range(9), c), naive_sum(pipe, range(9), c), strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-6 * min(c, 1.0) * 9)
    pipe.ledger.close()


def test_all_ways_to_the_gradient_agree_where_nothing_is_wrong(tmp_path):
    world = cohort(8, records=1)
    pipe = Pipeline(world, tmp_path)
    given = pipe.net, world.x, world.y, world.mask
    for hooks, share in zip(by_hooks(*given), by_share(*given, bug=None), strict=True):
        torch.testing.assert_close(hooks, share)
    for ours, passes in zip(pipe.clipped_sum(range(8)), two_passes(*given[:3], pipe.c), strict=True):
        torch.testing.assert_close(ours, passes, rtol=1e-4, atol=1e-5)
    pipe.ledger.close()


def test_a_patient_without_finite_records_adds_nothing(tmp_path):
    world = with_odd_patients(cohort(20))
    pipe = Pipeline(world, tmp_path)
    for with_nan, without in zip(pipe.clipped_sum([0, 21, 1]), pipe.clipped_sum([0, 1]), strict=True):
        torch.testing.assert_close(with_nan, without)
    pipe.ledger.close()


def test_books_of_the_correct_pipeline(tmp_path):
    pipe = Pipeline(cohort(40), tmp_path)
    pipe.train(5)
    first = pipe.epsilon()
    pipe.resume()
    pipe.train(5)
    assert pipe.ledger.n_steps == pipe.t == 10 and pipe.epsilon() > first > 0
    assert len(pipe.noises) == 6 and len(set(pipe.seeds)) == 4 and not pipe.refused
    pipe.ledger.close()


def test_the_classics_are_among_the_bugs():
    assert set(BUGS) >= CLASSICS and len(BUGS) >= 16


@pytest.mark.parametrize("seed", range(2))
def test_no_alarm_on_the_correct_pipeline(seed):
    assert examine(None, seed, audit=False) == []


@pytest.mark.parametrize(
    ("bug", "finding"),
    [
        ("clip_per_layer", "sensitivity/above"),
        ("noise_without_c", "noise/scale"),
        ("shuffled", "inclusion/sizes"),
        ("noise_reused_on_resume", "refused a start"),
        ("accountant_reset", "steps/unaccounted"),
    ],
)
def test_some_bugs_are_found_by_what_is_for_them(bug, finding):
    found = examine(bug, 1, audit=False)
    assert finding in {each.finding for each in found}, found


def test_a_miss_fails_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.broken_dp.__main__.examine", lambda *a, **k: [])
    assert main(["--bugs", "shuffled", "--runs", "1"]) == 1
    printed = capsys.readouterr().out
    assert "MISSED" in printed and "0 of 1 bugs found" in printed and "0 alarms in 1" in printed
    alarm = examine("wrong_rate", 0, audit=False)
    monkeypatch.setattr("benchmarks.broken_dp.__main__.examine", lambda *a, **k: alarm)
    assert main(["--bugs", "wrong_rate", "--runs", "1"]) == 1
    assert "ALARM in correct run 0" in capsys.readouterr().out


@pytest.mark.slow
def test_every_bug_is_found_and_no_correct_run_alarms(capsys):
    assert main(["--runs", "1", "--seed", "3"]) == 0, capsys.readouterr().out
    assert f"{len(BUGS)} of {len(BUGS)} bugs found" in capsys.readouterr().out


def test_draws_are_poisson_unless_a_bug_says_otherwise(tmp_path):
    pipe = Pipeline(cohort(60), tmp_path, "fixed_size")
    assert {len(pipe.draw()) for _ in range(20)} == {9}
    pipe.ledger.close()
    pipe = Pipeline(cohort(60), tmp_path, ranks=2)
    parts = [pipe.draw_ranks() for _ in range(50)]
    assert all(not set(a) & set(b) for a, b in parts) and np.std([len(a) + len(b) for a, b in parts]) > 1
    pipe.ledger.close()
