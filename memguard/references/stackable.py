"""Whether references can be trained as one stack of copies, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.hooks import DataHooks, ModelHooks
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torchmetrics import Metric

from memguard.errors import ReferenceModelError
from memguard.references.job import Job

__all__ = ["Schedule", "Unattached", "optimizer_of", "why_not_stacked"]

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_OPTIMIZERS = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
# Hooks that a stack does not call: where a module has one of its own, it may be part of how it is trained.
_NOT_ASKED = frozenset(
    {
        "configure_model",
        "configure_sharded_model",
        "on_fit_end",
        "on_train_end",
        "on_predict_model_eval",
        "on_predict_model_train",
        "on_test_model_eval",
        "on_test_model_train",
        "on_validation_model_eval",
        "on_validation_model_train",
        "on_validation_model_zero_grad",
        "predict_dataloader",
        "prepare_data",
        "setup",
        "teardown",
        "test_dataloader",
        "train_dataloader",
        "val_dataloader",
    }
)
_STEPPING = (
    "backward",
    "clip_gradients",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "manual_backward",
    "optimizer_step",
    "optimizer_zero_grad",
)


class Schedule:
    """One optimizer and what changes its learning rate, as ``configure_optimizers`` gave them.

    Attributes:
        optimizer: Of the module's own parameters. It takes no step that moves them; its groups say what a step is.
        scheduler: ``None`` for a constant rate.
        interval: ``"step"`` or ``"epoch"``.
        frequency: Steps or epochs between two changes.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        interval: str = "epoch",
        frequency: int = 1,
    ) -> None:
        self.optimizer, self.scheduler = optimizer, scheduler
        self.interval, self.frequency = interval, frequency

    def ended(self, batch: int, epoch: int, epoch_ended: bool) -> None:
        """After an optimizer step: change the rate where a Trainer would.

        Args:
            batch: Batches of the epoch that are done.
            epoch: Epochs that are done.
            epoch_ended: Whether this step ended one.
        """
        if self.scheduler is None:
            return
        done = batch if self.interval == "step" else epoch
        if (self.interval == "step" or epoch_ended) and done % self.frequency == 0:
            self.optimizer.zero_grad(set_to_none=True)
            self.optimizer.step()  # no gradients: moves nothing, and the scheduler knows that a step was taken
            self.scheduler.step()


class Unattached:
    """Stands for the trainer where there is none: a step that asks it anything cannot be part of a stack.

    Args:
        known: What may be asked all the same.

    Example:
        >>> Unattached(max_epochs=3).max_epochs
        3
    """

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        raise ReferenceModelError(
            f"a module that asks its trainer for {name}",
            "the models of a stack have no Trainer",
            'pass backend="sequential"',
        )


def optimizer_of(module: pl.LightningModule) -> Schedule | str:
    """Its optimizer and schedule, or why they cannot be taken over by a stack."""
    found: Any = module.configure_optimizers()
    if isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, list | tuple) for part in found):
        if len(found[0]) != 1 or len(found[1]) > 1:
            return "it has several optimizers or schedulers"
        found = {"optimizer": found[0][0], "lr_scheduler": next(iter(found[1]), None)}
    elif isinstance(found, list | tuple):
        if len(found) != 1:
            return "it has several optimizers"
        found = found[0]
    if not isinstance(found, Mapping):
        found = {"optimizer": found}
    given = found.get("lr_scheduler")
    given = given if isinstance(given, Mapping) else {"scheduler": given}
    optimizer, scheduler = found["optimizer"], given["scheduler"]
    if type(optimizer) not in _OPTIMIZERS:
        return f"its optimizer is {type(optimizer).__name__}"
    if scheduler is not None and not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        return f"its schedule is {type(scheduler).__name__}"
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return "its schedule is ReduceLROnPlateau"
    return Schedule(optimizer, scheduler, given.get("interval", "epoch"), given.get("frequency", 1))


def why_not_stacked(jobs: list[Job]) -> str:
    """Why these references cannot be trained as one stack; empty if they can.

    What only a step can show (a value read out of a tensor, an operation without a batching rule) is found in the
    trial.

    Args:
        jobs: What to train.

    Example:
        >>> why_not_stacked([])
        'there is one reference or none'
    """
    if len(jobs) < 2:
        return "there is one reference or none"
    settings, data = jobs[0].settings, jobs[0].data
    if settings.precision != "32-true":
        return f"precision is {settings.precision}"
    if settings.accumulate_grad_batches != 1:
        return "gradients are accumulated over batches"
    if data.hooks() is not None:
        return "the datamodule changes batches on their way"
    module = jobs[0].module()
    return _of_module(module)


def _of_module(module: pl.LightningModule) -> str:
    if not module.automatic_optimization:
        return "it optimizes by hand"
    own = [name for name in _hooks() if is_overridden(name, module)]
    if own:
        return f"it has a {own[0]} of its own"
    for part in module.modules():
        if isinstance(part, _NORMS) and part.track_running_stats:
            return f"{type(part).__name__} keeps running statistics"
        if isinstance(part, Metric):
            return f"it keeps a metric ({type(part).__name__})"
        if part is not module and part._backward_hooks:
            return "it has backward hooks"
    if any(value.is_complex() for value in module.parameters()):
        return "it has complex parameters"
    return ""


def _hooks() -> list[str]:
    names = {name for owner in (ModelHooks, DataHooks) for name in vars(owner) if not name.startswith("_")}
    kept = {n for n in names - _NOT_ASKED if not n.startswith(("on_validation_", "on_test_", "on_predict_"))}
    return sorted(kept | set(_STEPPING))
