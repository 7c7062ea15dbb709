"""Puts the private step in the place of the Trainer's own: training step and gradients of one fit."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from memguard.callbacks.gather import n_ranks, rank
from memguard.callbacks.private_data import PrivateData
from memguard.capture.evaluation import step_arguments
from memguard.capture.losses import loss_of
from memguard.capture.shadow import Shadows
from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.checks import Prepared, Trial, prepare
from memguard.privacy.engines.base import Engine
from memguard.privacy.guards.steps import steps_accounted
from memguard.privacy.mechanism import Mechanism, StepCounts, check_parameters
from memguard.privacy.noise import NoiseSource
from memguard.privacy.opening import open_run
from memguard.privacy.run import PrivateRun, RunSettings

__all__ = ["PrivateLoop"]


class PrivateLoop:
    """What DP-SGD changes in a Trainer while it fits, and how it goes back.

    Args:
        trainer: Of the run.
        module: Of the run.
        settings: What was asked for.
        run: The lineage that this fit goes on with, if it is a later fit of one Trainer.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, settings: RunSettings, run: PrivateRun | None
    ) -> None:
        self.trainer, self.module, self.settings, self.run = trainer, module, settings, run
        self.data = PrivateData(trainer, module, settings, None if run is None else run.plan)
        self.noise = NoiseSource()
        self.mechanism: Mechanism | None = None
        self._engine: Engine | None = None
        self._shadows = Shadows()
        self._parameters: list[nn.Parameter] = []
        self._stepped: StepCounts | None = None
        self._began = 0  # steps accounted at the start
        self._taken = 0  # by the optimizer, whoever called it
        self._counting: list[Any] = []
        self._reduce = _reduced_by_nobody()  # one object: Lightning compares it between calls of log()

    # -- in and out ----------------------------------------------------------------------------------------

    def install(self) -> None:
        """Stand between the Trainer and its training loader; for ``setup("fit")``."""
        self.data.install()

    def restore(self) -> None:
        """Give everything back; idempotent."""
        self._shadows.restore()
        while self._counting:
            self._counting.pop().remove()
        self.data.restore()
        if self._engine is not None:
            self._engine.detach()
        self.mechanism = self._engine = None

    # -- the start -----------------------------------------------------------------------------------------

    def open(self, folder: Path, state: Mapping[str, Any] | None) -> PrivateRun:
        """Choose and test the engine, open the ledger, and take over the training step; for ``on_train_start``.

        Args:
            folder: Of the ledger.
            state: Of the checkpoint that training is resumed from.
        """
        self.data.check()
        if state is None and self.run is not None and self.trainer.global_step > 0:
            state = self.run.state_dict()
        self._parameters = trained(self.trainer.optimizers)
        prepared = self._prepared()
        self._engine = prepared.engine
        self.run = self._opened(folder, state, prepared)
        self.mechanism = self._mechanism(prepared.engine)
        noise = self.mechanism.rehearse(self.run.noise_multiplier)
        if noise is not None:
            noise.require()
        self.data.align(None if state is None else state.get("parts"))
        self._take_over()
        self._count_steps()
        return self.run

    def _prepared(self) -> Prepared:
        data, settings = self.data, self.settings
        trial = Trial(
            owner=data.owner,
            read=data.reads_once(),
            run_step=self._bare_step,
            max_grad_norm=settings.max_grad_norm,
            average=settings.average,
            seed=data.seed,
            joins=data.joins,
        )
        return prepare(
            settings.engine, self.trainer, self.module, self._parameters, trial, checks=settings.checks
        )

    def _opened(self, folder: Path, state: Mapping[str, Any] | None, prepared: Prepared) -> PrivateRun:
        data, settings = self.data, self.settings
        assert data.plan is not None
        assert data.sampler is not None
        run = open_run(
            data.plan,
            settings,
            folder=folder,
            state=state,
            global_step=self.trainer.global_step,
            planned=self._remaining(),
            planned_in_all=data.planned,
            rates=data.rates,
            fixed_noise=data.fixed_noise,
            seeds={"noise": self.noise.fingerprint, "sampling": data.sampler.fingerprint},
            facts={"engine": prepared.engine.name},
            rank=rank(),
            broadcast=self.trainer.strategy.broadcast,
        )
        if settings.budgets is not None and settings.strata_from_data:
            warnings.warn(
                MemguardWarning(
                    "individual budgets by strata that were derived from the training data",
                    "which stratum a patient is in is not protected, and one patient may have moved others",
                    "pass strata_from_data=False if they come from elsewhere, or release the model knowing this",
                ),
                stacklevel=2,
            )
        run.write("probe", **prepared.facts)
        for finding in prepared.findings:
            run.note(finding)
        return run

    def _mechanism(self, engine: Engine) -> Mechanism:
        data = self.data
        assert data.plan is not None
        assert data.sampler is not None
        return Mechanism(
            engine,
            self._parameters,
            data.sampler,
            self.noise,
            max_grad_norm=self.settings.max_grad_norm,
            expected_owners=data.plan.expected_owners,
            average=self.settings.average,
            rank=rank(),
            reduce=_summed if n_ranks() > 1 else None,
        )

    def _remaining(self) -> int | None:
        """Optimizer steps to come."""
        total = self.trainer.estimated_stepping_batches
        if total in (-1, float("inf")):
            return None
        return max(0, int(total) - self.trainer.global_step)

    def _take_over(self) -> None:
        strategy = self.trainer.strategy
        inner = strategy.training_step

        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            return self._step(inner, batch, args, kwargs)

        self._shadows.put(strategy, "training_step", training_step)

    # -- the step ------------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """A draw that an earlier epoch did not finish is forgotten."""
        if self.mechanism is not None:
            self.mechanism.begin()

    def _step(self, inner: Any, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.mechanism is not None
        strategy = self.trainer.strategy

        def run_step(one: Any) -> Any:
            # Not through the wrapper of the strategy: DDP would send the raw gradients to the other processes.
            wrapped, strategy.model = strategy.model, self.module
            try:
                with self._by_itself() if n_ranks() > 1 else contextlib.nullcontext():
                    return inner(one, *args, **kwargs)
            finally:
                strategy.model = wrapped

        returned = self.mechanism.take(batch, self.data.positions(batch), run_step, self.data.alone)
        return _shown(returned, self.data.pace.loss_factor, self.module.device)

    def _bare_step(self, batch: Any) -> Any:
        """The user's step, past the strategy and whoever listens there."""
        step = self.module.training_step
        with self.trainer.precision_plugin.train_step_context():
            return step(*step_arguments(step, batch, 0))

    @contextlib.contextmanager
    def _by_itself(self) -> Iterator[None]:
        """The user's step without the other processes, which run it at other times, or not at all."""
        shadows = Shadows()
        shadows.put(self.trainer.strategy, "reduce", self._reduce)
        shadows.put(self.trainer.strategy, "all_gather", _not_gathered)
        try:
            yield
        finally:
            shadows.restore()

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

    def _count_steps(self) -> None:
        assert self.run is not None
        self._began, self._taken = self.run.steps, 0

        def count(*_: Any) -> None:
            self._taken += 1

        self._counting += [one.register_step_post_hook(count) for one in self.trainer.optimizers]

    def stepped(self) -> StepCounts | None:
        """Counts of the step that has just been taken, once.

        Raises:
            PrivacyError: If the optimizer has taken more steps than the ledger holds.
        """
        if self.run is not None and self._counting:
            accounted = self.run.steps - self._began
            # Fewer are no matter of privacy, and an optimizer that wraps another may not tell of its steps.
            steps_accounted(accounted, max(accounted, self._taken)).require()
        counts, self._stepped = self._stepped, None
        return counts

    def at_end(self) -> bool:
        """Whether the Trainer ends here by itself."""
        fit, epoch = self.trainer.fit_loop, self.trainer.fit_loop.epoch_loop
        if -1 < self.trainer.max_steps <= self.trainer.global_step:
            return True
        last, done = self.trainer.max_epochs, fit.epoch_progress.current.processed  # type: ignore[attr-defined]
        return last is not None and -1 < last <= done + int(epoch._num_ready_batches_reached())


def trained(optimizers: Any) -> list[nn.Parameter]:
    """What the optimizers change, each parameter once."""
    found = {
        id(parameter): parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    return list(found.values())


def _shown(returned: Any, factor: float, device: torch.device) -> Any:
    """What the step returned, with a loss whose backward pass reaches no parameter."""
    loss = loss_of(returned)
    anchor = torch.zeros((), device=device, requires_grad=True)
    shown = anchor + (torch.zeros((), device=device) if loss is None else factor * loss.detach())
    return {**returned, "loss": shown} if isinstance(returned, Mapping) else shown


def _reduced_by_nobody() -> Callable[..., Any]:
    told: list[bool] = []

    def reduce(tensor: Any, *_: Any, **__: Any) -> Any:
        if not told:
            told.append(True)
            warnings.warn(
                MemguardWarning(
                    "training_step logs with sync_dist=True",
                    "processes run it at different times and cannot wait for each other, so that each logs its own "
                    "number",
                    "log without sync_dist in training_step, or in on_train_epoch_end",
                ),
                stacklevel=2,
            )
        return tensor

    return reduce


def _not_gathered(*_: Any, **__: Any) -> NoReturn:
    raise PrivacyError(
        "training_step gathers from the other processes",
        "what a patient contributes would depend on theirs, and cannot be clipped",
        "let a record's loss depend on that record alone",
    )


def _summed(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor
