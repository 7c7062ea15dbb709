"""Callbacks that weigh records or tokens by rules fixed before the first step: no monitor is needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
from typing_extensions import override

from memguard.callbacks.following import missed
from memguard.callbacks.monitor import LeakageMonitor
from memguard.callbacks.stated import Stated, callbacks_of
from memguard.capture import Capture
from memguard.capture.sides import batch_key
from memguard.capture.weigh import Weigher, WeightRule
from memguard.errors import MemguardError, MemguardWarning, PrivacyError

__all__ = ["Weighing", "check_weighable"]


class WeighingCallback(Protocol):
    """A callback that weighs records or tokens.

    Attributes:
        weights_depend_on: ``"record"``: weights follow from the record itself, and compose with DP-SGD. ``"data"``:
            from the records of others too, which voids its claim.
    """

    weights_depend_on: Literal["record", "data"]


def check_weighable(callback: WeighingCallback, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse a fit in which weights cannot be applied, or would void a promise.

    Raises:
        PrivacyError: For weights that depend on the data of others beside `DPSGD`.
        MemguardError: With manual optimization.
    """
    name = type(callback).__name__
    private = any(isinstance(one, Stated) for one in callbacks_of(trainer))
    if callback.weights_depend_on != "record" and private:
        raise PrivacyError(
            f"{name} beside DPSGD in one Trainer",
            "weights that depend on the data of others void the guarantee of differential privacy",
            f"take {name} or DPSGD out of callbacks=",
        )
    if not getattr(pl_module, "automatic_optimization", True):
        raise MemguardError(
            f"{name} on {type(pl_module).__name__}, which has manual optimization",
            "its backward pass may be over before weights can be applied",
            "set automatic_optimization = True, or weigh the losses in training_step",
        )


class Weighing(pl.Callback):
    """What these callbacks share: one rule for the weigher of the run, whoever listens to its steps.

    A LeakageMonitor listens already; without one the first of these callbacks does, to the training steps alone.

    Args:
        record_ids: As :class:`~memguard.LeakageMonitor` takes it; read where there is no monitor.
        train_loader: As the monitor takes it; read where there is none.

    Attributes:
        weights_depend_on: As in `WeighingCallback`.
    """

    weights_depend_on: Literal["record", "data"] = "data"
    record_to_patient: Any = None

    def __init__(
        self,
        record_ids: str | Callable[[Any], Any] | None = None,
        train_loader: str | int | None = None,
    ) -> None:
        self.record_ids, self.train_loader = record_ids, train_loader
        self._own: Capture | None = None
        self._monitor: LeakageMonitor | None = None
        self._weigher: Weigher | None = None

    # -- what differs --------------------------------------------------------------------------------------

    def said(self) -> str:
        """What is done, in a sentence for reports; begins with the callback's name."""
        raise NotImplementedError

    def _rule(self, trainer: pl.Trainer, capture: Capture) -> WeightRule:
        """What gives the weights of this fit."""
        raise NotImplementedError

    # -- the life of a fit ---------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._end()
        check_weighable(self, trainer, pl_module)
        callbacks = callbacks_of(trainer)
        self._monitor = next((one for one in callbacks if isinstance(one, LeakageMonitor)), None)
        others = [one for one in callbacks if isinstance(one, Weighing)]
        if self._monitor is None and others[0] is self:
            keys = [batch_key(one.record_to_patient) for one in others]
            self._own = Capture(
                record_ids=next((one.record_ids for one in others if one.record_ids is not None), None),
                record_to_patient=next((key for key in keys if key is not None), None),
                train_loader=next((one.train_loader for one in others if one.train_loader is not None), None),
            )
            self._own.install(trainer, pl_module)
            self._own.steps.enabled["val"] = False

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Every callback's setup is over: whoever listens does so by now, wherever it stands in the list.
        callbacks = callbacks_of(trainer)
        if self._monitor is not None:
            capture = self._monitor.capture
        else:
            capture = next((one._own for one in callbacks if isinstance(one, Weighing) and one._own), None)
        if capture is None:
            raise MemguardError(
                f"{type(self).__name__} was put into callbacks= after training had been set up",
                "nobody listens to the training steps",
                "pass it to Trainer(callbacks=)",
            )
        capture.verify()
        rule = self._rule(trainer, capture)
        self._weigher = capture.steps.weigher = capture.steps.weigher or Weigher()
        self._weigher.private = any(isinstance(one, Stated) for one in callbacks)
        self._weigher.rules.append(rule)
        self._tell()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        said = self._missed()
        if said:
            warnings.warn(
                MemguardWarning(
                    f"{type(self).__name__}:{said}", "the model learned from them as they were", ""
                ),
                stacklevel=2,
            )

    def _missed(self) -> str:
        """What was trained on without the weights, in words; empty where nothing was."""
        return missed(self._weigher, self._own if self._monitor is None else self._monitor.capture)

    def _tell(self) -> None:
        if self._monitor is not None and self._weigher is not None:
            self._monitor.mitigated(type(self).__name__, self.said() + self._missed())

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._end()

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Leave trainer, strategy and loaders as they were; idempotent."""
        if self._own is not None:
            self._own.restore()
        self._own = self._monitor = self._weigher = None
