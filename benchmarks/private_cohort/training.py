"""One half-model, through the Trainer and ``DPSGD``, and what the attack needs of it."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader

from benchmarks.cohort import LONGEST, Cohort
from benchmarks.private_cohort.model import NextCode, Records, losses
from benchmarks.ranking.truth import halves
from memguard import DPSGD

__all__ = ["ARMS", "Pool", "Recipe", "load_pool", "train"]

ARMS = ("no privacy", "record", "patient")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every model is trained: AdamW, cosine to zero; DP-SGD adds noise and clipping and changes nothing else.

    ``batch`` records or patients, whichever is the unit, are in a step on average. ``noise`` is the multiplier by
    record, ``patient_noise`` that by patient: the one that gives the same validation loss. ``plain_rate`` and
    ``plain_epochs`` belong to the arm without privacy, which the other settings would overtrain.
    """

    steps: int = 240
    batch: int = 128
    rate: float = 1e-2
    noise: float = 0.4
    patient_noise: float = 0.41
    max_grad_norm: float = 1.0
    delta: float = 2.5e-4
    width: int = 32
    layers: int = 1
    plain_epochs: int = 12
    plain_rate: float = 5e-3
    engine: str = "opacus"


@dataclass(frozen=True)
class Pool:
    """The half-models of one arm.

    Attributes:
        inside: Bool ``(K, N)``, which records each trained on.
        losses: ``(K, N)`` final eval losses of all records, nats per code.
        validation: ``(K, M)`` of the validation cohort.
        steps: Optimizer steps; of the first model where there is no privacy and halves differ in size.
        sample_rate: Probability with which a record or patient is in a step; NaN without privacy.
        members: ``(K, 2)`` records and patients trained on.
    """

    inside: np.ndarray
    losses: np.ndarray
    validation: np.ndarray
    steps: int
    sample_rate: float
    members: np.ndarray


def train(
    arm: str,
    members: Records,
    every: Records,
    validation: Records,
    recipe: Recipe,
    *,
    sample_rate: float,
    seed: int,
    folder: Path,
) -> dict[str, np.ndarray]:
    """Train one model on ``members``; final losses of ``every`` record and of ``validation``.

    Args:
        arm: One of ``ARMS``.
        members: Trained on.
        every: All records of the cohort.
        validation: Never trained on by any model.
        recipe: The settings.
        sample_rate: Probability with which a record or patient is in a step.
        seed: Of the weights, and of the batches where there is no privacy.
        folder: For ledger and statement.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(seed, verbose=False)
    private = arm != "no privacy"
    model = NextCode(
        length=LONGEST + 2,
        width=recipe.width,
        layers=recipe.layers,
        rate=recipe.rate if private else recipe.plain_rate,
    )
    callbacks: list[pl.Callback] = []
    if private:
        callbacks = [
            DPSGD(
                noise_multiplier=recipe.noise if arm == "record" else recipe.patient_noise,
                max_grad_norm=recipe.max_grad_norm,
                delta=recipe.delta,
                sample_rate=sample_rate,
                unit=arm,
                record_to_patient=members.patient_ids,
                engine=recipe.engine,
                dirpath=folder / "ledgers",
            )
        ]
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")  # within Lightning
        trainer = pl.Trainer(
            max_steps=recipe.steps if private else -1,
            max_epochs=-1 if private else recipe.plain_epochs,
            callbacks=callbacks,
            default_root_dir=scratch,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(members, batch_size=recipe.batch, shuffle=True))
    return {
        "every": losses(model, every),
        "validation": losses(model, validation),
        "steps": np.array(trainer.global_step),
        "sample_rate": np.array(sample_rate if private else np.nan),
        "members": np.array([len(members), len(np.unique(members.patient_ids))]),
    }


def load_pool(
    arm: str, pool: Cohort, outside: Cohort, recipe: Recipe, *, n_models: int, seed: int, folder: Path
) -> Pool:
    """Train the half-models of an arm, or read those that an earlier run left in ``folder``."""
    inside = halves(pool.patient, n_models, seed)
    every, validation = _records(pool), _records(outside)
    units = len(np.unique(pool.patient)) if arm == "patient" else len(pool.codes)
    rate = 2 * recipe.batch / units  # half of them are members; one rate for all models of an arm
    runs: list[Mapping[str, np.ndarray]] = []
    for k in range(n_models):
        path = folder / f"{arm.replace(' ', '-')}-{k:02d}.npz"
        if not path.exists():
            began, wall = time.process_time(), time.perf_counter()
            members = _records(pool, np.flatnonzero(inside[k]))
            found = train(
                arm, members, every, validation, recipe,
                sample_rate=rate, seed=1000 * (seed % 100_000) + k, folder=folder,
            )  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part.npz")
            np.savez_compressed(part, **found)
            os.replace(part, path)
            spent, wall = time.process_time() - began, time.perf_counter() - wall
            loss = found["validation"].mean()
            print(f"{path.name}: validation {loss:.3f}, {spent:.0f} s of CPU, {wall:.0f} s", flush=True)
        with np.load(path, allow_pickle=False) as stored:
            runs.append({name: stored[name] for name in stored.files})
    return Pool(
        inside=inside,
        losses=np.stack([run["every"] for run in runs]).astype(np.float64),
        validation=np.stack([run["validation"] for run in runs]).astype(np.float64),
        steps=int(runs[0]["steps"]),
        sample_rate=float(runs[0]["sample_rate"]),
        members=np.stack([run["members"] for run in runs]),
    )


def _records(cohort: Cohort, rows: np.ndarray | None = None) -> Records:
    rows = np.arange(len(cohort.codes)) if rows is None else rows
    return Records(cohort.codes.take(rows), cohort.patient[rows], LONGEST + 3)
