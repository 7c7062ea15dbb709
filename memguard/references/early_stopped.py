"""One reference model: the user's own module, trained on patients that the target never saw, stopped early.

Measured on real patients, one such model is worth as much as the zero-cost expectation, and beside it a little
more (docs/results/ranking.md). It never sees a member, so what it loses on one is what a stranger would lose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from typing_extensions import override

from memguard.capture import CapturedLoss
from memguard.capture.stillness import forked_rng
from memguard.references.quiet import quiet

__all__ = ["Reference", "State", "initial_state", "mean_loss", "train_reference"]

_PATIENCE = 2  # epochs without a lower referee loss after which training stops
_ACCELERATORS = {"CPUAccelerator": "cpu", "CUDAAccelerator": "gpu", "MPSAccelerator": "mps"}

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A trained reference and how it came about.

    Attributes:
        module: With the weights of its best epoch, in eval mode.
        epochs: Epochs trained.
        best_epoch: Epoch of the lowest referee loss, from 1.
        steps: Optimizer steps taken.
        referee_loss: Mean referee loss after each epoch.
    """

    module: pl.LightningModule
    epochs: int
    best_epoch: int
    steps: int
    referee_loss: tuple[float, ...]


def initial_state(module: pl.LightningModule) -> State:
    """A copy of the weights on the CPU, to be taken before the first step.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> sorted(initial_state(BoringModel()))
        ['layer.bias', 'layer.weight']
    """
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def train_reference(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    initial: State,
    dataset: Any,
    rows: Any,
    *,
    referee: Callable[[pl.Trainer, pl.LightningModule], float],
    collate_fn: Any = None,
    batch_size: int = 64,
    max_steps: int,
    seed: int = 0,
) -> Reference:
    """Train a copy of the module from the same start, with the run's own settings, on other patients.

    Precision, accumulation, clipping and the length that schedulers see are those of the run; loggers,
    checkpoints and other callbacks are left out, and randomness is given back as it was.

    Args:
        trainer: Of the run.
        module: Of the run; it is copied and not touched.
        initial: `initial_state` from before the first step.
        dataset: Map-style, of never-trained patients.
        rows: ``(n,)`` positions in it to train on.
        referee: Mean loss of the copy on patients that neither model trained on; decides the best epoch.
        collate_fn: As the run's loader has it.
        batch_size: As the run's loader has it.
        max_steps: Optimizer steps after which training stops in any case.
        seed: Of shuffling and dropout.

    Returns:
        The reference.

    Guarantees:
        The reference never saw a member. That its losses are those of the target "without the patient" holds
        as far as the two training sets are alike and of like size.
    """
    reference = copy.deepcopy(module)
    reference.load_state_dict(dict(initial))
    stop = _StopEarly(referee, max_steps)
    loader: DataLoader[Any] = DataLoader(
        Subset(dataset, np.asarray(rows).tolist()), batch_size=batch_size, shuffle=True, collate_fn=collate_fn
    )
    # configure_callbacks of the module would add the user's own ones: this fit is none of their business.
    object.__setattr__(reference, "configure_callbacks", list)
    with forked_rng(seed), quiet():
        inner = pl.Trainer(
            max_epochs=trainer.max_epochs,
            accelerator=_ACCELERATORS.get(type(trainer.accelerator).__name__, "auto"),
            devices=1,
            precision=trainer.precision,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=[stop],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        inner.fit(reference, loader)
    if stop.best is not None:
        reference.load_state_dict(stop.best)
    reference.to(module.device).eval()
    losses = tuple(stop.losses)
    return Reference(
        module=reference,
        epochs=inner.current_epoch,
        best_epoch=int(np.argmin(losses)) + 1 if losses else 0,
        steps=inner.global_step,
        referee_loss=losses,
    )


class _StopEarly(pl.Callback):
    """Keeps the weights of the best epoch and ends training soon after it."""

    def __init__(self, referee: Callable[[pl.Trainer, pl.LightningModule], float], max_steps: int) -> None:
        self.referee, self.max_steps = referee, max_steps
        self.losses: list[float] = []
        self.best: dict[str, torch.Tensor] | None = None

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step >= self.max_steps:
            trainer.should_stop = True

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = self.referee(trainer, pl_module)
        if not self.losses or loss < min(self.losses):
            self.best = dict(initial_state(pl_module))
        self.losses.append(loss)
        if len(self.losses) - int(np.argmin(self.losses)) > _PATIENCE:
            trainer.should_stop = True


def mean_loss(losses: Sequence[CapturedLoss]) -> float:
    """Mean over records, each counting once; records without a predicted token are left out.

    Example:
        >>> mean_loss([])
        nan
    """
    values = [loss.loss.detach().float().cpu().numpy() for loss in losses]
    joined = np.concatenate([*values, np.zeros(0, np.float32)])
    joined = joined[np.isfinite(joined)]
    return float(joined.mean()) if joined.size else float("nan")
