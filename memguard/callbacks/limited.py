"""The number that has a limit: what it is called, what a look says of it, and at how many looks it will be asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
import numpy as np

from memguard.attacks.estimate import Estimate
from memguard.callbacks.monitor import LeakageMonitor
from memguard.errors import MemguardError
from memguard.mitigations.looks import auc_at, memorized_share_at, tpr_at, wider
from memguard.probes.look import Look

__all__ = ["LimitedNumber", "planned_looks"]

_AUC, _TPR, _SHARE, _OURS = "membership.auc", "membership.tpr_at_fpr_", "memorized_share", "memguard/"


@dataclass(frozen=True)
class LimitedNumber:
    """A number of the looks, by name.

    Attributes:
        name: ``"membership.auc"``, ``"membership.tpr_at_fpr_0.01"`` (any rate of the monitor's ``fprs=``),
            ``"memorized_share"``, or ``"<probe>/<number>"`` of a probe in the monitor's ``probes=``.

    Raises:
        MemguardError: For a name that is none of these.

    Example:
        >>> LimitedNumber("memguard/attribute/minus_held_out").key, LimitedNumber("membership.tpr_at_fpr_0.01").fpr
        ('attribute/minus_held_out', 0.01)
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise MemguardError(
                f"of={self.name!r}", "a limit would never be looked at", f"pass a name, such as {_AUC}"
            )
        if self.kind == "probe" and not all(self.key.partition("/")):
            raise self._unknown("a limit would never be looked at")
        if self.kind == "tpr" and not 0 < self.fpr < 1:
            raise self._unknown("its end is no false-positive rate")

    @property
    def key(self) -> str:
        """The name as it stands in logged keys."""
        return self.name.removeprefix(_OURS)

    @property
    def kind(self) -> Literal["auc", "tpr", "share", "probe"]:
        """How its interval is made."""
        if self.key == _AUC:
            return "auc"
        if self.key.startswith(_TPR):
            return "tpr"
        return "share" if self.key == _SHARE else "probe"

    @property
    def fpr(self) -> float:
        """False-positive rate of a true-positive rate; NaN of anything else."""
        try:
            return float(self.key.removeprefix(_TPR)) if self.kind == "tpr" else math.nan
        except ValueError:
            return math.nan

    def check(self, limit: float) -> None:
        """Refuse a limit that is passed by chance alone, or never.

        Raises:
            MemguardError: With the range that makes sense.
        """
        chance = {"auc": 0.5, "tpr": self.fpr, "share": 0.0}.get(self.kind, -math.inf)
        most = math.inf if self.kind == "probe" else 1.0
        if not chance <= limit < most:
            raise MemguardError(
                f"limit={limit:g} of {self.key}",
                f"{chance:g} is what chance gives, and no leakage goes above {most:g}",
                f"pass a limit from {chance:g} and below {most:g}",
            )

    def check_monitor(self, monitor: LeakageMonitor) -> None:
        """Refuse a number that this monitor will not measure.

        Raises:
            MemguardError: With what it will measure.
        """
        fprs, probes = monitor.settings.fprs, _probes(monitor)
        missing = (self.kind == "tpr" and self.fpr not in fprs) or (
            self.kind == "probe" and self.key.partition("/")[0] not in probes
        )
        if missing:
            has = [_AUC, *(f"{_TPR}{fpr:g}" for fpr in fprs), _SHARE, *(f"{one}/<number>" for one in probes)]
            raise self._unknown(f"the monitor measures {', '.join(has)}", "add it to fprs= or probes= of it")

    def read(self, monitor: LeakageMonitor, look: Look) -> Estimate | None:
        """The number as the look has it; ``None`` where it was not measured, or of fewer patients than may be shown.

        Raises:
            MemguardError: If looks of this kind never have it.
        """
        found: Estimate | None = None
        if self.kind == "auc":
            found = None if look.membership is None else look.membership.auc
        elif self.kind == "share":
            found = look.memorized_share
        elif self.kind == "tpr":
            rates = {} if look.membership is None else look.membership.tpr
            found = next((rate for fpr, rate in rates.items() if math.isclose(fpr, self.fpr)), None)
            if (
                found is None and look.membership is not None and float(look.epoch).is_integer()
            ):  # of everybody
                has = ", ".join([_AUC, *(f"{_TPR}{fpr:g}" for fpr in rates)])
                raise self._unknown(f"the held-out patients are too few for it, and the look has {has}")
        else:
            found = self._of_probe(monitor, look)
        if found is None or found.n < monitor.outputs.min_cell or math.isnan(found.value):
            return None
        return found

    def at(self, monitor: LeakageMonitor, estimate: Estimate, confidence: float) -> Estimate:
        """What `read` gave of the newest look, with an interval of another confidence."""
        watch = monitor.watch
        if self.kind == "auc":
            return auc_at(estimate, confidence)
        if watch is None or self.kind == "probe":
            return wider(estimate, confidence)
        inside, outside = (np.flatnonzero(np.isfinite(loss)) for loss in watch.measured)
        if self.kind == "tpr":
            return tpr_at(
                estimate,
                watch.measured[0][inside],
                watch.members.patients.code[inside],
                watch.measured[1][outside],
                watch.held_out.patients.code[outside],
                fpr=self.fpr,
                confidence=confidence,
            )
        if watch.reference is not None:  # patients whom the reference saw do not stand for strangers
            outside = outside[np.isfinite(watch.reference[1][outside])]
        n_held_out = np.unique(watch.held_out.patients.code[outside]).size
        return memorized_share_at(estimate, int(n_held_out), confidence)

    def _of_probe(self, monitor: LeakageMonitor, look: Look) -> Estimate | None:
        probe, _, part = self.key.partition("/")
        point = monitor.curve[-1] if monitor.curve else None
        numbers = {} if point is None or point.step != look.step else point.probes.get(probe, {})
        if numbers and part not in numbers:
            raise self._unknown(f"the probe has {', '.join(f'{probe}/{name}' for name in numbers)}")
        return numbers.get(part)

    def _unknown(self, why: str, fix: str = "") -> MemguardError:
        usual = f"pass {_AUC}, {_TPR}0.01, {_SHARE}, or <probe>/<number> of a probe in the monitor's probes="
        return MemguardError(f"of={self.name!r}", why, fix or usual)


def planned_looks(trainer: pl.Trainer, monitor: LeakageMonitor, number: LimitedNumber) -> int | None:
    """At how many looks the number can be measured at most; ``None`` for a training without a planned end.

    Args:
        trainer: Of the run, when training begins.
        monitor: Whose looks.
        number: Of which the looks are counted.
    """
    batches, steps = float(trainer.num_training_batches), float("inf")
    if not 0 < batches < math.inf:
        return None
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        steps = trainer.max_steps
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        steps = min(steps, trainer.max_epochs * per_epoch)
    if steps == math.inf:
        return None
    epochs, every = math.ceil(steps / per_epoch), monitor.every_n_epochs
    whole = math.ceil(epochs / every) + 1  # the last epoch counts
    if number.kind != "share" and trainer.enable_validation and trainer.val_check_batch not in (None, 0):
        whole *= max(1, math.ceil(batches / float(trainer.val_check_batch)))
    between = 0
    if monitor.every_n_steps is not None and number.kind in ("auc", "tpr"):
        between = int(steps // monitor.every_n_steps)
    return whole + between + 1  # and one when training is over


def _probes(monitor: LeakageMonitor) -> tuple[str, ...]:
    if monitor.probes is None:  # most runs: what the probes need is not even imported
        return ()
    from memguard.auditing.light import LightProbes

    return LightProbes.of(monitor.probes).names
