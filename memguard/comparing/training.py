"""One model of one arm: trained on half of the patients, with its weights at some points on the way."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from numpy.typing import NDArray
from typing_extensions import override

from memguard.callbacks.dpsgd import DPSGD
from memguard.capture.stillness import forked_rng, still_generators
from memguard.comparing.loaded import Loaded
from memguard.comparing.population import Population
from memguard.comparing.study import Arm
from memguard.errors import MemguardError
from memguard.references.job import cpu_state
from memguard.references.quiet import quiet

__all__ = ["Run", "Trained", "fit", "of_arm"]

Bools = NDArray[np.bool_]
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a study.

    Attributes:
        arm: Name of the arm.
        seed: Which of the study's seeds, from 0.
        half: 0 or 1.
        again: Whether it belongs to the control: other weights and orders, the same half.
        patients: ``(P,)`` trained on.
        study_seed: Of the study.
    """

    arm: str
    seed: int
    half: int
    again: bool
    patients: Bools
    study_seed: int = 0

    @property
    def seeds(self) -> tuple[int, int, int]:
        """Of the weights, of the order of the records, and of what is drawn in training; the same in every arm."""
        key = [self.study_seed, self.seed, self.half, int(self.again), 31]
        weights, order, within = np.random.SeedSequence(key).generate_state(3)
        return int(weights), int(order), int(within)

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}, half {self.half + 1}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model when its training is over.

    Attributes:
        module: With the weights that would be deployed.
        states: Its weights at each stage; the last are those of ``module``.
        epochs: ``(T,)`` of the stages.
        steps: Optimizer steps in all.
        touched: ``(N,)`` training records that a mitigation ever gave less weight; ``None`` without one.
        epsilon: What `DPSGD` spent, ``None`` without it.
        metrics: What the module itself logs when it is validated on the judging patients.
        seconds: Of the training.
    """

    module: pl.LightningModule
    states: tuple[State, ...]
    epochs: tuple[float, ...]
    steps: int
    touched: Bools | None
    epsilon: float | None
    metrics: Mapping[str, float]
    seconds: float


def fit(run: Run, arm: Arm, loaded: Loaded, population: Population, *, stages: int) -> Trained:
    """Train one model; randomness outside is as if nothing had been trained.

    Args:
        run: Which one.
        arm: How.
        loaded: The data of the study.
        population: Whose they are.
        stages: T.

    Raises:
        MemguardError: If it cannot be trained, with the arm's name.
    """
    rows = population.rows_of(run.patients)
    weights, order, within = run.seeds
    validating = population.held_out_rows(judging=False)
    part = loaded.part(population.patient, rows, validating, seed=order, named=population.named)
    began = time.perf_counter()
    snapshots = _Snapshots(stages)
    with tempfile.TemporaryDirectory(prefix="memguard-") as scratch, quiet(), forked_rng(within):
        with still_generators(loaded.train.dataset, seed=within), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
            with of_arm(run.arm, "trained"):
                with forked_rng(weights):
                    module = arm.model()
                callbacks = list(arm.callbacks())
                _no_positions(callbacks)
                trainer = _trainer(arm, [*callbacks, snapshots], scratch)
                _fit(trainer, module, part)
                best = _best_of(callbacks, module)
                if best is not None and trainer.global_step:
                    snapshots.end *= best / trainer.global_step
        seconds = time.perf_counter() - began
        if trainer.interrupted:  # Lightning swallows Ctrl-C
            raise KeyboardInterrupt
        with of_arm(run.arm, "validated"):
            metrics = _validated(module, loaded, population, trainer, scratch)
    states, epochs = snapshots.filled(module)
    return Trained(
        module=module,
        states=states,
        epochs=epochs,
        steps=trainer.global_step,
        touched=_touched(callbacks, rows, population.n_training),
        epsilon=next((one.epsilon for one in callbacks if isinstance(one, DPSGD)), None),
        metrics=metrics,
        seconds=seconds,
    )


@contextlib.contextmanager
def of_arm(name: str, done: str) -> Iterator[None]:
    """Whatever fails inside is an arm's, and says so.

    Args:
        name: Of the arm.
        done: What was tried, as a participle.
    """
    try:
        yield
    except (KeyboardInterrupt, MemoryError):
        raise
    except MemguardError as error:
        raise type(error)(f"arm {name!r}: {error.seen}", error.why, error.fix) from error
    except Exception as error:
        raise MemguardError(
            f"a model of arm {name!r} cannot be {done}: {type(error).__name__}: {error}",
            "an arm with a missing model cannot be compared",
            "see the error above; correct the arm, or take it out of the study",
        ) from error


def _trainer(arm: Arm, callbacks: list[pl.Callback], scratch: str) -> pl.Trainer:
    checkpoints = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    return pl.Trainer(
        **{"accelerator": "auto", "num_sanity_val_steps": 0, **arm.trainer},
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=checkpoints,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=scratch,
    )


def _no_positions(callbacks: list[pl.Callback]) -> None:
    """A half has other positions than the data set that a person numbers."""
    for one in callbacks:
        given = getattr(getattr(one, "settings", None), "record_to_patient", None)
        given = getattr(one, "record_to_patient", given)
        if not (given is None or isinstance(given, str)):
            raise MemguardError(
                f"record_to_patient= of a {type(one).__name__}, by positions",
                "a model is trained on half of the records, where positions are others: it would speak of the wrong"
                " patients",
                "pass record_to_patient= of the study, and leave it out of callbacks, which then find the same",
            )


def _fit(trainer: pl.Trainer, module: pl.LightningModule, part: Any) -> None:
    if isinstance(part, pl.LightningDataModule):
        trainer.fit(module, datamodule=part)
    else:
        trainer.fit(module, part[0], part[1])


def _best_of(callbacks: list[pl.Callback], module: pl.LightningModule) -> int | None:
    """Put the weights back that a checkpoint callback found best: they are what would be deployed.

    Returns:
        Optimizer steps behind them; ``None`` where the last weights stay.
    """
    steps = None
    for one in callbacks:
        if isinstance(one, ModelCheckpoint) and one.monitor and Path(one.best_model_path).is_file():
            # Hyperparameters may be classes; this process wrote the file.
            found = torch.load(one.best_model_path, map_location="cpu", weights_only=False)
            module.load_state_dict(found["state_dict"])
            steps = int(found["global_step"])
    return steps


def _validated(
    module: pl.LightningModule, loaded: Loaded, population: Population, trainer: pl.Trainer, scratch: str
) -> dict[str, float]:
    """What the user's own validation step logs of the judging patients."""
    if not trainer.fit_loop.epoch_loop.val_loop.trainer.enable_validation:
        return {}
    judge = pl.Trainer(
        accelerator="auto" if trainer.accelerator.__class__.__name__ != "CPUAccelerator" else "cpu",
        precision=trainer.precision,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=scratch,
    )
    whole = loaded.whole()
    object.__setattr__(module, "configure_callbacks", list)
    loader = loaded.held_out_part(population.held_out_rows(judging=True))
    if isinstance(whole, pl.LightningDataModule):
        object.__setattr__(whole, "val_dataloader", lambda: loader)
        logged = judge.validate(module, datamodule=whole, verbose=False)
    else:
        logged = judge.validate(module, loader, verbose=False)
    found = {name: float(value) for part in logged for name, value in part.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _touched(callbacks: list[pl.Callback], rows: NDArray[np.int64], n: int) -> Bools | None:
    found_in = [getattr(one, "touched", None) for one in callbacks]
    marks = [np.asarray(one, np.bool_) for one in found_in if one is not None]
    if not marks:
        return None
    found = np.zeros(n, np.bool_)
    for mark in marks:
        found[rows[mark]] = True
    return found


class _Snapshots(pl.Callback):
    """Keeps the weights at evenly spread points of a training."""

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self.kept: list[tuple[float, dict[str, torch.Tensor]]] = []
        self.due: list[float] = []
        self.end = 0.0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        if math.isfinite(total):
            self.due = [math.ceil(total * i / self.stages) for i in range(1, self.stages)]

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        batches = max(1.0, float(trainer.num_training_batches))
        self.end = trainer.current_epoch + (trainer.fit_loop.epoch_loop.batch_idx + 1) / batches
        while self.due and trainer.global_step >= self.due[0]:
            self.due.pop(0)
            self.kept.append((self.end, cpu_state(pl_module)))

    def filled(self, module: pl.LightningModule) -> tuple[tuple[State, ...], tuple[float, ...]]:
        """T stages; those after an early end are the end."""
        last = cpu_state(module)
        kept = self.kept[: self.stages - 1]
        kept = [*kept, *[(self.end, last)] * (self.stages - len(kept))]
        return tuple(state for _, state in kept), tuple(epoch for epoch, _ in kept)
