"""A Trainer with its loaders and a copy of the audited model in it: where records can be read and losses measured.

Whatever a user's datamodule, batch hooks, precision and validation step do, they do here as they did in training,
since a Trainer calls them. One training batch runs on the copy, which shows how the loss is made; then the copy gets
the audited weights back.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from memguard.capture.heldout import HeldOutSource
from memguard.capture.session import Capture
from memguard.capture.sides import batch_key
from memguard.capture.stillness import forked_rng
from memguard.errors import AmbiguousLossError, DataError, MemguardError

__all__ = ["LiveRun", "fails_on", "in_a_run"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """What can be asked of a run that is under way.

    Attributes:
        trainer: Of the run.
        module: With the audited weights.
        capture: Installed in the run; it has seen a training step.
        source: Of the held-out patients.
        record_to_patient: As the user gave it.
        loader: The user's training loader, where the run trains with another one; ``None`` where it does not.
    """

    trainer: pl.Trainer
    module: pl.LightningModule
    capture: Capture
    source: HeldOutSource
    record_to_patient: Any = "auto"
    loader: Any = None


def in_a_run(
    model: pl.LightningModule,
    data: Any,
    work: Callable[[LiveRun], T],
    *,
    heldout: Any = "val",
    record_to_patient: Any = "auto",
    per_record_loss: Any = None,
    record_ids: Any = None,
    precision: Any = None,
) -> T:
    """Do some work inside a run on a copy of the model.

    Args:
        model: Trained; it is copied and not touched.
        data: A LightningDataModule, or a pair of loaders ``(train, held out)``.
        work: Takes the live run; what it returns is returned.
        heldout: As `LeakageMonitor` takes it.
        record_to_patient: As `LeakageMonitor` takes it.
        per_record_loss: As `LeakageMonitor` takes it.
        record_ids: As `LeakageMonitor` takes it.
        precision: Of the Trainer with which the model was trained; full precision when not given.

    Raises:
        DataError: If ``data`` is neither.
        MemguardError: Whatever `Capture` and the work refuse.
    """
    if isinstance(heldout, str) and not is_overridden("validation_step", model) and _paired(data):
        heldout = data[1]  # a Trainer would pass over a validation loader that no step of the module takes
    datamodule, loaders = _split(data, heldout)
    copied = copy.deepcopy(model).train()
    weights = {name: value.detach().clone() for name, value in copied.state_dict().items()}
    capture = Capture(
        per_record_loss, record_ids, record_to_patient=batch_key(record_to_patient), on_problem="raise"
    )
    source = HeldOutSource(heldout, capture)
    hook = _Work(capture, source, record_to_patient, weights, work)
    # The user's own callbacks would log, stop or save: this run is none of their business.
    object.__setattr__(copied, "configure_callbacks", list)
    before = None if datamodule is None else datamodule.trainer
    quiet = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = quiet.level
    with warnings.catch_warnings(), forked_rng(None):
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", ".*but have no `val(idation_step|_dataloader)`.*")
        quiet.setLevel(logging.ERROR)
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=1,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            accelerator="cpu" if model.device.type == "cpu" else "auto",
            devices=1,
            precision=precision,
            logger=False,
            callbacks=[hook],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(copied, loaders[0], loaders[1], datamodule)
        except MemguardError:
            raise
        except Exception as error:
            if hook.begun or isinstance(error, Warning):
                raise
            raise fails_on("a training batch", error) from error
        finally:
            quiet.setLevel(level)
            if datamodule is not None:
                datamodule.trainer = before
    if not hook.done:
        raise hook.failure()
    return hook.result[0]


def fails_on(what: str, error: Exception) -> DataError:
    """What a fault of the user's own module or data means for an audit."""
    return DataError(
        f"the model fails on {what} ({type(error).__name__}: {str(error)[:200]})",
        "no loss can be measured; a token outside of its vocabulary, for example, comes of another tokenizer",
        "pass the module and the data of the training, prepared as they were for it",
    )


class _Work(pl.Callback, Generic[T]):
    """Does the work when the Trainer has everything."""

    def __init__(
        self,
        capture: Capture,
        source: HeldOutSource,
        record_to_patient: Any,
        weights: dict[str, Any],
        work: Callable[[LiveRun], T],
    ) -> None:
        self.capture, self.source, self.record_to_patient = capture, source, record_to_patient
        self.weights, self.work = weights, work
        self.result: list[T] = []
        self.begun = False
        self.batches = 0

    @property
    def done(self) -> bool:
        return bool(self.result)

    def failure(self) -> MemguardError:
        """Why the work was never begun."""
        if not self.batches:
            return DataError(
                "a training loader without batches",
                "there are no members to audit",
                "pass the data that the model was trained on",
            )
        return AmbiguousLossError(
            "a run that ended before its first training step",
            "nothing is known of the losses",
            "pass per_record_loss=",
        )

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.capture.install(trainer, pl_module)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.capture.verify()

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.batches += 1

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.batches:
            return
        pl_module.load_state_dict(self.weights)
        self.begun = True
        run = LiveRun(
            trainer=trainer,
            module=pl_module,
            capture=self.capture,
            source=self.source,
            record_to_patient=self.record_to_patient,
        )
        self.result.append(self.work(run))

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.capture.restore()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.capture.restore()


def _paired(data: Any) -> bool:
    return isinstance(data, tuple | list) and len(data) == 2


def _split(data: Any, heldout: Any) -> tuple[pl.LightningDataModule | None, tuple[Any, Any]]:
    if isinstance(data, pl.LightningDataModule):
        return data, (None, None)
    if isinstance(data, tuple | list) and 1 <= len(data) <= 2:
        train, held = (*data, None)[:2]
        return None, (train, held if isinstance(heldout, str) else None)
    raise DataError(
        f"data of type {type(data).__name__}",
        "an audit needs the training records and records that the model never saw",
        "pass the LightningDataModule of the training, or a pair of loaders (train, held_out)",
    )
