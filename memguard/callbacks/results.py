"""What one fit has found so far: its curve, its notes, and at the end the report, the flags and the files."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import polars

from memguard.attacks.estimate import Estimate
from memguard.callbacks.guard import warn
from memguard.callbacks.outputs import (
    OutputSettings,
    curve_point,
    identifiable_note,
    logged,
    make_report,
    patient_frame,
    write_outputs,
)
from memguard.callbacks.stated import statement_of
from memguard.probes.look import Look
from memguard.probes.watch import Watch
from memguard.report.data import CurvePoint, WatchReport
from memguard.report.flags import empty_flags, most_urgent
from memguard.report.loggers import log_report
from memguard.report.private import HashedIds
from memguard.report.view import counted

if TYPE_CHECKING:
    from memguard.auditing.examine import Audit

__all__ = ["Results"]


class Results:
    """Keeps looks, logs their numbers, and writes everything down when the fit is over.

    Args:
        flag_rate: False-discovery rate of the flags.
        outputs: How results are written.

    Attributes:
        watch: ``None`` until both sides are known.
        curve: One point a look, in order of time.
        last_look: The newest look.
        notes: Caveats for the report.
        mitigations: Name -> what it did, in words.
        report: ``None`` until `write`.
        flags: Flagged patients, most urgent first; empty until `write`.
        patients: Every scored patient; empty until `write`.
        files: Name -> path of what was written.

    Example:
        >>> results = Results(flag_rate=.1, outputs=OutputSettings())
        >>> results.curve, results.flags.height, results.state_dict()
        ([], 0, {})
    """

    def __init__(self, *, flag_rate: float, outputs: OutputSettings) -> None:
        self.flag_rate, self.outputs = flag_rate, outputs
        self.watch: Watch | None = None
        self.curve: list[CurvePoint] = []
        self.last_look: Look | None = None
        self.notes: list[str] = []
        self.mitigations: dict[str, str] = {}
        self.report: WatchReport | None = None
        self.audit: Audit | None = None
        self.flags: polars.DataFrame = empty_flags()
        self.patients: polars.DataFrame = empty_flags()
        self.files: dict[str, Path] = {}
        self._clock = time.perf_counter()

    def start_clock(self) -> None:
        """Training begins now."""
        self._clock = time.perf_counter()

    def keep(self, look: Look, start: float) -> None:
        """Make the look the newest point of the curve; a second one at the same step takes the place of the first.

        Args:
            look: What was measured.
            start: Reading of ``time.perf_counter`` when measuring began.
        """
        now = time.perf_counter()
        spent, trained = now - start, start - self._clock
        probes: Mapping[str, Mapping[str, Estimate]] = {}
        if self.curve and self.curve[-1].step == look.step:
            before = self.curve.pop()
            spent, trained = spent + before.probe_seconds, before.train_seconds or 0.0
            probes = before.probes
        point = curve_point(look, self.flag_rate, probe_seconds=spent, train_seconds=trained)
        self.curve.append(replace(point, probes=probes))
        self.last_look, self._clock = look, now

    def add_probes(self, found: Mapping[str, Mapping[str, Estimate]], seconds: float) -> None:
        """Put what probes of the audit found, and what that cost, into the newest point."""
        point = self.curve.pop()
        spent = point.probe_seconds + seconds
        self.curve.append(replace(point, probes={**point.probes, **found}, probe_seconds=spent))
        self._clock = time.perf_counter()

    # -- out -----------------------------------------------------------------------------------------------

    @property
    def values(self) -> dict[str, float]:
        """The newest point by the names under which it is logged."""
        return logged(self.curve[-1], min_cell=self.outputs.min_cell)

    def log(self, module: pl.LightningModule, *, on_step: bool) -> None:
        """Log the newest point through the module, where EarlyStopping and ModelCheckpoint find it."""
        for name, value in self.values.items():
            # Every rank has computed the same number: there is nothing to reduce.
            module.log(
                name,
                value,
                on_step=on_step,
                on_epoch=not on_step,
                prog_bar=name == "memguard/membership_auc",
                batch_size=1,
                rank_zero_only=False,
                sync_dist=False,
            )

    def write(self, folder: Path | None, model: str, privacy: str = "") -> None:
        """Frame, report and files.

        Args:
            folder: Where the files go, by default ``memguard-watch/``.
            model: One line about the model.
            privacy: The statement of a private training.
        """
        assert self.watch is not None
        assert self.last_look is not None
        folder, found = folder or Path("memguard-watch"), self.last_look.memorization
        hashed = HashedIds.in_folder(folder) if self.outputs.hash_ids else None
        self.patients = patient_frame(self.watch, found, self.flag_rate, self.outputs, hashed)
        self.flags = most_urgent(self.patients, None)
        caveat = identifiable_note(self.patients, self.outputs)
        report = make_report(
            self.watch,
            self.curve,
            found,
            flag_rate=self.flag_rate,
            settings=self.outputs,
            notes=[*self.notes, *([caveat] if caveat else [])],
            model=model,
            privacy=privacy,
        )
        self.report = counted(report, self.flags)
        self.files = write_outputs(self.report, self.patients, folder)

    def finish(self, trainer: pl.Trainer, folder: Path | None, model: str) -> None:
        """Write everything, and hand the last point and the report to the run's own loggers.

        Args:
            trainer: Of the run.
            folder: Where the files go, by default ``memguard-watch/``.
            model: One line about the model.
        """
        try:
            self.write(folder, model, statement_of(trainer))
            for logger in trainer.loggers:  # self.log is closed by now
                logger.log_metrics(self.values, step=trainer.global_step)
            if self.report is not None:
                log_report(trainer.loggers, self.report, step=trainer.global_step)
        except Exception:  # a fault in a report must not cost the training that has just ended
            warn(
                f"the leakage report was not finished:\n{traceback.format_exc()}",
                "the model is trained; monitor.curve holds what was measured",
                "report this",
            )

    # -- state ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Of the watch, the curve and the notes: tensors and primitives; empty without a watch."""
        if self.watch is None:
            return {}
        curve = WatchReport(
            version="",
            created="",
            unit="patient",
            patients_source="",
            n_members=0,
            n_held_out=0,
            flag_rate=self.flag_rate,
            curve=self.curve,
        )
        return {**self.watch.state_dict(), "curve": curve.to_json(), "notes": list(self.notes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another fit stood.

        Raises:
            DataError: If the state is of other data sets, or cannot be read.
        """
        assert self.watch is not None
        self.watch.load_state_dict(state)
        self.curve = list(WatchReport.from_json(state["curve"]).curve)
        self.notes[:] = [*state["notes"]]
