"""Two Trainers that take turns, step by step, in one process: a fair way to time what a callback adds.

A machine that slows down or speeds up during the measurement slows both arms alike, because step k of one arm runs
right after step k of the other, and which goes first alternates. A step counts from the start of its batch to the start
of the next one, all callbacks and the loader included; the last step of an epoch also holds what ends the epoch.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

__all__ = ["Cost", "Turn", "measure", "options", "prepare", "size", "table"]

Make = Callable[[bool], tuple[pl.LightningModule, Any, list[pl.Callback]]]
CLOCKS = ("wall", "CPU")


def options(description: str) -> argparse.ArgumentParser:
    """The arguments that every such benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--epochs", type=int, default=4, help="of each run; the first and the last do not count"
    )
    parser.add_argument(
        "--repeats", type=int, default=4, help="pairs of runs; even, so that neither arm leads"
    )
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    return parser


def prepare(threads: int) -> None:
    """Silence, one heap and so many threads; before anything is allocated."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    one_heap()
    torch.set_num_threads(threads)


def one_heap() -> None:
    """Let all threads allocate from one heap that keeps its memory, as the one thread of an ordinary training does.

    The arms run in threads. By default glibc gives each thread a heap of its own and hands large blocks back to the
    system at once, so that a step pays for page faults or does not, by luck: up to a tenth of a step, either way.
    Elsewhere than on glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((-8, 1), (-1, 2**31 - 1), (-3, 2**25)):  # arenas, trim threshold, mmap threshold
        mallopt(option, value)


def size(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(each.numel() for each in module.parameters())


class Baton:
    """Steps go 0 1, 1 0, 0 1, ...; an arm that is through is not waited for, and one that failed stops the other."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.turn = 0
        self.ready: set[int] = set()
        self.left: set[int] = set()
        self.failure: BaseException | None = None

    def take(self, arm: int) -> None:
        with self.condition:
            self.ready.add(arm)
            self.condition.notify_all()
            self.condition.wait_for(
                lambda: (
                    self.failure
                    or 1 - arm in self.left
                    or (len(self.ready) == 2 and (self.turn % 4 in (1, 2)) == arm)
                )
            )
            if self.failure:
                raise RuntimeError("the other arm failed") from self.failure

    def await_first_step(self, arm: int) -> None:
        """Return when an arm has all its loaders, or has left.

        While a Trainer asks for its loaders, Lightning replaces methods of ``DataLoader`` itself: two at once would
        leave the class changed for good.
        """
        with self.condition:
            self.condition.wait_for(lambda: arm in self.ready | self.left)

    def give(self) -> None:
        with self.condition:
            self.turn += 1
            self.condition.notify_all()

    def leave(self, arm: int, failure: BaseException | None = None) -> None:
        with self.condition:
            self.left.add(arm)
            self.failure = self.failure or failure
            self.condition.notify_all()


class Turn(pl.Callback):
    """Holds each step back until it is this arm's turn. Put it first: it then times the other callbacks too.

    Attributes:
        seconds: wall time and CPU time of the process, of each step. The other arm waits meanwhile and takes none.
    """

    def __init__(self, arm: int, baton: Baton) -> None:
        self.arm, self.baton = arm, baton
        self.seconds: list[tuple[float, float]] = []
        self._start: tuple[float, float] | None = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._stop()
        self.baton.take(self.arm)
        self._start = (time.perf_counter(), time.process_time())

    def on_fit_end(self, trainer, pl_module) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._start is not None:
            wall, cpu = self._start
            self.seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
            self._start = None
            self.baton.give()


def measure(make: Make, *, epochs: int, repeats: int) -> np.ndarray:
    """Fit in turns without and with what is measured; which of the two Trainers is made first alternates.

    Args:
        make: called with whether this arm is the measured one, from the same seed; returns the module, the loader or
            data module (it must give both arms the same batches) and the callbacks.
        epochs: of each run, three or more: the first warms up, and the last one ends with the end of the run.
        repeats: pairs of runs.

    Returns:
        Seconds, ``(2, repeats, 2, epochs, steps)``: wall and CPU; the pairs; without and with; the steps.
    """
    if epochs < 3 or repeats < 1:
        raise ValueError(f"{epochs} epochs and {repeats} repeats: the first and the last epoch do not count")
    pairs = [_pair(make, epochs, first=bool(repeat % 2)) for repeat in range(repeats)]
    return np.moveaxis(np.array(pairs), -1, 0)


def _pair(make: Make, epochs: int, *, first: bool) -> np.ndarray:
    """Seconds ``(2, epochs, steps, 2)`` without and with, the last axis wall and CPU."""
    baton, turns, threads = Baton(), [], []

    def run(arm: int, trainer: pl.Trainer, module: pl.LightningModule, data: Any) -> None:
        try:
            trainer.fit(module, data)
        except BaseException as error:  # a thread would swallow it
            baton.leave(arm, error)
        else:
            baton.leave(arm)

    for arm, measured in enumerate((first, not first)):
        pl.seed_everything(0, verbose=False)
        module, data, callbacks = make(measured)
        turns.append(Turn(arm, baton))
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[turns[-1], *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        threads.append(threading.Thread(target=run, args=(arm, trainer, module, data)))
    for arm, thread in enumerate(threads):
        thread.start()
        baton.await_first_step(arm)
    for thread in threads:
        thread.join()
    if baton.failure:
        raise baton.failure
    steps = [len(turn.seconds) for turn in turns]
    if steps[0] != steps[1] or steps[0] % epochs:
        raise ValueError(
            f"the arms took {steps} steps in {epochs} epochs: they cannot be compared step by step"
        )
    arms = np.array([turn.seconds for turn in turns]).reshape(2, epochs, -1, 2)
    return arms[::-1] if first else arms


@dataclass(frozen=True)
class Cost:
    """What is added to an epoch by the steps and by its end (validation included), from the medians of differences.

    How two models happen to lie in memory makes one a per cent or two faster; so the range over the pairs of runs is
    shown beside the mean, and not the narrow interval that so many steps would give.

    Attributes:
        seconds: ``(pairs, 2, epochs, steps)`` without and with, by one clock.
    """

    seconds: np.ndarray

    def _typical(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Medians ``(pairs,)`` of a step and of the last step of an epoch."""
        return np.median(seconds[..., :-1], axis=(1, 2)), np.median(seconds[..., -1], axis=1)

    @property
    def counted(self) -> np.ndarray:
        """The epochs between the first and the last."""
        return self.seconds[:, :, 1:-1]

    @property
    def plain(self) -> tuple[np.ndarray, np.ndarray]:
        """A step, and the last step of an epoch, without."""
        return self._typical(self.counted[:, 0])

    @property
    def added(self) -> tuple[np.ndarray, np.ndarray]:
        """What is added to a step, and to the last step of an epoch."""
        return self._typical(self.counted[:, 1] - self.counted[:, 0])

    @property
    def epoch(self) -> np.ndarray:
        """An epoch without, ``(pairs,)``."""
        return self._epoch(*self.plain)

    @property
    def shares(self) -> np.ndarray:
        """What is added, as a share of an epoch without, ``(pairs,)``."""
        return self._epoch(*self.added) / self.epoch

    def _epoch(self, step: np.ndarray, end: np.ndarray) -> np.ndarray:
        return (self.seconds.shape[-1] - 1) * step + end

    def __str__(self) -> str:
        plain, more = self.plain, self.added
        steps = (self.counted[:, 1] - self.counted[:, 0])[..., :-1]
        low, high = np.quantile(steps, (0.25, 0.75))
        shares = 100 * self.shares
        return (
            f"{shares.mean():+.1f} % ({len(shares)} pairs: {shares.min():+.1f} to {shares.max():+.1f} %); "
            f"{1e3 * more[0].mean():+.2f} ms on {1e3 * plain[0].mean():.1f} ms a step (quartiles of {steps.size:,}: "
            f"{1e3 * low:+.2f} to {1e3 * high:+.2f}), {1e3 * more[1].mean():+.0f} ms at the end of an epoch of "
            f"{self.epoch.mean():.2f} s"
        )


def table(seconds: np.ndarray) -> str:
    """Both clocks of `measure`, a line each."""
    return "\n".join(
        f"{clock} time of an epoch: {Cost(each)}" for clock, each in zip(CLOCKS, seconds, strict=True)
    )
