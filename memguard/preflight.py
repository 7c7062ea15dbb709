"""Two batches of a run, to see which route everything takes before a long training depends on it."""

from __future__ import annotations

import copy
import tempfile
import warnings
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from memguard.callbacks.monitor import LeakageMonitor
from memguard.capture.sides import FEWEST_HELD_OUT
from memguard.capture.stillness import forked_rng
from memguard.errors import MemguardError, MemguardWarning
from memguard.records.surrogate import MIN_HELD_OUT

__all__ = ["CheckResult", "check"]


@dataclass
class CheckResult:
    """Which route each thing takes, or what to add.

    Attributes:
        found: Thing -> the route that was found.
        missing: Thing -> what stands in the way, and the argument that helps.
        cautions: Warnings that the run will give.

    Example:
        >>> result = CheckResult(found={"records": "dataset positions"}, missing={"loss": "pass per_record_loss="})
        >>> result.ok
        False
        >>> print(result)
        records   dataset positions
        loss      MISSING: pass per_record_loss=
    """

    found: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether `LeakageMonitor` can watch this run."""
        return not self.missing

    def __str__(self) -> str:
        rows = [*self.found.items(), *((name, f"MISSING: {why}") for name, why in self.missing.items())]
        width = max((len(name) for name, _ in rows), default=0) + 3
        lines = [f"{name:<{width}}{text}" for name, text in rows]
        return "\n".join([*lines, *(f"{'caution':<{width}}{text}" for text in self.cautions)])


def check(
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule | None = None,
    *,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    monitor: LeakageMonitor | None = None,
    verbose: bool = True,
) -> CheckResult:
    """Run two training and two validation batches on a copy of the model, and say what the monitor would see.

    Args:
        model: As it goes into ``Trainer.fit``; it is copied and not touched.
        datamodule: As it goes into ``Trainer.fit``; its ``prepare_data`` and ``setup`` run.
        train_dataloaders: In place of a datamodule.
        val_dataloaders: In place of a datamodule.
        monitor: With the arguments that the run will use; a default one when not given.
        verbose: Whether to print the result.

    Returns:
        Routes, gaps and cautions. Nothing is raised for a run that cannot be watched: that is the answer.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> result = check(BoringModel(), verbose=False)
        >>> result.ok, result.found["records"]
        (True, 'dataset positions: 64 records')
    """
    result = CheckResult()
    watching = copy.deepcopy(monitor) if monitor is not None else LeakageMonitor()
    listener = _Listener(watching, result)
    before = None if datamodule is None else datamodule.trainer
    with (
        warnings.catch_warnings(record=True) as caught,
        forked_rng(None),
        tempfile.TemporaryDirectory() as folder,
    ):
        watching.write_to(folder)
        watching.on_problem, watching.audit_on_end = "raise", False
        warnings.simplefilter("always")
        try:
            trainer = pl.Trainer(
                max_epochs=1,
                limit_train_batches=2,
                limit_val_batches=2,
                num_sanity_val_steps=0,
                devices=1,
                logger=False,
                callbacks=[watching, listener],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(copy.deepcopy(model), train_dataloaders, val_dataloaders, datamodule)
        except MemguardError as error:
            result.missing.setdefault(_what(error), str(error))
        finally:
            if datamodule is not None:
                datamodule.trainer = before
    for warning in caught:
        text = str(warning.message)
        if isinstance(warning.message, MemguardWarning) and text not in result.cautions:
            result.cautions.append(text)
    if verbose:
        print(result)
    return result


class _Listener(Callback):
    """Reads the routes off the monitor after each step."""

    def __init__(self, monitor: LeakageMonitor, result: CheckResult) -> None:
        self.monitor, self.result = monitor, result

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        capture = self.monitor._capture
        seen = None if capture is None else capture.last_train
        if capture is None or seen is None:
            self.result.missing.setdefault("loss", "the training step gave no loss to listen to")
            return
        self.result.missing.pop("loss", None)
        found = self.result.found
        found["loss"] = f"{seen.route} ({seen.unit})"
        found["records"] = f"{capture.route}: {capture.tracker.n_records('train'):,} records"
        try:
            content = seen.content()
        except MemguardError as error:
            self.result.cautions.append(str(error))
        else:
            kind = "codes" if "codes" in content else "features"
            found["contents"] = (
                f"{content[{'codes': 'codes', 'features': 'x'}[kind]].shape[1]} {kind} a record"
            )
        self._sides()

    def _sides(self) -> None:
        session = self.monitor._session
        watch = None if session is None else session.watch
        if watch is None or session is None:
            return
        ours, theirs = watch.members.patients, watch.held_out.patients
        self.result.found["patients"] = f"{ours.n_patients:,} {ours.unit}s from {ours.source}"
        enough = theirs.n_patients >= FEWEST_HELD_OUT
        text = f"{theirs.n_patients:,} {theirs.unit}s from {theirs.source}"
        if enough:
            self.result.found["held out"] = text
        else:
            self.result.missing["held out"] = (
                f"{text}; at least {FEWEST_HELD_OUT}, better {MIN_HELD_OUT}, are needed"
            )

    @override
    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        monitor = self.monitor
        if monitor._capture is None or monitor._session is None or not monitor._session.source.free:
            return
        seen = monitor._capture.last_val(monitor._session.source.dataloader_idx)
        if seen is not None:
            self.result.found["held-out loss"] = seen.route


def _what(error: MemguardError) -> str:
    names = {
        "AmbiguousLossError": "loss",
        "IndexTrackingError": "records",
        "PatientOverlapError": "patients",
        "HeldOutError": "held out",
        "DataError": "patients",
    }
    return names.get(type(error).__name__, "run")
