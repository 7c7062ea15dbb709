"""The benchmark of DP-SGD: all methods do the same step, and what is printed comes from the steps."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

pytest.importorskip("opacus")

from benchmarks import dp_speed
from benchmarks.dp_speed import BASE, MAX_GRAD_NORM, MODELS, PRIVATE, arms, made, memory, owners, turns

pytestmark = pytest.mark.filterwarnings("ignore")  # of Opacus, about its hooks and its generator


def update(model: str, method: str, unit: str = "record", noise_multiplier: float = 0.0) -> torch.Tensor:
    """What one step changes."""
    net, step = made(model, method, unit, quick=True, noise_multiplier=noise_multiplier)
    before = torch.cat([p.detach().clone().flatten() for _, p in sorted(net.named_parameters())])
    step()
    return torch.cat([p.detach().flatten() for _, p in sorted(net.named_parameters())]) - before


@pytest.mark.parametrize("model", MODELS)
def test_without_noise_all_private_methods_take_the_same_step(monkeypatch, model):
    monkeypatch.setattr(dp_speed, "LR", 1.0)  # so that the step is not lost in the rounding of the weights
    steps = [update(model, method) for method in PRIVATE]
    for step in steps:
        torch.testing.assert_close(step, steps[0], rtol=1e-4, atol=2e-6)
    assert 0 < steps[0].norm() <= MAX_GRAD_NORM * 1.0001
    for method in PRIVATE[2:]:
        assert (update(model, method, noise_multiplier=1.0) - steps[0]).norm() > 0.1


def test_clipping_is_at_work(monkeypatch):
    monkeypatch.setattr(dp_speed, "LR", 1.0)
    plain = update("MLP", BASE)
    monkeypatch.setattr(dp_speed, "MAX_GRAD_NORM", 100.0)
    torch.testing.assert_close(update("MLP", PRIVATE[0]), plain, rtol=1e-4, atol=2e-6)
    monkeypatch.setattr(dp_speed, "MAX_GRAD_NORM", 0.01)
    assert update("MLP", PRIVATE[0]).norm() < 0.011 < plain.norm()


def test_patients_have_two_to_four_records_and_engines_agree_on_them(monkeypatch):
    counts = np.bincount(owners(32, "patient"))
    assert counts.sum() == 32 and set(counts[:-1]) == {2, 3, 4}
    assert (owners(5, "record") == np.arange(5)).all()
    monkeypatch.setattr(dp_speed, "LR", 1.0)
    fast, exact = (update("GRU", f'DPSGD engine="{name}"', "patient") for name in ("opacus", "loop"))
    torch.testing.assert_close(fast, exact, rtol=1e-4, atol=2e-6)
    assert not torch.allclose(fast, update("GRU", PRIVATE[0], "record"), atol=1e-4)


def test_time_goes_to_the_arm_that_spends_it():
    def busy():
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass

    seen: list[int] = []
    seconds = turns([lambda: seen.append(0), busy, lambda: seen.append(2)], rounds=3)
    assert seconds.shape == (3, 3)
    assert (seconds[:, 1] >= 0.01).all() and (seconds[:, [0, 2]] < 0.01).all()
    assert seen == [0, 2, 2, 0, 2, 0, 0, 2]


def test_memory_is_seen():
    now, peak = memory()
    held = torch.ones(2**24)  # 64 MiB
    assert memory()[0] - now > 50 and memory()[1] >= peak >= 0
    del held


def test_it_prints_a_row_for_every_arm(monkeypatch, capsys):
    monkeypatch.setattr(dp_speed, "prepare", lambda threads: None)
    asked = []
    monkeypatch.setattr(dp_speed, "peak", lambda *args, **kwargs: asked.append(args) or 7.0)
    dp_speed.main(["--quick", "--models", "MLP", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [args[1:] for args in asked] == list(arms())
    rows = [line for line in lines if line.endswith("| 7 |")]
    assert len(rows) == len(list(arms())) and rows[0].startswith("| without privacy | 1.00 |")
    assert sum("time of a step in a Trainer: " in line for line in lines) == 2
