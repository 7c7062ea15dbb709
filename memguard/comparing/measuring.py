"""What a model loses on every record, asked in the ways an attacker who holds the model could ask.

An arm must not look better because its model hides what it knows when it is evaluated. Beside the losses of the model
as it is deployed there are therefore those of the path on which it was trained, and those of its weights in the
baseline's code. Where they are the same, nothing is measured twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from torch.autograd.graph import saved_tensors_hooks

from memguard.auditing.live import LiveRun, in_a_run
from memguard.auditing.sides import Losses, Sides, losses_at, losses_of
from memguard.capture.evaluation import PerRecordLoss, step_arguments
from memguard.capture.stillness import forked_rng

__all__ = ["SIGNALS", "as_trained", "measure"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
SIGNALS = ("as deployed", "as trained", "by the baseline's code")
_SAME = 1e-5
_TRIED = 64  # records on which ways are compared


def measure(
    module: pl.LightningModule,
    states: Any,
    data: Any,
    sides: Sides,
    *,
    plain: Callable[[], pl.LightningModule],
    record_to_patient: Any = "auto",
    per_record_loss: Any = None,
) -> tuple[Floats, Bools]:
    """Losses of all records at each stage, by each way of asking.

    Args:
        module: Trained, as it would be deployed.
        states: T states of its weights.
        data: Both sides in full.
        sides: Of the study.
        plain: Makes a module of the baseline.
        record_to_patient: As `LeakageMonitor` takes it.
        per_record_loss: As `LeakageMonitor` takes it.

    Returns:
        Losses ``(T, 3, N + M)`` float32 in the order of `SIGNALS`, NaN where a way gives the same losses as the
        deployed model or cannot be asked; and ``(T, 3)`` whether it gives the same.
    """

    def work(run: LiveRun) -> tuple[Floats, Bools]:
        found = np.full((len(states), len(SIGNALS), len(sides.content)), np.nan, np.float32)
        same = np.zeros((len(states), len(SIGNALS)), np.bool_)
        for stage, state in enumerate(states):
            run.module.load_state_dict(dict(state))
            found[stage, 0], same[stage, 0] = losses_of(run, run.module, sides).loss, True
            for function in _in_training(run):
                with as_trained(run, function):
                    found[stage, 1], same[stage, 1] = _other(run, run.module, sides, found[stage, 0])
                if same[stage, 1] or np.isfinite(found[stage, 1]).any():
                    break  # the next one is for where this one cannot be asked
            baseline = _holding(run, plain, state)
            if baseline is not None:
                found[stage, 2], same[stage, 2] = _other(run, baseline, sides, found[stage, 0])
        return found, same

    return in_a_run(module, data, work, record_to_patient=record_to_patient, per_record_loss=per_record_loss)


def _other(
    run: LiveRun, module: pl.LightningModule, sides: Sides, known: Floats
) -> tuple[Floats | float, bool]:
    """Losses by another way, NaN where it gives what is known already or fails; and whether it gives that."""
    rows = np.unique(np.linspace(0, len(known) - 1, _TRIED).astype(np.int64))
    try:
        with forked_rng(0):
            some = losses_at(run, module, rows, sides)
            if np.allclose(some, known[rows], rtol=_SAME, atol=_SAME, equal_nan=True):
                return np.nan, True
        with forked_rng(0):
            all_of_them: Losses = losses_of(run, module, sides)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception:  # also of the user's own code: it cannot be asked in this way
        return np.nan, False
    return all_of_them.loss.astype(np.float32), False


def _in_training(run: LiveRun) -> tuple[PerRecordLoss | None, ...]:
    """What gives the losses as trained, ``None`` for the training step.

    A function of the study is the same for every arm. One of the module's own is the arm's word, so the step on which
    it was trained is asked first.
    """
    given, own = run.capture.per_record_loss, getattr(run.module, "per_record_loss", None)
    if given is not None:
        return (given,)
    step = (
        (None,) if run.module.automatic_optimization else ()
    )  # a step that moves weights is not asked again
    return (*step, lambda _, batch: own(batch)) if callable(own) else step


@contextlib.contextmanager
def as_trained(run: LiveRun, function: PerRecordLoss | None) -> Iterator[None]:
    """Inside, losses come of the training step, with the user's modules in training mode and torch's own not.

    A branch on ``self.training`` or on whether there are gradients is then taken as it was in training, while dropout
    and batch normalization of torch stay still.

    Args:
        run: With the module.
        function: Gives the losses instead of the training step.
    """
    module, capture = run.module, run.capture
    own = [part for part in module.modules() if not type(part).__module__.startswith("torch.nn")]
    before = capture.per_record_loss

    @contextlib.contextmanager
    def training() -> Iterator[None]:
        modes = [part.training for part in own]
        for part in own:
            part.training = True
        try:
            yield
        finally:
            for part, mode in zip(own, modes, strict=True):
                part.training = mode

    def ask(batch: Any, asked: Callable[[Any], Any]) -> Any:
        """With gradients, as in training, of which nothing is kept; without, where the module keeps such tensors."""
        with training():
            try:
                with torch.inference_mode(False), torch.enable_grad(), saved_tensors_hooks(_kept, _kept):
                    return asked(apply_to_collection(batch, torch.Tensor, torch.clone))
            except RuntimeError:
                return asked(batch)

    def step(batch: Any, batch_idx: int) -> Any:
        return ask(
            batch, lambda given: module.training_step(*step_arguments(module.training_step, given, batch_idx))
        )

    def override(asked: Any, batch: Any) -> Any:
        assert function is not None
        return ask(batch, lambda given: function(asked, given))

    shadows = {"validation_step": step, "per_record_loss": None}
    had = {name: module.__dict__.get(name, _ABSENT) for name in shadows}
    for name, value in shadows.items():
        object.__setattr__(module, name, value)
    capture.per_record_loss = None if function is None else override
    try:
        yield
    finally:
        capture.per_record_loss = before
        for name, value in had.items():
            if value is _ABSENT:
                module.__dict__.pop(name, None)
            else:
                object.__setattr__(module, name, value)


def _holding(run: LiveRun, plain: Callable[[], pl.LightningModule], state: Any) -> pl.LightningModule | None:
    """A module of the baseline with these weights, set up as in a run; ``None`` where they do not fit it.

    What the arm has beside them is left out: a buffer that the baseline lacks hides nothing.
    """
    with forked_rng(0):
        module = plain()
        module._trainer = run.trainer
        try:
            module.setup("fit")
            module.configure_model()
            lacking, _ = module.load_state_dict(dict(state), strict=False)
        except Exception:  # the user's own code
            return None
        finally:
            module._trainer = None
    return None if lacking else module


def _kept(value: Any) -> Any:
    """Nothing: no gradient is taken."""


_ABSENT = object()
