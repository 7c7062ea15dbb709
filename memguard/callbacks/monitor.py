"""The watch as a Lightning callback: hooks in, calls out, no arithmetic."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import polars
from typing_extensions import override

from memguard.callbacks.gather import n_ranks, rank
from memguard.callbacks.opening import batch_key
from memguard.callbacks.outputs import (
    OutputSettings,
    curve_point,
    identifiable_note,
    logged,
    make_report,
    patient_frame,
    write_outputs,
)
from memguard.callbacks.session import WatchSession
from memguard.capture import Capture
from memguard.errors import HeldOutError, MemguardError, MemguardWarning
from memguard.probes.sides import WatchSettings
from memguard.probes.watch import Look, Watch
from memguard.references.early_stopped import State, initial_state
from memguard.report.data import CurvePoint, WatchReport
from memguard.report.flags import empty_flags, most_urgent
from memguard.report.loggers import log_report
from memguard.report.private import HashedIds
from memguard.report.view import counted

__all__ = ["LeakageMonitor"]


class LeakageMonitor(pl.Callback):
    """Watch, while a model trains, how well its losses give its members away, and which patients it memorizes.

    The module, its data and its loss stay as they are, and so does every number that training computes. Losses of
    held-out patients come from the run's own validation loop, losses of members from its training steps; on top,
    a small random sample of members is evaluated at each look, because a loss taken in the middle of an epoch with
    dropout on cannot be compared with one taken at its end without.

    Logged metrics (in the hook that EarlyStopping and ModelCheckpoint read, see ``log_on``):

    ==============================  =================================================================================
    ``memguard/membership_auc``     AUC of the loss attack, sampled members against held-out patients
    ``memguard/tpr_at_fpr_0.01``    its true-positive rate at a false-positive rate of 1 % (also ``_0.1``, ``_0.001``),
                                    where the number of held-out patients supports it
    ``memguard/loss_gap``           mean held-out loss minus mean member loss
    ``memguard/flagged_patients``   patients flagged as memorized; 1 to ``min_cell - 1`` are logged as ``min_cell - 1``
    ``memguard/memorized_share``    share of the members that stand out from held-out patients (leans low)
    ``memguard/coverage``           share of the training records seen at least once
    ``memguard/surrogate_fit``      correlation of expected and actual loss on held-out patients
    ``memguard/blind_auc``          AUC of a classifier that sees the records and not the model: .5 for a fair split
    ``memguard/probe_seconds``      what this look cost
    ==============================  =================================================================================

    Args:
        heldout: ``"val"``, the run's validation loop (``"val:1"`` for its second loader); or a DataLoader or data set
            of held-out patients, which is then evaluated by the monitor, at a cost.
        record_to_patient: ``"auto"``; the name of an entry of the batch; a function ``position -> id``; a sequence of
            ids; a mapping of ``"train"`` and ``"held_out"`` to one of these; ``None``, every record for itself.
        record_ids: ``None``, positions are followed through the loaders; or a function ``batch -> ids``, or the name of
            an entry of the batch.
        per_record_loss: ``(module, batch) -> (B,)`` losses, where they cannot be heard in the step.
        every_n_epochs: Look every so many epochs (with validation); the first epoch always counts.
        every_n_steps: Also look every so many training steps, on a sample of held-out patients.
        member_sample: Members evaluated at each look; 4 % of them by default, at least 100 and at most 2,000.
        fprs: False-positive rates of ``tpr_at_fpr``.
        flag_rate: False-discovery rate of the flags.
        rare_at_most: A code that at most so many patients carry makes a patient identifiable.
        quasi_identifiers: Codes whose combination an attacker may know, by default the first two of a record. For
            feature vectors: columns (continuous ones count in ten bands), by default every column of few values.
        final_evaluation: Evaluate the members again when training ends, so that the last flags rest on losses measured
            as the held-out ones were: ``"auto"``, as many as 2 % of the training time pays for; ``True``, all of them;
            ``False``, none: the last flags rest on train-time losses.
        log_on: ``"validation"``, ``"train"``, or ``"auto"``: validation where there is a validation loop.
        dirpath: Where the files go; ``memguard-watch/`` in the Trainer's log directory by default.
        hash_ids: Write keyed hashes instead of patient ids.
        min_cell: Counts of people below this are not shown.
        reference_budget: Optimizer steps that one reference model may take when training ends, as a share of the
            run's own: 0, none; .4 is enough for one that stops early. It trains on half of the held-out patients,
            and only the other half then stands for non-members in the flags.
        train_loader: Which training loader to watch, where there are several.
        on_problem: What to do when records or losses of a step are uncertain, or a look fails: ``"raise"``; ``"warn"``
            once and stop watching; ``"auto"``, raise at the first step and warn later, when there is a training to
            lose.
        seed: Of the member sample, the folds and the bootstraps.

    Raises:
        HeldOutError: At the start of ``fit``, without held-out patients or with fewer than 20 of them.
        PatientOverlapError: If a patient is on both sides.
        IndexTrackingError: If the records of a batch cannot be known for certain.
        AmbiguousLossError: If no captured call is the loss that the step returned.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = LeakageMonitor()
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)
        >>> monitor.flags.height
        0

    Note:
        The curve is a loss attack, a lower bound on what an attacker with reference models can do; a low curve is no
        evidence that nobody is memorized. ``EarlyStopping(patience=)`` counts epochs, not looks: between looks it sees
        the last value again.
    """

    def __init__(
        self,
        *,
        heldout: Any = "val",
        record_to_patient: Any = "auto",
        record_ids: str | Callable[[Any], Any] | None = None,
        per_record_loss: Callable[[Any, Any], Any] | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        member_sample: int | None = None,
        fprs: Sequence[float] = (0.1, 0.01, 0.001),
        flag_rate: float = 0.1,
        rare_at_most: int = 3,
        quasi_identifiers: Sequence[int] | None = None,
        final_evaluation: Literal["auto"] | bool = "auto",
        log_on: Literal["auto", "validation", "train"] = "auto",
        dirpath: str | Path | None = None,
        hash_ids: bool = True,
        min_cell: int = 5,
        reference_budget: float = 0.0,
        train_loader: str | int | None = None,
        on_problem: Literal["auto", "raise", "warn"] = "auto",
        seed: int = 0,
    ) -> None:
        _check_plan(every_n_epochs, every_n_steps, flag_rate, log_on)
        self.heldout, self.record_to_patient = heldout, record_to_patient
        self.record_ids, self.per_record_loss = record_ids, per_record_loss
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.final_evaluation, self.log_on = final_evaluation, log_on
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.reference_budget = reference_budget
        self.train_loader, self.on_problem = train_loader, on_problem
        self.settings = WatchSettings(
            fprs=tuple(fprs), flag_rate=flag_rate, member_sample=member_sample, seed=seed
        )
        self.outputs = OutputSettings(
            min_cell=min_cell,
            hash_ids=hash_ids,
            rare_at_most=rare_at_most,
            quasi_identifiers=quasi_identifiers,
        )
        self._given_dirpath = self.dirpath
        self._session: WatchSession | None = None
        self._capture: Capture | None = None
        self._state: Mapping[str, Any] | None = None
        self._begin()

    def write_to(self, folder: str | Path) -> None:
        """Put the files of the next fit there."""
        self.dirpath = self._given_dirpath = Path(folder)

    def _begin(self) -> None:
        """Forget the last fit."""
        self.curve: list[CurvePoint] = []
        self.report: WatchReport | None = None
        self.flags: polars.DataFrame = empty_flags()
        self.patients: polars.DataFrame = empty_flags()
        self.files: dict[str, Path] = {}
        self.watch: Watch | None = None
        self._notes: list[str] = []
        self._last_look: Look | None = None
        self._initial: State | None = None
        self._stopped = False
        self._clock = time.perf_counter()

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(heldout=self.heldout if isinstance(self.heldout, str) else "own")

    # -- the life of a fit ---------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._restore()
        self._begin()
        if self.heldout is None:
            raise HeldOutError(
                "heldout=None",
                "without held-out patients no leakage number means anything",
                'pass heldout="val", or a DataLoader of held-out patients',
            )
        self._capture = Capture(
            self.per_record_loss,
            self.record_ids,
            record_to_patient=batch_key(self.record_to_patient),
            train_loader=self.train_loader,
            on_problem=self.on_problem,
        )
        self._session = WatchSession(
            self._capture, self.heldout, self.record_to_patient, self.settings, self._notes
        )
        self._capture.install(trainer, pl_module)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is None or self._capture is None:
            return
        self._capture.verify()
        folder = self._given_dirpath
        self.dirpath = folder or Path(trainer.log_dir or trainer.default_root_dir) / "memguard-watch"
        self._open(trainer)
        if self.reference_budget > 0 and trainer.global_step == 0:
            self._initial = initial_state(pl_module)
        elif self.reference_budget > 0:  # a reference from here would have seen the members
            self._session.note(
                "No reference was trained: the run was resumed, and its first weights are gone."
            )
        self._clock = time.perf_counter()

    def _open(self, trainer: pl.Trainer) -> None:
        session = self._session
        if session is None or not session.open(trainer):
            return
        assert session.watch is not None
        self.watch = session.watch
        if self._state is None:
            return
        session.watch.load_state_dict(self._state)
        self.curve = list(WatchReport.from_json(self._state["curve"]).curve)
        self._notes[:] = [*self._state["notes"]]
        self._state = None

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._session is None or self._capture is None:
            return
        seen = self._capture.last_train
        if seen is None:
            return
        with self._at_no_cost(trainer, early=trainer.global_step <= 1):
            self._open(trainer)
            self._session.observe("train", seen)
            if self._due_between(trainer, batch_idx):
                self._look(trainer, pl_module, between=True)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is not None and not trainer.sanity_checking:
            with self._at_no_cost(trainer):
                self._open(trainer)
                self._session.begin_validation()

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        session = self._session
        if session is None or self._capture is None or trainer.sanity_checking:
            return
        if session.source.free and dataloader_idx == session.source.dataloader_idx:
            seen = self._capture.last_val(dataloader_idx)
            if seen is not None:
                with self._at_no_cost(trainer):
                    session.observe("held_out", seen)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is None or trainer.sanity_checking:
            return
        self._session.held_step = trainer.global_step
        if self._where(trainer) == "validation" and self._due(trainer):
            with self._at_no_cost(trainer):
                self._look(trainer, pl_module, whole=bool(trainer.is_last_batch))

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is None or self._session.watch is None:
            return
        with self._at_no_cost(trainer):
            if self._where(trainer) == "train" and self._due(trainer):
                self._look(trainer, pl_module, whole=True)
            self._session.close_epoch(trainer.current_epoch, trainer.global_step)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is None or self._session.watch is None:
            return
        with self._at_no_cost(trainer):
            if not self._stopped:
                self._look_last(trainer, pl_module)
        if self._last_look is not None and rank() == 0:
            self._finish(trainer, pl_module)

    def _look_last(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at members as the held-out patients were looked at, and at all if nothing was looked at yet."""
        assert self._session is not None
        start = time.perf_counter()
        if self._last_look is None:  # too short for a validation: look now
            first = self._session.look(
                epoch=self._epoch(trainer), step=trainer.global_step, rank_members=True, evaluate=True
            )
            if first is None:  # a warning has said why
                return
            if not first.coverage:
                _warn(
                    "training ended before any record was seen",
                    "there is no leakage number for this run",
                    "let at least one training batch and one validation batch run",
                )
                return
            self._keep(first, start)
            start = time.perf_counter()
        assert self._last_look is not None
        if getattr(trainer, "fast_dev_run", False):
            return
        if self._initial is not None:
            self._session.train_reference(trainer, pl_module, self._initial, self.reference_budget)
        look = self._session.final_look(
            self._last_look, self.final_evaluation, epochs=trainer.current_epoch, step=trainer.global_step
        )
        if look is not None:
            self._keep(look, start)

    @contextmanager
    def _at_no_cost(self, trainer: pl.Trainer, *, early: bool = False) -> Iterator[None]:
        """What fails in here ends the watch and not the training, unless that has hardly begun (``on_problem``)."""
        try:
            yield
        except Exception as error:
            refused = early and isinstance(error, MemguardError) and self.on_problem == "auto"
            # Of several processes none can stop alone: the others would wait for it for ever.
            if refused or self.on_problem == "raise" or n_ranks() > 1:
                raise
            if self._stopped:
                return
            self._stopped = True
            why = str(error) if isinstance(error, MemguardError) else f"{type(error).__name__} in a look."
            self._notes.append(f"The watch ended at step {trainer.global_step}: {why}")
            if isinstance(error, MemguardError):
                _warn(why, f"no further look is taken after step {trainer.global_step}", "")
            else:
                _warn(
                    f"a look failed at step {trainer.global_step}:\n{traceback.format_exc()}",
                    "training goes on, and monitor.curve holds what was measured before",
                    "report this",
                )

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        try:
            if self._last_look is not None and self.report is None and self._session and rank() == 0:
                self._session.note(f"Training was cut off by {type(exception).__name__}.")
                self._write(type(pl_module).__name__)
        finally:
            self._restore()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._restore()

    def _restore(self) -> None:
        """Leave trainer, strategy and loaders as they were; idempotent."""
        if self._capture is not None:
            self._capture.restore()
        self._capture = self._session = None

    # -- looking -------------------------------------------------------------------------------------------

    def _where(self, trainer: pl.Trainer) -> str:
        if self.log_on != "auto":
            return self.log_on
        return "validation" if trainer.enable_validation else "train"

    @staticmethod
    def _epoch(trainer: pl.Trainer) -> float:
        """Epochs finished, with the fraction of the one under way."""
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        share = min(done / max(float(trainer.num_training_batches), 1.0), 1.0)
        return round(trainer.current_epoch + share, 4)

    def _due(self, trainer: pl.Trainer) -> bool:
        last = (trainer.max_epochs or -1) > 0 and trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        return last or trainer.current_epoch % self.every_n_epochs == 0

    def _due_between(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if self.every_n_steps is None or trainer.is_last_batch:
            return False
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        return stepped and trainer.global_step > 0 and trainer.global_step % self.every_n_steps == 0

    def _look(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        *,
        whole: bool = False,
        between: bool = False,
    ) -> None:
        """Measure, keep, log."""
        assert self._session is not None
        if self._stopped:
            return
        start = time.perf_counter()
        epoch = trainer.current_epoch + 1 if whole else self._epoch(trainer)
        step = trainer.global_step
        if between:
            look = self._session.look_between(epoch=epoch, step=step)
        else:
            look = self._session.look(epoch=epoch, step=step, rank_members=whole)
        if look is None:
            return
        self._keep(look, start)
        for name, value in logged(self.curve[-1], min_cell=self.outputs.min_cell).items():
            # Every rank has computed the same number: there is nothing to reduce.
            pl_module.log(
                name,
                value,
                on_step=between,
                on_epoch=not between,
                prog_bar=name == "memguard/membership_auc",
                batch_size=1,
                rank_zero_only=False,
                sync_dist=False,
            )

    def _keep(self, look: Look, start: float) -> None:
        """Make the look the newest point of the curve; a second one at the same step takes the place of the first."""
        assert self._session is not None
        now = time.perf_counter()
        spent, trained = now - start, start - self._clock
        if self.curve and self.curve[-1].step == look.step:
            before = self.curve.pop()
            spent, trained = spent + before.probe_seconds, before.train_seconds or 0.0
        rate = self.settings.flag_rate
        self.curve.append(curve_point(look, rate, probe_seconds=spent, train_seconds=trained))
        self._last_look, self._clock = look, now

    # -- the end -------------------------------------------------------------------------------------------

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            self._write(type(pl_module).__name__)
            for logger in trainer.loggers:  # self.log is closed by now
                values = logged(self.curve[-1], min_cell=self.outputs.min_cell)
                logger.log_metrics(values, step=trainer.global_step)
            if self.report is not None:
                log_report(trainer.loggers, self.report, step=trainer.global_step)
        except Exception:  # a fault in a report must not cost the training that has just ended
            _warn(
                f"the leakage report was not finished:\n{traceback.format_exc()}",
                "the model is trained; monitor.curve holds what was measured",
                "report this",
            )

    def _write(self, model: str) -> None:
        """Frame, report and files."""
        assert self._last_look is not None
        watch, found = self.watch, self._last_look.memorization
        assert watch is not None
        folder = self.dirpath or Path("memguard-watch")
        hashed = HashedIds.in_folder(folder) if self.outputs.hash_ids else None
        self.patients = patient_frame(watch, found, self.settings.flag_rate, self.outputs, hashed)
        self.flags = most_urgent(self.patients, None)
        caveat = identifiable_note(self.patients, self.outputs)
        report = make_report(
            watch,
            self.curve,
            found,
            flag_rate=self.settings.flag_rate,
            settings=self.outputs,
            notes=[*self._notes, *([caveat] if caveat else [])],
            model=model,
        )
        self.report = counted(report, self.flags)
        self.files = write_outputs(self.report, self.patients, folder)

    # -- state ---------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.watch is None:
            return dict(self._state or {})
        curve = WatchReport(
            version="",
            created="",
            unit="patient",
            patients_source="",
            n_members=0,
            n_held_out=0,
            flag_rate=self.settings.flag_rate,
            curve=self.curve,
        )
        return {**self.watch.state_dict(), "curve": curve.to_json(), "notes": list(self._notes)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _check_plan(every_n_epochs: int, every_n_steps: int | None, flag_rate: float, log_on: str) -> None:
    if every_n_epochs < 1 or (every_n_steps is not None and every_n_steps < 1):
        raise MemguardError(
            f"every_n_epochs={every_n_epochs}, every_n_steps={every_n_steps}",
            "there would be no look, or one at no time",
            "pass whole numbers from 1",
        )
    if not 0 < flag_rate < 1:
        raise MemguardError(
            f"flag_rate={flag_rate}", "it is a false-discovery rate", "pass a number between 0 and 1"
        )
    if log_on not in ("auto", "validation", "train"):
        raise MemguardError(
            f"log_on={log_on!r}", "metrics would be logged nowhere", 'pass "auto", "validation" or "train"'
        )


def _warn(seen: str, why: str, fix: str) -> None:
    warnings.warn(MemguardWarning(seen, why, fix), stacklevel=3)
