"""One reference after another, in this process, each fitted by a Lightning Trainer: right by definition."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from memguard.capture.stillness import forked_rng, still_generators
from memguard.errors import ReferenceModelError
from memguard.references.job import Job, Step, Trained, cpu_state
from memguard.references.quiet import quiet

__all__ = ["fit", "sequential"]


def sequential(jobs: list[Job], step: Step) -> Iterator[tuple[Job, Trained]]:
    """Train the references in order.

    Args:
        jobs: What to train.
        step: Told how many batches were trained on.

    Yields:
        Each job with its reference.

    Raises:
        ReferenceModelError: If a module cannot be trained.
    """
    for job in jobs:
        yield job, fit(job, step)


def fit(job: Job, step: Step, callbacks: Sequence[pl.Callback] = (), **changed: Any) -> Trained:
    """Train one reference; randomness outside is as if nothing had been trained.

    Args:
        job: What to train.
        step: Told how many batches were trained on.
        callbacks: Of the Trainer, beside those that count.
        changed: Arguments of the Trainer that differ from the settings.

    Raises:
        ReferenceModelError: If the module cannot be trained.
    """
    began = time.perf_counter()
    if job.batches == 0:
        raise ReferenceModelError(
            f"{len(job.rows)} records for reference {job.k} and not one batch of them",
            "a reference that takes no step has learned nothing",
            "pass more patients, or a smaller batch size",
        )
    module = job.module()
    seed = job.seeds[2]
    with forked_rng(seed), still_generators(job.data.dataset, seed=seed), quiet():
        trainer = job.settings.trainer([_Count(step), *callbacks], **changed)
        try:
            trainer.fit(module, job.loader(), datamodule=None) if job.data.hooks() is None else trainer.fit(
                module, datamodule=_with_loader(job)
            )
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:
            raise ReferenceModelError(
                f"reference {job.k} cannot be trained: {type(error).__name__}: {error}",
                "no reference means no comparison with a model that never saw the patient",
                "see the error above; a factory must give a module that a Trainer can fit by itself",
            ) from error
    if trainer.interrupted:  # Lightning swallows Ctrl-C
        raise KeyboardInterrupt
    return Trained(
        state=cpu_state(module),
        steps=trainer.global_step,
        epochs=trainer.current_epoch,
        seconds=time.perf_counter() - began,
    )


def _with_loader(job: Job) -> pl.LightningDataModule | None:
    module = job.data.hooks()
    loader = job.loader()
    object.__setattr__(module, "train_dataloader", lambda: loader)
    return module


class _Count(pl.Callback):
    """Tells how far training is."""

    def __init__(self, step: Step) -> None:
        self.step = step

    @override
    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.step(1)
