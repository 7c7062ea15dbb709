"""Whether a stack is faster: both ways take a few steps, and the times are told."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor, nn
from typing_extensions import override

from memguard.capture.stillness import forked_rng, still_generators
from memguard.references.job import Job
from memguard.references.sequential import fit
from memguard.references.stackable import why_not_stacked
from memguard.references.stacked import AT_ONCE, Stack

__all__ = ["Trial", "trial"]

STEPS = 5
_WARM = 2  # steps before: the first ones allocate


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the steps took.

    Attributes:
        models: References that a stack would hold.
        sequential: Seconds in which each of them takes a step, one after another; NaN where not timed.
        stacked: Seconds in which all take a step as a stack; NaN where it cannot.
        why_not: Why a stack cannot be used; empty where it can.
    """

    models: int
    sequential: float = float("nan")
    stacked: float = float("nan")
    why_not: str = ""

    @property
    def faster(self) -> bool:
        """Whether a stack can be used and took less time."""
        return not self.why_not and self.stacked < self.sequential

    def __str__(self) -> str:
        """For a note.

        Example:
            >>> print(Trial(models=8, sequential=0.016, stacked=0.004))
            A step of 8 references takes 16.0 ms one after another and 4.0 ms stacked: they are trained stacked.
        """
        if self.why_not:
            return f"References are trained one after another: they cannot be stacked, {self.why_not}."
        times = f"{1e3 * self.sequential:.1f} ms one after another and {1e3 * self.stacked:.1f} ms stacked"
        chosen = "stacked" if self.faster else "one after another"
        return f"A step of {self.models} references takes {times}: they are trained {chosen}."


def trial(jobs: list[Job]) -> Trial:
    """Take `STEPS` steps both ways, on models that are then thrown away.

    Nothing is raised: whatever keeps a stack from being used is a reason to train one after another.

    Args:
        jobs: What is to be trained.

    Returns:
        Times: medians over the steps, loading included.

    Guarantees:
        Randomness is as before. A machine that is busy with something else may make the slower way look the faster
        one; both give the same models but for rounding.
    """
    jobs = jobs[:AT_ONCE]
    try:
        why = why_not_stacked(jobs)
        if not why:
            stacked, why = _stacked(jobs)
    except (
        Exception
    ) as error:  # a factory or a step of the user's: the Trainer will say what is wrong with it
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}".rstrip(
            "."
        )
    if why:
        return Trial(models=len(jobs), why_not=why)
    return Trial(models=len(jobs), sequential=len(jobs) * _sequential(jobs[0]), stacked=stacked)


def _stacked(jobs: list[Job]) -> tuple[float, str]:
    seed = jobs[0].seeds[2]
    with forked_rng(seed), still_generators(jobs[0].data.dataset, seed=seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = Stack(jobs)
        before = _plain(stack.module)
        seconds = _median(stack.step, lambda: bool(stack.active))
        if stack.changed_buffers():
            return seconds, f"a step writes to {stack.changed_buffers()[0]}"
        if _plain(stack.module) != before:
            return seconds, "a step changes attributes of the module"
    return seconds, ""


def _median(step: Callable[[], Any], more: Callable[[], bool]) -> float:
    seconds = []
    for _ in range(_WARM + STEPS):
        if more():
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[_WARM:] or seconds))


def _sequential(job: Job) -> float:
    clock = _Clock()
    fit(job, lambda n: None, [clock], max_steps=_WARM + STEPS, max_epochs=-1)
    starts = np.diff(clock.starts)
    return float(np.median(starts[_WARM:] if starts.size > _WARM else starts))


class _Clock(pl.Callback):
    """From the start of one batch to the start of the next: loading and the loop included."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    @override
    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.starts.append(time.perf_counter())

    @override
    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.starts.append(time.perf_counter())


def _plain(module: nn.Module) -> dict[str, Any]:
    """What a step may keep on a module beside weights: which objects, and how long they are."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers", "_modules") or isinstance(value, Tensor):
                continue
            size = len(value) if isinstance(value, list | dict | set | tuple | str) else None
            found[f"{path}.{name}"] = (id(value), size)
    return found
