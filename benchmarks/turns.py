"""Two Trainers that take turns, epoch by epoch, in one process: a fair way to time a callback.

A machine that slows down or speeds up during the measurement slows both arms alike, because epoch k of one arm runs
right after epoch k of the other, and which goes first alternates.
"""

import ctypes
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lightning.pytorch import Callback, Trainer


def one_heap() -> None:
    """Let all threads allocate from one heap that keeps its memory, as the one thread of an ordinary training does.

    The arms run in threads. By default glibc gives each thread a heap of its own and hands large blocks back to the
    system at once, so that a step pays for page faults or does not, by luck: up to a tenth of a step, either way. Call
    it before anything is allocated; elsewhere than on glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in ((-8, 1), (-1, 2**31 - 1), (-3, 2**25)):  # arenas, trim threshold, mmap threshold
        mallopt(option, value)


@dataclass
class Clock:
    """Seconds per epoch of one arm: wall time and CPU time of the thread that trains."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Turn(Callback):
    """Holds the epoch, or each step, back until it is this arm's turn. Put it first: it then times other callbacks too.

    With ``steps`` the clock has one entry per batch, and the last one of an epoch holds validation and the epoch's end.
    """

    def __init__(self, arm: int, baton: "Baton", *, steps: bool = False) -> None:
        self.arm, self.baton, self.clock, self.steps = arm, baton, Clock(), steps
        self._start: tuple[float, float] | None = None

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if not self.steps:
            self._next()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.steps:
            self._next()

    def _next(self) -> None:
        self._stop()
        self.baton.take(self.arm)
        self._start = (time.perf_counter(), time.process_time())

    def _stop(self) -> None:
        # An epoch ends where the next begins, so that work in on_train_epoch_end of any callback is inside it.
        if self._start is not None:
            self.clock.wall.append(time.perf_counter() - self._start[0])
            self.clock.cpu.append(time.process_time() - self._start[1])
            self._start = None
            self.baton.give(self.arm)

    def on_fit_end(self, trainer, pl_module) -> None:
        self._stop()
        self.baton.leave(self.arm)


class Baton:
    """Epochs strictly alternate: 0 1, 1 0, 0 1, ..."""

    def __init__(self, arms: int = 2) -> None:
        self.condition = threading.Condition()
        self.order: list[int] = []
        self.active = set(range(arms))
        self.round = 0
        self._fill()

    def _fill(self) -> None:
        arms = sorted(self.active)
        self.order = arms if self.round % 2 == 0 else arms[::-1]
        self.round += 1

    def take(self, arm: int) -> None:
        with self.condition:
            self.condition.wait_for(lambda: bool(self.order) and self.order[0] == arm)

    def give(self, arm: int) -> None:
        with self.condition:
            self.order.pop(0)
            if not self.order:
                self._fill()
            self.condition.notify_all()

    def leave(self, arm: int) -> None:
        with self.condition:
            self.active.discard(arm)
            self.order = [a for a in self.order if a != arm]
            if not self.order and self.active:
                self._fill()
            self.condition.notify_all()


def paired_epochs(
    make: Callable[[int, Turn], tuple[Trainer, object, object]], *, steps: bool = False
) -> list[Clock]:
    """Fit arm 0 and arm 1 in turns.

    Args:
        make: called with the arm and its `Turn`; returns ``(trainer, module, datamodule)``.
        steps: Take turns at every batch, not at every epoch: many more pairs, each close together in time.

    Returns:
        One `Clock` per arm.
    """
    baton, turns, failures = Baton(), [], []

    def run(trainer, module, data) -> None:
        try:
            trainer.fit(module, datamodule=data)
        except BaseException as error:  # a thread would swallow it
            failures.append(error)
            for arm in (0, 1):
                baton.leave(arm)

    threads = []
    for arm in (0, 1):
        turn = Turn(arm, baton, steps=steps)
        turns.append(turn)
        threads.append(threading.Thread(target=run, args=make(arm, turn)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [turn.clock for turn in turns]


def describe(name: str, plain: list[float], watched: list[float]) -> str:
    """One line: the median of the ratios of paired epochs, with their quartiles."""
    ratios = sorted(b / a for a, b in zip(plain, watched, strict=True))
    quarter = max(len(ratios) // 4, 1)
    return (
        f"{name}: {100 * (statistics.median(ratios) - 1):+.1f} % "
        f"(quartiles {100 * (ratios[quarter - 1] - 1):+.1f} to {100 * (ratios[-quarter] - 1):+.1f} %; "
        f"{len(ratios)} paired epochs, {statistics.median(plain):.2f} s plain)"
    )
