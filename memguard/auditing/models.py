"""Models that never saw a given patient, for an audit: chosen, trained or kept, compared with the audited one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.adapters.counts import CountsAdapter
from memguard.auditing.live import LiveRun
from memguard.auditing.sides import Sides, losses_at, losses_of
from memguard.errors import MemguardError, ReferenceModelError
from memguard.probes.result import NotTested
from memguard.records.content import Ragged
from memguard.references.data import TrainingData
from memguard.references.factory import factory_of
from memguard.references.halves import halves
from memguard.references.one import train_early_stopped, train_twins
from memguard.references.pool import Name, ReferencePool, train_pool
from memguard.references.settings import Settings

__all__ = ["CountModels", "NoModels", "Prepared", "Wanted", "prepare", "settings_of"]

Wanted = int | Literal["none", "counts", "early-stopped", "twins"] | ReferencePool
_FEWEST = 2


@dataclass(frozen=True)
class NoModels:
    """No reference at all.

    Attributes:
        n: Records.
        kind: ``"none"``.
    """

    n: int
    kind: str = "none"

    @property
    def in_mask(self) -> NDArray[np.bool_]:
        """``(0, n)``."""
        return np.zeros((0, self.n), np.bool_)

    def __len__(self) -> int:
        return 0

    def adapters(self) -> Iterator[ModelAdapter]:
        """None."""
        return iter(())


class CountModels:
    """One stand-in for a model: counts of what came after what, of everybody but the patient who is asked about.

    Args:
        sequences: Of all N + M records.
        patient: ``(N + M,)`` whose they are.
        vocabulary: Tokens of the audited model.
        counted: ``(N + M,)`` truth values: whose records are counted; everybody's by default.

    Attributes:
        kind: ``"counts"``.

    Example:
        >>> from memguard.records.content import Ragged
        >>> models = CountModels(Ragged.from_lists([[1, 2], [1, 2], [1, 3]]), np.arange(3), 4)
        >>> models.losses().round(2).tolist()
        [[0.99, 0.99, 3.16]]
    """

    kind = "counts"

    def __init__(
        self,
        sequences: Ragged,
        patient: NDArray[np.int64],
        vocabulary: int,
        counted: NDArray[np.bool_] | None = None,
    ) -> None:
        self.sequences, self.patient = sequences, patient
        some = np.arange(len(sequences)) if counted is None else np.flatnonzero(counted)
        self.adapter = CountsAdapter(sequences.take(some), patient[some], vocabulary=vocabulary)

    @property
    def in_mask(self) -> NDArray[np.bool_]:
        """``(1, N + M)``, nobody: each patient is left out when asked about."""
        return np.zeros((1, len(self.sequences)), np.bool_)

    def __len__(self) -> int:
        return 1

    def adapters(self) -> Iterator[ModelAdapter]:
        """The counts."""
        yield self.adapter

    def losses(self) -> NDArray[np.float64]:
        """``(1, N + M)`` nats per predicted token; NaN for a record without one."""
        nats = -self.adapter.log_probs(self.sequences, patient=self.patient)
        predicted = np.isfinite(nats)
        rows, n = self.sequences.rows, len(self.sequences)
        total = np.bincount(rows[predicted], weights=nats[predicted], minlength=n)
        count = np.bincount(rows[predicted], minlength=n)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)[None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """References and what is known of them.

    Attributes:
        pool: Trained ones; ``None`` where there are none.
        loss: ``(K, N + M)`` their losses.
        notes: In words.
        gaps: Why there are none, where some were wanted.
    """

    pool: ReferencePool | None
    loss: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    gaps: tuple[NotTested, ...] = field(default_factory=tuple)


def prepare(
    run: LiveRun,
    sides: Sides,
    wanted: Wanted,
    *,
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule | None = None,
    factory: Any = None,
    trainer: Any = None,
    backend: Name = "auto",
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Prepared:
    """Train the references that are wanted, and measure what each loses on every record.

    Args:
        run: Under way.
        sides: Of the audit.
        wanted: How many, trained on random halves of all patients; ``"twins"``, ``"early-stopped"``; ``"counts"`` or
            ``"none"`` for no training; or a pool that is trained.
        model: As the user gave it, with its hyperparameters and its Trainer.
        datamodule: Whose hooks on batches are used.
        factory: Makes a new module; from the hyperparameters of the model when not given.
        trainer: Settings of the training; those of the model's own Trainer when not given.
        backend: As `train_pool` takes it.
        folder: Where references are kept.
        seed: Of masks and references.
        progress: Whether to show a bar.

    Returns:
        References and losses; where they cannot be had, why.
    """
    n = len(sides.content)
    none = np.zeros((0, n))
    if wanted in ("none", "counts"):
        return Prepared(pool=None, loss=none)
    if backend not in get_args(Name):
        raise ReferenceModelError(
            f"backend={backend!r}",
            "references would be trained in a way that nobody asked for",
            f"pass one of {', '.join(get_args(Name))}",
        )
    if isinstance(wanted, ReferencePool):
        if wanted.in_mask.shape[1:] != (n,):
            raise ReferenceModelError(
                f"references for {wanted.in_mask.shape[1]} records and an audit of {n}",
                "their losses would be given to the wrong records",
                "train them on the same data, members first",
            )
        pool = wanted
    elif wanted not in ("early-stopped", "twins") and (isinstance(wanted, str) or wanted < _FEWEST):
        raise ReferenceModelError(
            f"references={wanted!r}",
            "one half leaves the other half of the patients without a model that never saw them",
            'pass an even number, 8 or more where you can, or "twins", "early-stopped", "counts" or "none"',
        )
    else:
        try:
            pool = _train(
                run, sides, wanted, model, datamodule, factory, trainer, backend, folder, seed, progress
            )
        except MemguardError as error:
            gap = NotTested(
                what="Comparison with reference models", why=f"{error.seen}: {error.why}", fix=error.fix
            )
            return Prepared(pool=None, loss=none, gaps=(gap,))
    sizes = len(sides.members), len(sides.held_out)
    loss = pool.losses(lambda module: losses_of(run, module, *sizes).loss)
    return Prepared(pool=pool, loss=loss, notes=pool.notes)


def _train(
    run: LiveRun,
    sides: Sides,
    wanted: Any,
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule | None,
    factory: Any,
    trainer: Any,
    backend: Name,
    folder: str | Path | None,
    seed: int,
    progress: bool,
) -> ReferencePool:
    n, n_members = len(sides.content), len(sides.members)
    member = np.arange(n) < n_members
    settings = settings_of(model, trainer)
    data = training_data(run, sides, datamodule)
    make = factory or factory_of(model)
    common: dict[str, Any] = {"trainer": settings, "folder": folder, "seed": seed, "progress": progress}
    if wanted == "early-stopped":
        return train_early_stopped(
            make, data, member=member, losses=lambda one, rows: losses_at(run, one, rows, n_members), **common
        )
    if wanted == "twins":
        return train_twins(make, data, member=member, backend=backend, **common)
    in_mask = halves(sides.patient, member, wanted, seed=seed)
    return train_pool(make, data, in_mask=in_mask, backend=backend, **common)


def training_data(run: LiveRun, sides: Sides, datamodule: pl.LightningDataModule | None) -> TrainingData:
    """Records of both sides, as the run's training loader makes batches of them."""
    from torch.utils.data import DataLoader

    tracker = run.capture.tracker
    held_out: DataLoader[Any] = DataLoader(run.source.dataset, collate_fn=run.source.collate_fn)
    return TrainingData.from_loaders(tracker.loader("train"), held_out, sides.patient, datamodule=datamodule)


def settings_of(model: pl.LightningModule, trainer: Any) -> Settings:
    """How long and how the audited model was trained.

    Raises:
        ReferenceModelError: If nobody knows.
    """
    if isinstance(trainer, Settings):
        return trainer
    known = trainer if trainer is not None else model._trainer
    if known is None:
        raise ReferenceModelError(
            "a model without its Trainer",
            "references must be trained as long and with the same settings as the audited model",
            'pass trainer= with the Trainer of the training, or its arguments: trainer={"max_epochs": 20}',
        )
    return Settings.of(known)
