"""Puts the private step in the place of the Trainer's own: loader, training step and gradients of one fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from memguard.callbacks.gather import n_ranks, rank
from memguard.capture.evaluation import step_arguments, to_device
from memguard.capture.ids import IndexTracker
from memguard.capture.losses import loss_of
from memguard.capture.shadow import Shadows
from memguard.errors import PrivacyError
from memguard.privacy.checks import Trial, prepare
from memguard.privacy.loader import offered, private_loader, reader
from memguard.privacy.mechanism import Mechanism, StepCounts, check_parameters
from memguard.privacy.noise import NoiseSource, entropy
from memguard.privacy.opening import open_run
from memguard.privacy.plan import Plan, make_plan
from memguard.privacy.run import PrivateRun, RunSettings, delta_for, rates_for
from memguard.privacy.sampling import PatientSampler
from memguard.records.patients import resolve_patients

__all__ = ["PrivateLoop"]

_TRAINER = ("accumulate_grad_batches", "limit_train_batches", "val_check_interval")


class PrivateLoop:
    """What DP-SGD changes in a Trainer while it fits, and how it goes back.

    Args:
        trainer: Of the run.
        module: Of the run.
        settings: What was asked for.
        run: The lineage that this fit goes on with, if it is the second fit of one Trainer.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, settings: RunSettings, run: PrivateRun | None
    ) -> None:
        self.trainer, self.module, self.settings, self.run = trainer, module, settings, run
        self.plan: Plan | None = None if run is None else run.plan
        self.mechanism: Mechanism | None = None
        self.sampler: PatientSampler | None = None
        self.noise = NoiseSource()
        self.tracker = IndexTracker()
        self._shadows = Shadows()
        self._was: dict[str, Any] = {}
        self._rates: tuple[dict[str, float], float] = ({}, math.nan)
        self._seed = b""
        self._loader: Any = None
        self._owner: NDArray[np.int64] = np.zeros(0, np.int64)
        self._stepped: StepCounts | None = None
        self._parameters: list[nn.Parameter] = []

    # -- in and out ----------------------------------------------------------------------------------------

    def install(self) -> None:
        """Stand between the Trainer and its training loader; for ``setup("fit")``."""
        strategy = self.trainer.strategy
        self._was = {name: getattr(self.trainer, name) for name in _TRAINER}
        self._seed = strategy.broadcast(entropy())
        self.tracker.install(self.trainer)
        below = strategy.process_dataloader

        def process_dataloader(dataloader: object) -> object:
            return below(self._private(dataloader) if self.trainer.training else dataloader)

        self._shadows.put(strategy, "process_dataloader", process_dataloader)

    def restore(self) -> None:
        """Give everything back; idempotent."""
        self._shadows.restore()
        self.tracker.restore()
        if self.mechanism is not None:
            self.mechanism.engine.detach()
        self.mechanism = None
        for name, value in self._was.items():
            setattr(self.trainer, name, value)
        self._was = {}

    # -- the loader ----------------------------------------------------------------------------------------

    def _private(self, loader: Any) -> Any:
        """The user's loader with patients drawn by Poisson sampling."""
        given = self.settings.record_to_patient
        if isinstance(given, Mapping):
            given = given.get("train", "auto")
        if isinstance(given, str) and given != "auto":
            raise PrivacyError(
                f"record_to_patient={given!r}, an entry of the batch",
                "patients are drawn before there is a batch",
                "pass a function position -> id, or one id for each record",
            )
        everyone = resolve_patients(loader.dataset, len(loader.dataset), given)
        some = offered(loader)
        patients = everyone if some is None else everyone.take(some)
        size = _batch_size(loader)
        before = int(self._was["accumulate_grad_batches"])
        plan = make_plan(
            patients,
            unit=self.settings.unit,
            batch_size=size * before * n_ranks(),
            sample_rate=self.settings.sample_rate,
            expected_batch_size=self.settings.expected_batch_size,
            max_records=self.settings.max_records,
            physical_batch_size=(self.settings.physical_batch_size or 2 * size) * n_ranks(),
            strata=self.settings.strata,
        )
        if self.plan is not None and self.plan.fingerprint != plan.fingerprint:
            raise PrivacyError(
                "the training data changed during the run",
                "sample rate and noise were fixed for the patients of its start",
                "train on the new data with a Trainer and a DPSGD of their own",
            )
        self.plan = self.plan or plan
        self._owner = np.full(len(everyone), -1, np.int64)  # what the loader's sampler leaves out stays out
        self._owner[slice(None) if some is None else some] = (
            patients.code if plan.unit == "patient" else np.arange(len(patients))
        )
        steps = self._steps(plan.steps_per_epoch, before)
        if not self._rates[0]:
            self._rates = rates_for(self.settings, plan, self._planned(steps), delta_for(self.settings, plan))
        if self.sampler is None:
            self.sampler = PatientSampler(
                self._owner,
                rates=plan.rates(self._rates[0]),
                steps=steps,
                chunks=plan.parts,
                max_records=plan.max_records,
                seed=self._seed,
                rank=rank(),
                world=n_ranks(),
            )
        if self.mechanism is not None:
            self.mechanism.sampler = self.sampler
        trainer = self.trainer
        trainer.accumulate_grad_batches = plan.parts
        trainer.limit_train_batches = 1.0
        if isinstance(self._was["val_check_interval"], int):
            every = max(1, round(self._was["val_check_interval"] / before)) * plan.parts
            trainer.val_check_interval = every
        self._loader = loader
        return private_loader(loader, self.sampler)

    def _steps(self, steps_per_epoch: int, before: int) -> int:
        """Steps of an epoch under the Trainer's ``limit_train_batches``, which counts the user's batches."""
        limit = self._was["limit_train_batches"]
        if isinstance(limit, int):
            return max(1, min(steps_per_epoch, math.ceil(limit / before)))
        return max(1, int(steps_per_epoch * limit))

    def _planned(self, steps: int) -> int | None:
        """Optimizer steps of the whole training; ``None`` without an end."""
        epochs, most = self.trainer.max_epochs, self.trainer.max_steps
        by_epochs = None if epochs is None or epochs < 0 else epochs * steps
        if most is None or most < 0:
            return by_epochs
        return most if by_epochs is None else min(most, by_epochs)

    # -- the start -----------------------------------------------------------------------------------------

    def open(self, folder: Path, state: Mapping[str, Any] | None) -> PrivateRun:
        """Choose and test the engine, open the ledger, and take over the training step; for ``on_train_start``."""
        trainer = self.trainer
        if self.plan is None or self.sampler is None:
            raise PrivacyError(
                "the training loader was made before DPSGD was set up",
                "its batches are not drawn as the accounting assumes",
                "let the Trainer of this callback make its loaders: call Trainer.fit(model, datamodule)",
            )
        if state is None and self.run is not None and trainer.global_step > 0:
            state = self.run.state_dict()
        self._parameters = trained(trainer.optimizers)
        read = reader(self._loader)

        def read_batch(positions: Sequence[int]) -> Any:
            return to_device(trainer, self.module, read(positions))

        trial = Trial(
            owner=self._owner,
            read=read_batch,
            run_step=self._bare_step,
            max_grad_norm=self.settings.max_grad_norm,
            average=self.settings.average,
            seed=self._seed,
        )
        prepared = prepare(
            self.settings.engine, trainer, self.module, self._parameters, trial, checks=self.settings.checks
        )
        self.run = open_run(
            self.plan,
            self.settings,
            folder=folder,
            state=state,
            global_step=trainer.global_step,
            planned=self._remaining(),
            rates=self._rates[0],
            fixed_noise=self._rates[1],
            seeds={"noise": self.noise.fingerprint, "sampling": self.sampler.fingerprint},
            facts={"engine": prepared.engine.name, "average": self.settings.average},
            rank=rank(),
            broadcast=trainer.strategy.broadcast,
        )
        self.run.write("probe", **prepared.facts)
        for finding in prepared.findings:
            self.run.write("note", id=finding.id, seen=finding.seen, why=finding.why)
        self.mechanism = Mechanism(
            prepared.engine,
            self._parameters,
            self.sampler,
            self.noise,
            max_grad_norm=self.settings.max_grad_norm,
            expected_owners=self.plan.expected_owners,
            average=self.settings.average,
            rank=rank(),
            reduce=_summed if n_ranks() > 1 else None,
        )
        self._align()

        inner = trainer.strategy.training_step

        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            return self._step(inner, partial(self._alone, read), batch, args, kwargs)

        self._shadows.put(trainer.strategy, "training_step", training_step)
        return self.run

    def _remaining(self) -> int | None:
        total = self.trainer.estimated_stepping_batches
        if total in (-1, float("inf")):
            return None
        return max(0, int(total) - self.trainer.global_step)

    def _align(self) -> None:
        """Resumed in the middle of a draw, begin with an epoch whose parts fit the Trainer's count."""
        assert self.plan is not None
        assert self.sampler is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if done % self.plan.parts:
            self.sampler.skip = done % self.plan.parts
            fetcher = self.trainer.fit_loop._data_fetcher
            assert fetcher is not None
            iter(fetcher)

    # -- the step ------------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """A draw that an earlier epoch did not finish is forgotten."""
        if self.mechanism is not None:
            self.mechanism.begin()

    def _step(self, inner: Any, read: Any, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.mechanism is not None
        strategy = self.trainer.strategy

        def run_step(one: Any) -> Any:
            # Not through the wrapper of the strategy: DDP would send the raw gradients to the other processes.
            wrapped, strategy.model = strategy.model, self.module
            try:
                return inner(one, *args, **kwargs)
            finally:
                strategy.model = wrapped

        positions = self.tracker.positions(batch, stage="train")
        returned = self.mechanism.take(batch, positions, run_step, read)
        return _shown(returned, self.module.device)

    def _alone(self, read: Any, position: int) -> Any:
        """One record as a batch that goes into the step, with its position known to all who follow the loader."""
        batch = read([position])
        self.tracker.announce(batch, [position])
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def _bare_step(self, batch: Any) -> Any:
        """The user's step, past the strategy and whoever listens there."""
        step = self.module.training_step
        with self.trainer.precision_plugin.train_step_context():
            return step(*step_arguments(step, batch, 0))

    def release(self, optimizer: Optimizer) -> None:
        """Put the noisy gradient where the optimizer reads it; for ``on_before_optimizer_step``."""
        assert self.mechanism is not None
        assert self.run is not None
        check_parameters(self._parameters, trained([optimizer]))
        self.run.spend(self.trainer.global_step)
        released = self.mechanism.release(self.run.noise_multiplier)
        for parameter, gradient in zip(self._parameters, released.gradients, strict=True):
            parameter.grad = gradient
        self._stepped = released.counts

    def stepped(self) -> StepCounts | None:
        """Counts of the step that has just been taken, once."""
        counts, self._stepped = self._stepped, None
        return counts


def trained(optimizers: Any) -> list[nn.Parameter]:
    """What the optimizers change."""
    return [
        parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]


def _shown(returned: Any, device: torch.device) -> Any:
    """What the step returned, with a loss whose backward pass reaches no parameter."""
    loss = loss_of(returned)
    anchor = torch.zeros((), device=device, requires_grad=True)
    shown = anchor + (torch.zeros((), device=device) if loss is None else loss.detach())
    return {**returned, "loss": shown} if isinstance(returned, Mapping) else shown


def _summed(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor


def _batch_size(loader: Any) -> int:
    for owner in (loader, getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        size = getattr(owner, "batch_size", None)
        if isinstance(size, int) and size > 0:
            return size
    raise PrivacyError(
        f"a {type(loader).__name__} that does not tell its batch size",
        "the sample rate follows from it",
        "pass DPSGD(sample_rate=) or expected_batch_size=, and physical_batch_size=",
    )
