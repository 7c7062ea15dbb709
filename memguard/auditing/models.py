"""Models that never saw a given patient, for an audit: chosen, trained or kept, compared with the audited one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
        counted: ``(N + M,)`` truth values: whose records are counted, those that the audited model was trained on;
            everybody's by default.

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

    def losses(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """``(1, N + M)`` nats per predicted token; NaN for a record without one, and for those not in ``rows``."""
        asked = np.arange(len(self.sequences)) if rows is None else rows
        some = self.sequences.take(asked)
        nats = -self.adapter.log_probs(some, patient=self.patient[asked])
        predicted = np.isfinite(nats)
        total = np.bincount(some.rows[predicted], weights=nats[predicted], minlength=len(some))
        count = np.bincount(some.rows[predicted], minlength=len(some))
        found = np.full((1, len(self.sequences)), np.nan)
        found[0, asked] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return found


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
    gaps: tuple[NotTested, ...] = ()


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
        wanted = _of_members(wanted, sides)
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
    loss = pool.losses(lambda module: losses_of(run, module, sides).loss)
    return Prepared(pool=pool, loss=loss, notes=pool.notes)


def _of_members(pool: ReferencePool, sides: Sides) -> ReferencePool:
    """The pool with masks for the N + M alone, where it was trained on canaries too."""
    mask = sides.own(pool.in_mask.T).T
    taken_out = np.setdiff1d(np.arange(pool.in_mask.shape[1]), sides.both)
    if mask.shape == pool.in_mask.shape or not pool.in_mask[:, taken_out].any():
        return replace(pool, in_mask=mask)
    note = (
        "The references that were given were trained on canaries too. A canary holds pieces of real records, so that a "
        "reference that never saw a patient may know a piece of the record."
    )
    return replace(pool, in_mask=mask, notes=(*pool.notes, note))


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
    member = sides.member
    settings = settings_of(model, trainer)
    data = training_data(run, sides, datamodule)
    make = factory or factory_of(model)
    common: dict[str, Any] = {"trainer": settings, "folder": folder, "seed": seed, "progress": progress}
    if wanted == "early-stopped":
        return train_early_stopped(
            make, data, member=member, losses=lambda one, rows: losses_at(run, one, rows, sides), **common
        )
    if wanted == "twins":
        return train_twins(make, data, member=member, backend=backend, **common)
    in_mask = halves(sides.patient, member, wanted, seed=seed)
    return train_pool(make, data, in_mask=in_mask, backend=backend, **common)


def training_data(run: LiveRun, sides: Sides, datamodule: pl.LightningDataModule | None) -> TrainingData:
    """The N + M records of both sides, as the run's training loader makes batches of them."""
    from torch.utils.data import DataLoader, Subset

    tracker = run.capture.tracker
    held_out: DataLoader[Any] = DataLoader(run.source.dataset, collate_fn=run.source.collate_fn)
    whole = np.zeros(sides.n_training + len(sides.held_out), np.int64)
    loader = tracker.loader("train") if run.loader is None else run.loader
    data = TrainingData.from_loaders(loader, held_out, whole, datamodule=datamodule)
    some = data.dataset if len(whole) == len(sides.content) else Subset(data.dataset, sides.both.tolist())
    return replace(data, dataset=some, patient=sides.patient)


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
