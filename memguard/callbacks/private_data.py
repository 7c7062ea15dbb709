"""The training loader of a fit, with patients drawn by chance in the place of its batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memguard.callbacks.gather import n_ranks, rank
from memguard.capture.evaluation import to_device
from memguard.capture.ids import IndexTracker, Positions
from memguard.capture.shadow import Shadows
from memguard.errors import IndexTrackingError, PrivacyError
from memguard.privacy.checks import refuse
from memguard.privacy.guards.static_loaders import scan_loaders
from memguard.privacy.loader import EachAlone, offered, private_loader, reader
from memguard.privacy.noise import entropy
from memguard.privacy.pace import Pace, done_in_epoch, planned_steps
from memguard.privacy.plan import Plan, make_plan
from memguard.privacy.run import RunSettings, delta_for, rates_for
from memguard.privacy.sampling import PatientSampler
from memguard.records.patients import PatientMap, resolve_patients

__all__ = ["PrivateData"]

_TRAINER = ("accumulate_grad_batches", "limit_train_batches", "val_check_interval")


class PrivateData:
    """Stands between a Trainer and its training loader.

    Args:
        trainer: Of the run.
        module: Of the run.
        settings: What was asked for.
        plan: Of the lineage that this fit goes on with, if it is a later fit of one Trainer.

    Attributes:
        plan: The public constants; ``None`` before the loader was made.
        sampler: Draws the patients; ``None`` before the loader was made.
        rates: Sample rate of each stratum.
        fixed_noise: Noise multiplier that the rates were found with; NaN where it is still to be found.
        pace: How the Trainer counts meanwhile.
        planned: Optimizer steps of the whole training; ``None`` without an end.
        owner: ``(N,)`` owner of each record of the dataset; -1 for records that are never drawn.
        seed: Entropy of the draws, the same on every process.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, settings: RunSettings, plan: Plan | None
    ) -> None:
        self.trainer, self.module, self.settings = trainer, module, settings
        self.plan: Plan | None = plan
        self.sampler: PatientSampler | None = None
        self.rates: dict[str, float] = {}
        self.fixed_noise = math.nan
        self.pace = Pace(1, 1)
        self.planned: int | None = None
        self.owner: NDArray[np.int64] = np.zeros(0, np.int64)
        self.seed = b""
        self.tracker = IndexTracker()
        self._shadows = Shadows()
        self._was: dict[str, Any] = {}
        self._given: Any = None  # the user's loader
        self._made: Any = None  # what the Trainer has instead of it

    # -- in and out ----------------------------------------------------------------------------------------

    def install(self) -> None:
        """For ``setup("fit")``."""
        strategy = self.trainer.strategy
        self._was = {name: getattr(self.trainer, name) for name in _TRAINER}
        self.seed = strategy.broadcast(entropy())
        self.tracker.install(self.trainer)
        below = strategy.process_dataloader

        def process_dataloader(dataloader: object) -> object:
            if not self.trainer.training:
                return below(dataloader)
            made = below(self._private(dataloader))
            self._given, self._made = dataloader, made
            return made

        self._shadows.put(strategy, "process_dataloader", process_dataloader)

    def restore(self) -> None:
        """Give everything back; idempotent."""
        self._shadows.restore()
        ours = self._loader_of_trainer()
        self.tracker.restore()
        if ours is not None:
            self.trainer.fit_loop._combined_loader.flattened = [self._given]  # type: ignore[union-attr]
        for name, value in self._was.items():
            setattr(self.trainer, name, value)
        self._was = {}

    def before(self) -> dict[str, Any]:
        """The user's loader, and what the Trainer was set to."""
        return {**({} if self._given is None else {"loader": self._given}), **self._was}

    def _loader_of_trainer(self) -> Any:
        """The Trainer's only training loader, if it is the one that was made here."""
        combined = self.trainer.fit_loop._combined_loader
        flat = [] if combined is None else combined.flattened
        return flat[0] if len(flat) == 1 and flat[0] is self._made and self._made is not None else None

    # -- the loader ----------------------------------------------------------------------------------------

    def _private(self, loader: Any) -> Any:
        """The user's loader with patients drawn by Poisson sampling; also tells the Trainer how to count."""
        refuse(scan_loaders(loader))
        if self._made is not None and self._loader_of_trainer() is None:
            raise several_loaders()
        some = offered(loader)
        everyone = self._patients(loader)
        patients = everyone if some is None else everyone.take(some)
        before = int(self._was["accumulate_grad_batches"])
        plan = self._planned_on(patients, loader, before)
        if self.plan is not None and self.plan.fingerprint != plan.fingerprint:
            raise PrivacyError(
                "the training data changed during the run",
                "sample rate and noise were fixed for the patients of its start",
                "train on the new data with a Trainer and a DPSGD of their own",
            )
        self.plan = plan = self.plan or plan
        self.owner = np.full(len(everyone), -1, np.int64)  # what the loader's sampler leaves out stays out
        self.owner[slice(None) if some is None else some] = (
            patients.code if plan.unit == "patient" else np.arange(len(patients))
        )
        limit = self._was["limit_train_batches"]
        pace = self.pace = Pace.of(
            steps_per_epoch=plan.steps_per_epoch, parts=plan.parts, accumulate=before, limit=limit
        )
        if self.sampler is None:
            self.planned = planned_steps(pace.steps, self.trainer.max_epochs, self.trainer.max_steps)
            delta = delta_for(self.settings, plan)
            self.rates, self.fixed_noise = rates_for(self.settings, plan, self.planned, delta)
            self.sampler = PatientSampler(
                self.owner,
                rates=plan.rates(self.rates),
                steps=pace.steps,
                chunks=plan.parts,
                max_records=plan.max_records,
                seed=self.seed,
                rank=rank(),
                world=n_ranks(),
            )
        self.trainer.accumulate_grad_batches = plan.parts
        self.trainer.limit_train_batches = 1.0
        if isinstance(self._was["val_check_interval"], int | float):
            self.trainer.val_check_interval = pace.validate_every(self._was["val_check_interval"])
        return private_loader(loader, self.sampler)

    def _patients(self, loader: Any) -> PatientMap:
        given = self.settings.record_to_patient
        if isinstance(given, Mapping):
            given = given.get("train", "auto")
        if isinstance(given, str) and given != "auto":
            raise PrivacyError(
                f"record_to_patient={given!r}, an entry of the batch",
                "patients are drawn before there is a batch",
                "pass a function position -> id, or one id for each record",
            )
        return resolve_patients(loader.dataset, len(loader.dataset), given)

    def _planned_on(self, patients: PatientMap, loader: Any, accumulate: int) -> Plan:
        settings = self.settings
        size = _batch_size(loader)
        if size is None:
            told = settings.sample_rate is not None or settings.expected_batch_size is not None
            if not (told and settings.physical_batch_size):
                raise PrivacyError(
                    f"a {type(loader).__name__} that does not tell its batch size",
                    "the sample rate follows from it",
                    "pass DPSGD(sample_rate=) or expected_batch_size=, and physical_batch_size=",
                )
            size = 1
        return make_plan(
            patients,
            unit=settings.unit,
            batch_size=size * accumulate * n_ranks(),
            sample_rate=settings.sample_rate,
            expected_batch_size=settings.expected_batch_size,
            max_records=settings.max_records,
            physical_batch_size=n_ranks()
            * (2 * size if settings.physical_batch_size is None else settings.physical_batch_size),
            strata=settings.strata,
        )

    # -- for the loop --------------------------------------------------------------------------------------

    @property
    def joins(self) -> bool:
        """Whether several records make one batch of the user's kind."""
        return not isinstance(getattr(self._made, "collate_fn", None), EachAlone)

    def check(self) -> None:
        """Refuse a Trainer whose training batches are not those that were made here; for ``on_train_start``."""
        combined = self.trainer.fit_loop._combined_loader
        if combined is None or self.plan is None or self.sampler is None:
            raise PrivacyError(
                "the training loader was made before DPSGD was set up",
                "its batches are not drawn as the accounting assumes",
                "let the Trainer of this callback make its loaders: call Trainer.fit(model, datamodule)",
            )
        if isinstance(combined.iterables, Mapping | list | tuple):
            raise several_loaders(len(combined.flattened))
        if type(self.trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
            raise PrivacyError(
                "a training_step that takes dataloader_iter",
                "it decides by itself which draws belong to a step",
                "write training_step(self, batch, batch_idx)",
            )

    def reads_once(self) -> Callable[[Sequence[int]], Any]:
        """Gives the batch of some records, on the device, past those who listen to the loader.

        Each record is read from the dataset a single time, whatever that draws at random.
        """
        read = reader(self._given, once=True)
        return lambda positions: to_device(self.trainer, self.module, read(positions))

    def alone(self, position: int) -> Any:
        """One record as a batch that goes into the step, with its position known to all who follow the loader."""
        batch = reader(self._given)([position])
        self.tracker.announce(batch, [position])
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def positions(self, batch: Any) -> Positions:
        """Which records the batch under way holds.

        Raises:
            PrivacyError: If that is not certain.
        """
        try:
            return self.tracker.positions(batch, stage="train")
        except IndexTrackingError as error:
            raise PrivacyError(
                f"a training batch whose records cannot be told: {error.seen}",
                "gradients would be clipped for the wrong patients",
                "let the Trainer pass on the batches of its loader as they come, unwrapped",
            ) from error

    def align(self, parts_then: int | None) -> None:
        """Resumed in the middle of an epoch, begin with parts that fit the Trainer's count.

        Args:
            parts_then: Of a draw, when the checkpoint was written; ``None`` as now.
        """
        assert self.plan is not None
        assert self.sampler is not None
        loop = self.trainer.fit_loop
        if not loop.epoch_loop.restarting:
            return
        parts, progress = self.plan.parts, loop.epoch_loop.batch_progress.current
        # What the Trainer goes on from, by its own rule: a batch that it does not know to be over comes again.
        was = progress.completed + int(loop.epoch_loop.restarted_on_train_batch_end)
        now = done_in_epoch(was, parts_then or parts, parts)
        for name in ("ready", "started", "processed", "completed"):
            setattr(progress, name, getattr(progress, name) - was + now)
        if now % parts:
            self.sampler.skip = now % parts
            assert loop._data_fetcher is not None
            iter(loop._data_fetcher)  # it may hold the first part of a whole draw already


def several_loaders(n: int = 2) -> PrivacyError:
    """The error for a collection of training loaders."""
    return PrivacyError(
        f"a collection of training loaders ({n} loader{'s' if n > 1 else ''})",
        "a step then holds patients of several draws, whose rates and overlaps are unknown, or batches that DPSGD "
        "cannot put together",
        "return one DataLoader, of a torch.utils.data.ConcatDataset for several data sets",
    )


def _batch_size(loader: Any) -> int | None:
    for owner in (loader, getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        size = getattr(owner, "batch_size", None)
        if isinstance(size, int) and size > 0:
            return size
    return None
