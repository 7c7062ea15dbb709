"""Stopping on leakage as a Lightning callback: the monitor's looks in, the end of training and the best weights out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from typing_extensions import override

from memguard.callbacks.following import monitor_of
from memguard.callbacks.gather import everybody, rank
from memguard.callbacks.guard import warn
from memguard.callbacks.limited import LimitedNumber, planned_looks
from memguard.callbacks.monitor import LeakageMonitor
from memguard.callbacks.stated import Stated, callbacks_of
from memguard.callbacks.under_limit import KeptWeights, require_safetensors
from memguard.capture.weights import weights_hash
from memguard.errors import DataError, MemguardError
from memguard.mitigations.looks import confidence_of
from memguard.mitigations.stopping import Judged, StoppingRule
from memguard.privacy.guards.finding import Finding
from memguard.privacy.guards.static_callbacks import is_a
from memguard.privacy.run import PrivateRun
from memguard.probes.look import Look

__all__ = ["LeakageStopping"]

_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")
_WHY = (
    "then depends on losses of training patients, without noise and outside of their epsilon, and on those of held-out "
    "patients, who have no guarantee at all"
)
_INSTEAD = "plan a fixed number of steps, or release the model knowing that the choice is not covered"


class LeakageStopping(pl.Callback):
    """Stop training when a bound of leakage passes a limit, and go back to the best weights that were under it.

    It judges each look of a `LeakageMonitor`, which stands before it in ``callbacks=``, also those inside an epoch: at
    the ``patience``-th look in a row over the limit the Trainer is told to stop, which it does at once, or as soon as
    its ``min_epochs`` and ``min_steps`` are reached. The weights of the best look under the limit lie in memory, in
    every checkpoint that the Trainer writes, and in a file that its owner alone can read; when ``fit`` ends they are
    put back into the module. If no look was under the limit, nothing is kept, a warning says so, and the module has its
    last weights.

    What ``bound`` says: ``"low"``, the default, stops where leakage *is shown* to be above the limit; below, it may
    still be there. ``"high"`` demands that it is *shown to be under* it, which takes many held-out patients.
    ``"value"`` is the estimate itself, which chance moves from look to look.

    Logged metrics: ``memguard/leakage_stopping/<number>/bound`` as it was compared, ``.../limit``, and
    ``.../over_in_a_row``. Numbers of fewer than the monitor's ``min_cell`` patients are neither judged nor logged.

    Args:
        limit: Of the bound. At the limit is under it.
        of: ``"membership.auc"``, ``"membership.tpr_at_fpr_0.01"`` (any of the monitor's ``fprs=``),
            ``"memorized_share"``, or a number of a probe in the monitor's ``probes=`` as it is logged,
            ``"<probe>/<number>"``.
        bound: Which end of the interval is compared: ``"low"``, ``"high"`` or ``"value"``.
        patience: Looks in a row over the limit after which to stop; looks and not epochs. Looks that did not measure
            the number are passed over.
        over_looks: Make the bounds of all looks hold together, at 95 %: each look gets a share of the error, .9 over
            the number of planned looks. Without it each interval is that of the curve, which holds for one look named
            beforehand and not for the first of many that passes a limit.
        utility: Logged metric by which the best look is chosen, as it was measured in the validation at that step; by
            default the loss of the held-out patients in the look itself, of a sample of them inside an epoch.
        mode: Whether the best utility is the smallest (``"min"``) or the largest (``"max"``).
        restore: Whether the module gets the best weights when ``fit`` ends. Report, flags and curve are about the
            weights of each look, the last ones at the end: audit the module after ``fit``.
        save: Whether to write the best weights to ``best_path``, as safetensors.
        dirpath: Folder of that file, by default the monitor's.
        monitor: Whose looks, where the Trainer has several monitors.

    Raises:
        MemguardError: For a limit out of range, a number that nobody measures, and whatever else cannot work; mostly at
            the start of ``fit``.

    Guarantees:
        None about leakage, and none to a patient. With ``over_looks=True`` and an end of the interval: with probability
        at least 95 % every bound of the run holds, so that with ``"low"`` the run was not stopped by chance, and with
        ``"high"`` the number of the kept weights is under the limit; as far as the intervals of single looks keep
        their level, and training does not react to the held-out patients in other ways. They are exact for AUC,
        TPR and memorized share, and stretched for probes (`memguard.mitigations.looks.wider`).

    References:
        Spending the error over looks: Lan and DeMets, Biometrika 70, 1983.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> stopping = LeakageStopping(0.6, patience=2, save=False)
        >>> trainer = Trainer(callbacks=[LeakageMonitor(), stopping], logger=False, enable_checkpointing=False)
        >>> stopping.best is None, stopping.stopped is None
        (True, True)

    Note:
        A limit on an average is no protection for the few. Measured against attacks with reference models
        (``docs/results/mitigations.md``): on a synthetic cohort a limit of .6 hides ordinary patients, at a loss far
        higher, and unique ones are still found three times in four. The same on real patients for the model that
        ordinary early stopping would ship (`python -m benchmarks.ranking.nafld --seed 20262 --models 10 --tails`): at
        its best held-out epoch an attack by the loss, which is what the curve is, has an AUC of .60 and finds none of
        the patients with a code that three or fewer have, at 1 % false positives; LiRA finds 88 % of them. An AUC
        is an average over everybody, and says little of the few. ``of="memorized_share"`` looks at who stands out
        instead, and leans low too. A split that is not fair by itself (``memguard/blind_auc`` above .5)
        passes a limit without any leakage.

        Beside `DPSGD` it is allowed: epsilon holds for every step that was taken. When to stop and which weights to
        keep are chosen with private data outside of epsilon; ledger and statement say so.
    """

    def __init__(
        self,
        limit: float,
        *,
        of: str = "membership.auc",
        bound: Literal["low", "high", "value"] = "low",
        patience: int = 1,
        over_looks: bool = True,
        utility: str | None = None,
        mode: Literal["min", "max"] = "min",
        restore: bool = True,
        save: bool = True,
        dirpath: str | Path | None = None,
        monitor: LeakageMonitor | None = None,
    ) -> None:
        self.rule = StoppingRule(limit=limit, patience=patience, mode=mode)
        self.number = LimitedNumber(of)
        self.number.check(limit)
        if bound not in ("low", "high", "value"):
            raise MemguardError(
                f"bound={bound!r}", "no number can be compared", 'pass "low", "high" or "value"'
            )
        if utility is None and mode == "max":
            raise MemguardError(
                'mode="max" without utility=', "the best loss is the smallest", "name a metric in utility="
            )
        if save:
            require_safetensors()  # refused now and not at the first look
        self.bound, self.over_looks, self.utility = bound, over_looks, utility
        self.restore, self.save, self.monitor = restore, save, monitor
        self.dirpath = None if dirpath is None else Path(dirpath)
        self._begin()

    def _begin(self) -> None:
        """Forget the last fit."""
        self._watched: LeakageMonitor | None = None
        self._seen: Look | None = None
        self._looks: list[Judged] = []
        self._kept = KeptWeights()
        self._planned: int | None = None
        self._state: dict[str, Any] | None = None
        self._validated = -1
        self._said = ""
        self._entered = False

    # -- what was found ------------------------------------------------------------------------------------

    @property
    def looks(self) -> list[Judged]:
        """Every look that had the number, as it was judged."""
        return list(self._looks)

    @property
    def best(self) -> Judged | None:
        """The best look under the limit; ``None`` where no look was."""
        return self.rule.best(self._looks)

    @property
    def stopped(self) -> Judged | None:
        """The look at which the Trainer was told to stop; ``None`` where it was not."""
        return self.rule.stopped_at(self._looks)

    @property
    def best_path(self) -> Path | None:
        """The file with the weights of `best`; ``None`` where there is none, and on other processes than the first."""
        return self._kept.path

    @property
    @override
    def state_key(self) -> str:
        # What was judged by another rule is not gone on with: Lightning then says that it found no state.
        return self._generate_state_key(
            of=self.number.key, bound=self.bound, limit=self.rule.limit, over_looks=self.over_looks,
            utility=self.utility, mode=self.rule.mode,
        )  # fmt: skip

    # -- the life of a fit ---------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._begin()
        callbacks = callbacks_of(trainer)
        monitor = monitor_of(trainer, "LeakageStopping", "judges the looks", self.monitor)
        if callbacks.index(monitor) > callbacks.index(self):
            raise MemguardError(
                "LeakageStopping before its LeakageMonitor in callbacks=",
                "it would hear of a look when the weights have moved on",
                "put the monitor first",
            )
        self.number.check_monitor(monitor)
        kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
        if kinds & set(_SHARDED):
            raise MemguardError(
                f"LeakageStopping under {min(kinds & set(_SHARDED))}",
                "no process holds the whole model, so the best weights cannot be kept",
                "use EarlyStopping and ModelCheckpoint on the monitor's metrics instead",
            )
        if self.restore:
            self._check_restore(callbacks, monitor)
        if any(isinstance(one, Stated) for one in callbacks):
            for finding in self._findings():
                warn(finding.seen, finding.why, finding.fix)
        if not getattr(trainer, "fast_dev_run", False):
            self._watched = monitor

    def _check_restore(self, callbacks: list[pl.Callback], monitor: LeakageMonitor) -> None:
        """Who else would have the last word on the weights, or speak of others."""
        others = [
            type(one).__name__
            for one in callbacks
            if (isinstance(one, LeakageStopping) and one is not self and one.restore)
            or any(is_a(one, name) for name in _AVERAGING)
        ]
        if others:
            raise MemguardError(
                f"LeakageStopping(restore=True) beside {others[0]}",
                "both put weights into the module at the end, and only one can have the last word",
                "pass restore=False to LeakageStopping",
            )
        if monitor.audit_on_end:
            raise MemguardError(
                "LeakageStopping(restore=True) on a monitor with audit_on_end=",
                "the audit would be about the last weights, and not about those that are put back after it",
                "call memguard.audit after fit, or pass restore=False",
            )

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._watched is None:
            return
        state, self._state = self._state, None
        if state is None:
            self._planned = planned_looks(trainer, self._watched, self.number) if self.over_looks else None
            return
        if state.get("version") != 1:
            raise DataError(
                "a checkpoint with a LeakageStopping of another version",
                "its looks cannot be read",
                "resume with the version of the run, or take the callback's state out of the checkpoint",
            )
        self._planned = state["planned"]
        self._looks = [Judged.of(one) for one in state["looks"]]
        self._kept.load_state_dict(state["weights"])
        self._settle(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._watched is None or self._entered:
            return
        self._entered = True  # every ledger is open by now, wherever its callback stands
        for run in _private_runs(trainer):
            for finding in self._findings():
                run.note(finding)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._take(trainer, math.nan):
            self._settle(trainer, pl_module)
            self._log(pl_module, on_step=True)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validated = trainer.global_step
        if self._take(trainer, math.nan):  # the module may log its metrics only after this hook
            self._settle(trainer, pl_module)
            self._log(pl_module, on_step=False)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        looks = self._looks
        if trainer.sanity_checking or self._watched is None or self.utility is None or not looks:
            return
        if looks[-1].step == trainer.global_step:
            looks[-1] = replace(looks[-1], utility=self._metric(trainer))
            self._settle(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._take(trainer, math.nan if self.utility is None else self._fresh(trainer)):
            self._settle(trainer, pl_module)
            self._log(pl_module, on_step=False)
        if self._watched is not None:
            self._tell(self._watched)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor = self._watched
        if monitor is None:
            return
        said = self._said
        if self._take(trainer, math.nan if self.utility is None else self._fresh(trainer)):
            self._settle(trainer, pl_module)  # by the final look, which saw more members of the same weights
        self._tell(monitor)
        if not self._looks:
            warn(
                f"LeakageStopping judged no look: none had {self.number.key}, or of fewer patients than may be shown",
                "training was not stopped, nothing was kept, and what the last weights leak is not known",
                "look at the notes of the monitor's report; hold out more patients (memorized_share needs 100), or "
                "look more often",
            )
        elif self.best is None:
            warn(
                f"no look was under the limit {self.rule.limit:g} on {self.number.key} ({self.bound}; "
                f"{len(self._looks)} looks)",
                "nothing was kept, and the module has its last weights: they were not under the limit",
                "look earlier with every_n_steps= of the monitor, or train with DPSGD",
            )
        elif said and said != self._said:
            warn(
                "the final look changed what LeakageStopping decides",
                f"the report was written before; it now holds: {self._said}",
                "",
            )

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not in on_train_end: what other callbacks measure and hash there is of the last weights.
        best = self.best
        if self._watched is None or best is None or not self.restore:
            return
        self._kept.put_back(best.step, pl_module)
        for run in _private_runs(trainer):
            for finding in self._findings():
                if finding.id == "static/checkpoint":
                    run.write(
                        "monitored_checkpoint",
                        id=finding.id,
                        seen=finding.seen,
                        why=finding.why,
                        weights=weights_hash(pl_module),
                    )

    # -- one look ------------------------------------------------------------------------------------------

    def _take(self, trainer: pl.Trainer, utility: float) -> bool:
        """Judge the newest look, if it was not judged yet and has the number."""
        monitor = self._watched
        look = None if monitor is None or monitor.watch is None else monitor.last_look
        if monitor is None or look is None or look is self._seen:
            return False
        self._seen = look
        found = self.number.read(monitor, look)
        if found is not None and self.over_looks and self.bound != "value":
            found = self.number.at(monitor, found, confidence_of(len(self._looks) + 1, self._planned))
        bound = math.nan if found is None else float(getattr(found, self.bound))
        if self.utility is None and look.membership is not None:
            utility = look.membership.held_out_loss
        elif self._looks and self._looks[-1].step == look.step and math.isnan(utility):
            utility = self._looks[-1].utility  # the same weights, measured before
        bound, utility = everybody((bound, utility))[0]  # one decision for all processes
        if math.isnan(bound):
            return False
        self._looks.append(self.rule.judge(epoch=look.epoch, step=look.step, bound=bound, utility=utility))
        return True

    def _settle(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep, let go and stop, as the looks so far say."""
        if not self._looks:
            return
        self._kept.keep(self.rule.to_keep(self._looks), self._looks[-1].step, module)
        self._write()
        if self.stopped is not None:
            trainer.should_stop = True
        if self._watched is not None:
            self._tell(self._watched)

    def _fresh(self, trainer: pl.Trainer) -> float:
        """The metric, where it is of these weights."""
        fresh = self._validated == trainer.global_step or not trainer.enable_validation
        return self._metric(trainer) if fresh else math.nan

    def _metric(self, trainer: pl.Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.utility not in metrics:
            raise MemguardError(
                f"utility={self.utility!r}, which was not logged",
                "the best look under the limit cannot be chosen",
                f"log it in validation, or pass one of {', '.join(sorted(metrics))}",
            )
        return float(everybody(float(metrics[self.utility]))[0])

    def _log(self, module: pl.LightningModule, *, on_step: bool) -> None:
        key = f"memguard/leakage_stopping/{self.number.key}"
        values = {
            "bound": self._looks[-1].bound,
            "limit": float(self.rule.limit),
            "over_in_a_row": float(self.rule.in_a_row(self._looks)),
        }
        for name, value in values.items():
            if math.isfinite(value):  # every rank has the same number: there is nothing to reduce
                module.log(
                    f"{key}/{name}", value, on_step=on_step, on_epoch=not on_step, batch_size=1, sync_dist=False
                )  # fmt: skip

    # -- words ---------------------------------------------------------------------------------------------

    def _tell(self, monitor: LeakageMonitor) -> None:
        begins = f"LeakageStopping on {self.number.key}: "
        held = "all looks together" if self.over_looks else "each look by itself"
        end = {"low": "lower end", "high": "upper end", "value": "value"}[self.bound]
        of = end if self.bound == "value" else f"{end} at 95 %, for {held}"
        best, stopped = self.best, self.stopped
        said = f"{begins}limit {self.rule.limit:g} ({of}), {len(self._looks)} looks."
        if stopped is not None:
            said += f" Training was told to stop at epoch {stopped.epoch:g} (step {stopped.step})."
        if best is None and not self._looks:
            said += " No look had the number: nothing was judged, and no weights were kept."
        elif best is None:
            said += " No look was under the limit, and no weights were kept."
        else:
            back = ", and are put back into the module after this report was written" if self.restore else ""
            said += f" The weights of epoch {best.epoch:g} (step {best.step}) are kept{back}."
        self._said = f"{said} This depends on the data and gives no guarantee."
        monitor.mitigated(begins, self._said)

    def _findings(self) -> Iterator[Finding]:
        """What is outside of an epsilon."""
        what = f"LeakageStopping on {self.number.key!r}"
        for name, acts_on in (
            ("static/early_stopping", "the number of steps"),
            ("static/checkpoint", "which weights are kept"),
        ):
            yield Finding(name, what, f"{acts_on} {_WHY}", _INSTEAD, severity="ledger", warn=True)

    # -- files and state -----------------------------------------------------------------------------------

    def _write(self) -> None:
        """Let the file have the best weights, or none."""
        best, monitor = self.best, self._watched
        if not self.save or monitor is None or rank() != 0:
            return
        folder = self.dirpath or monitor.dirpath or Path("memguard-watch")
        path = folder / f"under-limit-{self.number.key.replace('/', '.')}.safetensors"
        about = {"of": self.number.key, "end": self.bound, "limit": self.rule.limit}
        self._kept.write(
            None if best is None else best.step, path, about if best is None else {**about, **best.as_dict()}
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._state is not None:  # loaded, and no training has begun
            return self._state
        if not self._looks:
            return {}
        return {
            "version": 1,
            "planned": self._planned,
            "looks": [look.as_dict() for look in self._looks],
            "weights": self._kept.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _private_runs(trainer: pl.Trainer) -> list[PrivateRun]:
    """Books of the private trainings in a Trainer, that are open."""
    found = [one.books for one in callbacks_of(trainer) if isinstance(one, Stated)]
    return [run for run in found if run is not None]
