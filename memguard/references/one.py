"""One or two references where a pool costs too much."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memguard.capture.stillness import untouched
from memguard.errors import ReferenceModelError
from memguard.references.data import TrainingData
from memguard.references.early_stopped import initial_state, train_reference
from memguard.references.halves import halves, patient_halves
from memguard.references.job import Factory, Job, Trained, cpu_state
from memguard.references.keep import Keep
from memguard.references.pool import ReferencePool, train_pool
from memguard.references.progress import Progress
from memguard.references.quiet import quiet
from memguard.references.recipe import fingerprint, recipe_of
from memguard.references.settings import Settings
from memguard.references.sources import code_of

__all__ = ["Losses", "train_early_stopped", "train_twins"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Losses = Callable[[pl.LightningModule, Ints], Floats]


def train_twins(
    factory: Factory,
    data: TrainingData,
    *,
    member: Bools,
    trainer: pl.Trainer | Mapping[str, Any] | Settings,
    seed: int = 0,
    **options: Any,
) -> ReferencePool:
    """Two references on complementary halves: each patient is a stranger to one of them.

    They are the first two of a pool of the same seed: a pool in the same folder does not train them again.

    Args:
        factory: As for `train_pool`.
        data: As there.
        member: ``(N + M,)`` whether the audited model was trained on the record.
        trainer: As there.
        seed: Of the halves and of the models.
        options: As there: ``backend``, ``folder``, ``progress``, ...

    Returns:
        The references, of kind ``"twins"``.

    Raises:
        ReferenceModelError: As there.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
        >>> data = TrainingData(dataset=RandomDataset(32, 8), patient=np.arange(8), batch_size=2)
        >>> twins = train_twins(BoringModel, data, member=np.arange(8) < 6, progress=False, backend="sequential",
        ...                     trainer={"max_epochs": 1, "accelerator": "cpu"})
        >>> twins.kind, twins.in_mask.sum(0).tolist()
        ('twins', [1, 1, 1, 1, 1, 1, 1, 1])
    """
    masks = halves(data.patient, member, 2, seed=seed)
    return train_pool(factory, data, in_mask=masks, trainer=trainer, seed=seed, kind="twins", **options)


def train_early_stopped(
    factory: Factory,
    data: TrainingData,
    *,
    member: Bools,
    trainer: pl.Trainer | Mapping[str, Any] | Settings,
    losses: Losses,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ReferencePool:
    """One reference that never saw a member: trained on half of the held-out patients, stopped early.

    The other half decides when to stop and stays a stranger to it.

    Args:
        factory: As for `train_pool`.
        data: As there.
        member: ``(N + M,)`` whether the audited model was trained on the record.
        trainer: As there.
        losses: Eval-mode losses of the records at given positions under a module, NaN where there is none.
        folder: As there.
        seed: Of the half and of the model.
        progress: As there.

    Returns:
        One reference, of kind ``"early-stopped"``.

    Raises:
        ReferenceModelError: If fewer than two patients are held out, or it cannot be trained.

    Guarantees:
        It is trained on fewer patients than the audited model, usually far fewer; `match` says what that does.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
        >>> data = TrainingData(dataset=RandomDataset(32, 12), patient=np.arange(12), batch_size=2)
        >>> def losses(module, rows):
        ...     return np.array([float(module(data.dataset[row]).square().mean()) for row in rows])
        >>> one = train_early_stopped(BoringModel, data, member=np.arange(12) < 6, losses=losses, progress=False,
        ...                           trainer={"max_epochs": 3, "accelerator": "cpu"})
        >>> one.kind, one.in_mask.sum(1).tolist(), bool(one.in_mask[0, :6].any())
        ('early-stopped', [3], False)
    """
    settings, member = Settings.of(trainer), np.asarray(member, dtype=bool)
    inside, referee = _held_back(data, member, seed)
    job = Job(k=0, factory=factory, data=data, rows=inside, settings=settings, seed=seed)
    keep = None if folder is None else Keep(Path(folder))
    recipe: dict[str, Any] = {}
    found: Trained | None = None
    notes: list[str] = []
    if keep is not None:
        recipe = {**recipe_of(job, fingerprint(data)), "kind": "early-stopped", "losses": code_of([losses])}
        found = keep.get(recipe)
        changed = [] if found is not None else keep.why_missing(recipe)
        if changed:
            notes.append(f"The kept reference does not fit any more: {'; '.join(changed[:8])}.")
    restored = found is not None
    if found is None:
        with Progress(1, job.total, shown=progress) as bar:
            found = _train(job, referee, losses)
            bar.finished("early-stopped reference", job.total)
        if keep is not None:
            keep.put(recipe, found)
    mask = np.zeros((1, len(data)), dtype=bool)
    mask[0, inside] = True
    notes.append(
        f"One reference was trained on {inside.size:,} held-out records ({found.epochs} epochs, {found.steps} steps) "
        f"and stopped early on {referee.size:,} others."
    )
    trained = found
    return ReferencePool(
        kind="early-stopped",
        in_mask=mask,
        factory=factory,
        states=(partial(keep.state, recipe) if keep is not None else lambda: trained.state,),
        steps=(found.steps,),
        epochs=(found.epochs,),
        restored=(restored,),
        backend="" if restored else "sequential",
        notes=tuple(notes),
    )


def _held_back(data: TrainingData, member: Bools, seed: int) -> tuple[Ints, Ints]:
    """Rows of the held-out patients to train on, and of those that decide when to stop."""
    if member.shape != (len(data),):
        raise ReferenceModelError(
            f"sides of shape {member.shape} for {len(data)} records",
            "a member could be taken for a stranger",
            "pass one side for each record",
        )
    rows = np.flatnonzero(~member)
    ids, code = np.unique(data.patient[rows], return_inverse=True)
    if ids.size < 2 or np.isin(ids, data.patient[member]).any():
        raise ReferenceModelError(
            f"{ids.size} held-out patients, {np.isin(ids, data.patient[member]).sum()} of them members too",
            "a reference that never saw a member is trained on one part of them and stopped on another",
            "hold out more patients, and split by patient",
        )
    mask = patient_halves(np.ones(ids.size, dtype=bool), 1, seed=seed)[0][code]
    return rows[mask], rows[~mask]


def _train(job: Job, referee: Ints, losses: Losses) -> Trained:
    began = time.perf_counter()
    module = job.module()

    def loss(trainer: pl.Trainer, model: pl.LightningModule) -> float:
        with untouched(model):
            values = np.asarray(losses(model, referee), dtype=np.float64)
        return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("inf")

    with quiet():
        try:
            found = train_reference(
                job.settings.trainer(),
                module,
                initial_state(module),
                job.data.dataset,
                job.rows,
                referee=loss,
                collate_fn=job.data.collate_fn,
                batch_size=job.data.batch_size or 1,
                max_steps=max(1, job.total // job.settings.accumulate_grad_batches),
                seed=job.seeds[2],
            )
        except MemoryError:
            raise
        except Exception as error:
            raise ReferenceModelError(
                f"the reference cannot be trained: {type(error).__name__}: {error}",
                "no reference means no comparison with a model that never saw the patient",
                "see the error above; the factory must give a module that a Trainer can fit by itself",
            ) from error
    return Trained(
        state=cpu_state(found.module),
        steps=found.steps,
        epochs=found.epochs,
        seconds=time.perf_counter() - began,
    )
