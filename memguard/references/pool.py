"""Train a pool of references: K models, each of which never saw half of the patients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memguard.errors import MemguardWarning, ReferenceModelError
from memguard.references.data import TrainingData
from memguard.references.job import Backend, Factory, Job, State, Trained
from memguard.references.keep import Keep
from memguard.references.progress import Progress, say
from memguard.references.ray_tasks import on_ray
from memguard.references.recipe import Recipe, fingerprint, recipe_of
from memguard.references.sequential import sequential
from memguard.references.settings import Settings
from memguard.references.stacked import stacked
from memguard.references.trained import Kind, ReferencePool
from memguard.references.trial import trial

__all__ = ["Kind", "Name", "ReferencePool", "train_pool"]

Bools = NDArray[np.bool_]
Name = Literal["auto", "sequential", "stacked", "ray"]


def train_pool(
    factory: Factory,
    data: TrainingData,
    *,
    in_mask: Bools,
    trainer: pl.Trainer | Mapping[str, Any] | Settings,
    backend: Name = "auto",
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    kind: Kind = "pool",
    ray_options: Mapping[str, Any] | None = None,
    ray_workers: int | None = None,
) -> ReferencePool:
    """Train references, or take them from where they were kept.

    Each reference has seeds of its own, for its weights, the order of its records and what it draws in training, so
    that it is the same model whatever the backend and the order; randomness outside is left as it was.

    Args:
        factory: Function without arguments that returns a new module with new weights, of the class and with the
            settings of the audited model.
        data: Records of both sides, members first, and how they become batches.
        in_mask: ``(K, N + M)`` what each reference is trained on, as `halves` draws it.
        trainer: That of the audited model, or arguments of one. Its logger, checkpoints and callbacks are left out.
        backend: ``"auto"`` takes stacks where a trial of five steps shows that they are faster, and otherwise
            trains one after another; ``"ray"`` spreads references over processes and machines.
        folder: Where finished references are kept, for the owner alone. A killed pool goes on with what is
            finished. ``None`` keeps them in memory.
        seed: Of all references.
        progress: Show a bar, or lines where there is no terminal.
        kind: What the references are, for reports.
        ray_options: Of a Ray task (``num_cpus``, ``num_gpus``, ``resources``).
        ray_workers: Start a Ray of this process alone, with so many tasks at a time.

    Returns:
        The references in the order of ``in_mask``.

    Raises:
        ReferenceModelError: If a mask does not fit the data, divides a patient, or is empty; if a module cannot be
            trained, kept or read.

    Guarantees:
        Reference k never saw a record outside of ``in_mask[k]``. That it resembles the audited model is not
        guaranteed: see `match`. Callbacks that change training are not taken over; a note names them.

    References:
        Carlini et al. 2022, arXiv:2112.03570, section IV; Zarifzadeh et al. 2024, "Low-cost high-power membership
        inference attacks", arXiv:2312.03262, section 3 (few references, of pairs).

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
        >>> from memguard.references.halves import halves
        >>> patient = np.arange(8)
        >>> data = TrainingData(dataset=RandomDataset(32, 8), patient=patient, batch_size=2)
        >>> masks = halves(patient, patient < 6, 2)
        >>> pool = train_pool(BoringModel, data, in_mask=masks, trainer={"max_epochs": 1, "accelerator": "cpu"},
        ...                   progress=False)
        >>> len(pool), pool.steps, [module.training for module in pool.modules()]
        (2, (2, 2), [False, False])
    """
    settings = Settings.of(trainer)
    in_mask = _checked(np.asarray(in_mask), data)
    jobs = [
        Job(k=k, factory=factory, data=data, rows=np.flatnonzero(mask), settings=settings, seed=seed)
        for k, mask in enumerate(in_mask)
    ]
    notes = list(_left_out(settings))
    keep = None if folder is None else Keep(Path(folder))
    recipes: list[Recipe] = []
    if keep is not None:
        records = fingerprint(data)
        recipes = [{**recipe_of(job, records), "kind": _trained_as(kind)} for job in jobs]
    trained: dict[int, Trained] = {}
    for job in jobs if keep is not None else []:
        found = keep.get(recipes[job.k]) if keep is not None else None
        if found is not None:
            trained[job.k] = replace(found, state={})  # read again when asked for: one at a time in memory
    missing = [job for job in jobs if job.k not in trained]
    kept = set(trained)
    restored = tuple(job.k in kept for job in jobs)
    if keep is not None:
        notes += _told(keep, recipes, missing, len(jobs), shown=progress)
    name, train = _backend(backend, missing, notes, ray_options, ray_workers, shown=progress)
    with Progress(len(missing), sum(job.total for job in missing), shown=progress) as bar:
        for job, found in train(missing, bar.batch):
            trained[job.k] = found
            if keep is not None and _kept(keep, recipes[job.k], found):
                kept.add(job.k)
                trained[job.k] = replace(found, state={})
            bar.finished(f"reference {job.k}")
    return ReferencePool(
        kind=kind,
        in_mask=in_mask,
        factory=factory,
        states=tuple(
            partial(keep.state, recipes[job.k])
            if keep is not None and job.k in kept
            else partial(_state, trained[job.k])
            for job in jobs
        ),
        steps=tuple(trained[job.k].steps for job in jobs),
        epochs=tuple(trained[job.k].epochs for job in jobs),
        restored=restored,
        backend=name if missing else "",
        notes=tuple(notes),
    )


def _backend(
    backend: Name,
    jobs: list[Job],
    notes: list[str],
    ray_options: Mapping[str, Any] | None,
    ray_workers: int | None,
    *,
    shown: bool,
) -> tuple[str, Backend]:
    if backend == "ray":
        return "ray", on_ray(ray_options, ray_workers)
    if backend == "stacked":
        return "stacked", stacked
    if backend == "sequential":
        return "sequential", sequential
    if backend != "auto":
        raise ReferenceModelError(
            f"backend={backend!r}",
            "references would be trained in a way that nobody asked for",
            'pass "auto", "sequential", "stacked" or "ray"',
        )
    if len(jobs) < 2:
        return "sequential", sequential
    found = trial(jobs)
    notes.append(str(found))
    if shown:
        say(str(found))
    return ("stacked", stacked) if found.faster else ("sequential", sequential)


def _told(keep: Keep, recipes: list[Recipe], missing: list[Job], n: int, *, shown: bool) -> list[str]:
    """What was found in the folder, and what changed since the rest was kept."""
    causes: dict[str, list[int]] = {}
    for job in missing:
        for cause in keep.why_missing(recipes[job.k])[:8]:
            causes.setdefault(cause, []).append(job.k)
    told = []
    if n > len(missing):
        told.append(f"{n - len(missing)} of {n} references were kept from before.")
    if causes:
        changed = "; ".join(causes)
        n_changed = len({k for ks in causes.values() for k in ks})
        told.append(f"{n_changed} kept references do not fit any more: {changed}.")
    if shown:
        for line in told:
            say(line)
    return told


def _checked(in_mask: NDArray[Any], data: TrainingData) -> Bools:
    if in_mask.ndim != 2 or in_mask.shape[1] != len(data) or in_mask.dtype != bool or not len(in_mask):
        raise ReferenceModelError(
            f"masks of shape {in_mask.shape} and type {in_mask.dtype} for {len(data)} records",
            "references would be trained on the wrong patients",
            "pass in_mask= as halves() draws it: (K, N + M) of bool",
        )
    _, code = np.unique(data.patient, return_inverse=True)
    size = np.bincount(code)
    for k, mask in enumerate(in_mask):
        inside = np.bincount(code, weights=mask)
        if ((inside > 0) & (inside < size)).any() or not mask.any():
            what = "divides a patient" if mask.any() else "is empty"
            raise ReferenceModelError(
                f"mask {k} {what}",
                "a reference that saw one record of a patient is no stranger to the patient",
                "draw masks by patient: halves(patient, member, n_models)",
            )
    return in_mask


def _left_out(settings: Settings) -> list[str]:
    if not settings.left_out:
        return []
    names = ", ".join(settings.left_out)
    warnings.warn(
        MemguardWarning(
            f"{names} among the callbacks of the audited model",
            "references are trained without it, so that their losses may be those of another kind of model",
            "see whether they match the audited model before you read a comparison with them",
        ),
        stacklevel=3,
    )
    return [f"References were trained without {names}, which the audited model was trained with."]


def _kept(keep: Keep, recipe: Recipe, trained: Trained) -> bool:
    """Whether the disk took it; if not, it stays in memory, and what it cost is not lost."""
    try:
        keep.put(recipe, trained)
    except ReferenceModelError as error:
        warnings.warn(MemguardWarning(error.seen, "it is only in memory", error.fix), stacklevel=3)
        return False
    return True


def _trained_as(kind: Kind) -> str:
    """Twins are a pool of two: what was trained for one serves the other."""
    return "early-stopped" if kind == "early-stopped" else "pool"


def _state(trained: Trained) -> State:
    return trained.state
