"""One reference model for a watched run, trained when the run itself is."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import numpy as np

from memguard.callbacks.evaluation import losses_of
from memguard.callbacks.gather import n_ranks
from memguard.capture import Capture, CapturedLoss, Fetched
from memguard.capture.heldout import HeldOutSource
from memguard.errors import MemguardWarning
from memguard.probes.budget import reference_steps
from memguard.probes.sides import placed
from memguard.probes.watch import Watch
from memguard.records.surrogate import MIN_HELD_OUT
from memguard.references.early_stopped import State, mean_loss, train_reference

__all__ = ["add_reference"]


def add_reference(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    initial: State,
    *,
    budget: float,
    capture: Capture,
    source: HeldOutSource,
    watch: Watch,
) -> str:
    """Train one early-stopped reference on half of the held-out patients, and give the watch its losses.

    Args:
        trainer: Of the run.
        module: Of the run.
        initial: Its weights before the first step.
        budget: Optimizer steps that it may take, as a share of the run's.
        capture: Of the run.
        source: Of its held-out patients.
        watch: Of both sides.

    Returns:
        What was done, or why nothing was: a note for the report.
    """
    inside, outside = watch.held_back()
    n_left = np.unique(watch.held_out.patients.code[outside]).size
    if n_left < MIN_HELD_OUT or n_ranks() > 1:
        why = "more than one process" if n_ranks() > 1 else f"{n_left} held-out patients left beside it"
        return f"No reference was trained: {why}."
    referee = source.windows(outside)

    def losses(run: pl.Trainer, model: pl.LightningModule, windows: Fetched) -> list[CapturedLoss]:
        return capture.evaluate(windows, trainer=run, module=model)

    try:
        found = train_reference(
            trainer,
            module,
            initial,
            source.dataset,
            inside,
            referee=lambda run, model: mean_loss(losses(run, model, referee)),
            collate_fn=source.collate_fn,
            batch_size=getattr(capture.tracker.loader("train"), "batch_size", None) or 64,
            max_steps=reference_steps(budget, trainer.global_step),
            seed=watch.settings.seed,
        )
        trained = capture.fetch("train", np.flatnonzero(watch.members.seen))
        ours, theirs = (
            losses_of(windows, losses(trainer, found.module, windows)) for windows in (trained, referee)
        )
        watch.reference = (
            placed(ours, len(watch.members.tokens)),
            placed(theirs, len(watch.held_out.tokens)),
        )
    except Exception as error:  # the run itself is trained: a second training that fails must not cost it
        warnings.warn(
            MemguardWarning(
                f"the reference model could not be trained ({error!r})",
                "the expected losses rest on the zero-cost features alone",
                "pass reference_budget=0, or let the module train without a validation loop",
            ),
            stacklevel=2,
        )
        return f"No reference was trained: {type(error).__name__}."
    return (
        f"One reference was trained on {inside.size:,} held-out records ({found.epochs} epochs, best "
        f"{found.best_epoch}, "
        f"{found.steps} steps); the {n_left:,} other held-out patients give the p-values."
    )
