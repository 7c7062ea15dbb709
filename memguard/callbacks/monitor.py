"""The watch as a Lightning callback: hooks in, calls out, no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import polars
from typing_extensions import override

from memguard.callbacks.gather import rank
from memguard.callbacks.guard import Guard
from memguard.callbacks.looking import look_at_the_end, look_between, look_now
from memguard.callbacks.outputs import OutputSettings
from memguard.callbacks.results import Results
from memguard.callbacks.schedule import check_plan, due, due_between
from memguard.callbacks.session import WatchSession
from memguard.capture import Capture
from memguard.capture.sides import batch_key
from memguard.probes.look import Look
from memguard.probes.sides import WatchSettings
from memguard.probes.watch import Watch
from memguard.report.data import CurvePoint, WatchReport

if TYPE_CHECKING:
    from memguard.auditing.examine import Audit, Options
    from memguard.callbacks.probing import Probing

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
        audit_on_end: Run the full audit (`memguard.audit`) when ``fit`` ends, written to ``audit/`` in ``dirpath``;
            or a mapping of its arguments, such as ``{"references": "counts"}``: by default it trains eight reference
            models, each at about half of the training's price.
        probes: Probes of `memguard.audit` to ask during training as well, by name (``["attribute", "copies"]``,
            ``"all"``) or made by yourself; a `memguard.LightProbes` with their settings; or a mapping of these. They
            take 2 % of the training time together unless ``share=`` says otherwise, and log
            ``memguard/<probe>/<number>`` at the looks at which they were asked.
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
        audit_on_end: bool | Mapping[str, Any] = False,
        probes: Any = None,
        train_loader: str | int | None = None,
        on_problem: Literal["auto", "raise", "warn"] = "auto",
        seed: int = 0,
    ) -> None:
        check_plan(every_n_epochs, every_n_steps, log_on)
        self.heldout, self.record_to_patient = heldout, record_to_patient
        self.record_ids, self.per_record_loss = record_ids, per_record_loss
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.final_evaluation, self.log_on = final_evaluation, log_on
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.reference_budget, self.audit_on_end = reference_budget, audit_on_end
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
        self.probes = probes
        self._audit_options(Path())  # refused now and not after days of training
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
        self._results = Results(flag_rate=self.settings.flag_rate, outputs=self.outputs)
        self._guard = Guard(self._results.notes, self.on_problem)
        self._probing = self._new_probing()

    def _new_probing(self) -> Probing | None:
        if self.probes is None:  # most runs: what the probes need is not even imported
            return None
        from memguard.auditing.light import LightProbes
        from memguard.callbacks.probing import Probing

        light, cell = LightProbes.of(self.probes), self.outputs.min_cell
        return Probing(light, seed=self.settings.seed, on_problem=self.on_problem, min_cell=cell)

    # -- what was found ------------------------------------------------------------------------------------

    @property
    def curve(self) -> list[CurvePoint]:
        """What each look measured, in order of time."""
        return self._results.curve

    @property
    def report(self) -> WatchReport | None:
        """The whole run, when it is over."""
        return self._results.report

    @property
    def audit(self) -> Audit | None:
        """What the audit at the end found, with ``audit_on_end=``."""
        return self._results.audit

    @property
    def flags(self) -> polars.DataFrame:
        """Flagged patients, most urgent first; empty until the run is over."""
        return self._results.flags

    @property
    def patients(self) -> polars.DataFrame:
        """Every scored patient, most memorized first; empty until the run is over."""
        return self._results.patients

    @property
    def files(self) -> dict[str, Path]:
        """Name -> path of what was written."""
        return self._results.files

    @property
    def watch(self) -> Watch | None:
        """What the looks are taken from; ``None`` until both sides are known."""
        return self._results.watch

    @property
    def capture(self) -> Capture | None:
        """What listens to the steps of the fit under way; ``None`` outside one."""
        return self._capture

    @property
    def last_look(self) -> Look | None:
        """The newest look; ``None`` before the first."""
        return self._results.last_look

    def note(self, text: str, *, replaces: str = "") -> None:
        """Put a caveat into the report, in the place of one that begins with ``replaces``."""
        notes = self._results.notes
        notes[:] = [one for one in notes if one != text and not (replaces and one.startswith(replaces))]
        notes.append(text)

    @property
    def mitigations(self) -> tuple[str, ...]:
        """What mitigations beside it in the Trainer say that they did, in words."""
        return tuple(self._results.mitigations.values())

    def mitigated(self, by: str, text: str) -> None:
        """Say in the report, and in that of an audit, what a mitigation did; ``text`` begins with its name."""
        self.note(text, replaces=by)
        self._results.mitigations[by] = text

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
        self._capture = Capture(
            self.per_record_loss,
            self.record_ids,
            record_to_patient=batch_key(self.record_to_patient),
            train_loader=self.train_loader,
            on_problem=self.on_problem,
        )
        self._session = WatchSession(
            self._capture, self.heldout, self.record_to_patient, self.settings, self._results.notes
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
        if self.reference_budget > 0:
            self._session.keep_initial(trainer, pl_module)
        self._results.start_clock()

    def _open(self, trainer: pl.Trainer) -> None:
        session = self._session
        if session is None or not session.open(trainer):
            return
        self._results.watch = session.watch
        if self._state is not None:
            self._results.load_state_dict(self._state)
            if self._probing is not None and "probes" in self._state:
                self._probing.load_state_dict(self._state["probes"])
            self._state = None

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._session is None or self._capture is None:
            return
        with self._guard.at_no_cost(trainer.global_step, early=trainer.global_step <= 1):
            self._open(trainer)
            for seen in self._capture.take_train():
                self._session.observe("train", seen)
            if due_between(trainer, self.every_n_steps, batch_idx) and not self._guard.stopped:
                look_between(self._session, self._results, trainer, pl_module)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is not None and not trainer.sanity_checking:
            with self._guard.at_no_cost(trainer.global_step):
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
                with self._guard.at_no_cost(trainer.global_step):
                    session.observe("held_out", seen)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is None or trainer.sanity_checking:
            return
        self._session.held_step = trainer.global_step
        if due(trainer, "validation", self.log_on, self.every_n_epochs) and not self._guard.stopped:
            with self._guard.at_no_cost(trainer.global_step):
                whole = bool(trainer.is_last_batch)
                self._look_now(trainer, pl_module, whole=whole)

    def _look_now(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, whole: bool) -> None:
        assert self._session is not None
        look_now(self._session, self._results, trainer, pl_module, whole=whole, probing=self._probing)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is None or self._session.watch is None:
            return
        with self._guard.at_no_cost(trainer.global_step):
            if due(trainer, "train", self.log_on, self.every_n_epochs) and not self._guard.stopped:
                self._look_now(trainer, pl_module, whole=True)
            self._session.close_epoch(trainer.current_epoch, trainer.global_step)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._session is None or self._session.watch is None:
            return
        with self._guard.at_no_cost(trainer.global_step):
            if not self._guard.stopped:
                look_at_the_end(
                    self._session,
                    self._results,
                    trainer,
                    pl_module,
                    final_evaluation=self.final_evaluation,
                    reference_budget=self.reference_budget,
                    probing=self._probing,
                )
        if self._results.last_look is not None and rank() == 0:
            self._results.finish(trainer, self.dirpath, type(pl_module).__name__)
            options = self._audit_options((self.dirpath or Path("memguard-watch")) / "audit")
            if options is not None and not getattr(trainer, "fast_dev_run", False):
                from memguard.callbacks.ending import audit_at_end

                self._results.audit = audit_at_end(trainer, pl_module, self._session, self, options)

    def _audit_options(self, folder: Path) -> Options | None:
        if not self.audit_on_end:  # most runs: what an audit needs is not even imported
            return None
        from memguard.callbacks.ending import options_of

        return options_of(self.audit_on_end, folder, self.settings.seed)

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        results = self._results
        try:
            if results.last_look is not None and results.report is None and self._session and rank() == 0:
                self._session.note(f"Training was cut off by {type(exception).__name__}.")
                results.write(self.dirpath, type(pl_module).__name__)
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

    # -- state ---------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        found = self._results.state_dict()
        if found and self._probing is not None:
            found["probes"] = self._probing.state_dict()
        return found or dict(self._state or {})

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None
