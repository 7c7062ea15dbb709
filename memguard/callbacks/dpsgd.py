"""DP-SGD as a Lightning callback: hooks in, calls out, no arithmetic."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from torch.optim import Optimizer
from typing_extensions import override

from memguard.callbacks.gather import rank
from memguard.callbacks.private_loop import PrivateLoop
from memguard.callbacks.stated import Stated
from memguard.capture.weights import weights_hash
from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.checks import refuse
from memguard.privacy.guards.static import scan
from memguard.privacy.guards.static_callbacks import PUBLIC_METRICS, scheduled_rates
from memguard.privacy.run import PrivateRun, RunSettings

if TYPE_CHECKING:
    from memguard.privacy.statement import Statement

__all__ = ["DPSGD"]


class DPSGD(Stated):
    """Train with differential privacy for patients (DP-SGD), on an unmodified module, optimizer and data.

    Patients are drawn by Poisson sampling; the gradient of each patient in a step is clipped to ``max_grad_norm`` over
    all parameters together; Gaussian noise is added to the sum, which is divided by the expected number of patients.
    No gradient without noise is ever put where the optimizer, a logger or another process could read it. The steps are
    written to an append-only ledger outside of the checkpoints, and epsilon is derived from it.

    Logged metrics, each with the step:

    =================================  ==============================================================================
    ``memguard/dp/epsilon``            spent so far (by Rényi divergences, an upper bound; the statement has a tighter
                                       one); the largest over strata
    ``memguard/dp/noise_multiplier``   standard deviation of the noise over ``max_grad_norm``
    ``memguard/dp/sample_rate``        probability with which a patient is in a step, on average
    ``memguard/dp/clipped_share``      share of the drawn patients whose gradient was shortened: a private number, not
                                       covered by epsilon
    =================================  ==============================================================================

    Args:
        target_epsilon: Spend at most this much in the planned training; the noise follows from it.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``, instead of ``target_epsilon``.
        delta: ``"1/n"``, one over the number of patients; or a number.
        max_grad_norm: C, the largest norm of one patient's gradient.
        unit: ``"patient"``: neighbouring data sets differ in one patient with all records. ``"record"``: in one
            record, a weaker promise for patients with several, and every output says so.
        record_to_patient: As :class:`~memguard.LeakageMonitor` takes it, of the training records: ``"auto"``, a
            function ``position -> id`` or a sequence of ids.
        sample_rate: Probability with which a patient is in a step. By default such that an epoch has as many steps as
            without privacy.
        expected_batch_size: Patients in a step on average, instead of ``sample_rate``.
        max_records_per_patient: Use at most so many records of a patient in a step, drawn anew each time.
        physical_batch_size: Records in one forward pass at most; by default twice the loader's batch size. Larger
            draws are cut, which changes memory and not the result.
        average: A patient's gradient is the ``"mean"`` or the ``"sum"`` over his records.
        engine: ``"opacus"``: per-record gradients by the hooks of Opacus. ``"loop"``: one record at a time, exact for
            any module, slow. ``"auto"``: the first, if it gives the gradients of the second on a few records.
        budgets: Epsilon of each stratum, by name, where patients are promised different ones (IDP-SGD, sampling;
            Boenisch et al. 2023, arXiv:2303.17046); replaces ``target_epsilon``.
        strata: Stratum of each patient: a mapping by id, or one name a patient in ascending order of ids.
        strata_from_data: Whether the strata were derived from the training data (rarity, flags): the budgets then do
            not cover what the strata reveal, and the statement says so.
        checks: Whether to test sensitivity, coverage and noise on a few patients before the first step.
        dirpath: Folder of the ledger and the statement; ``memguard-dp/`` in the Trainer's root directory by default.
            Keep it: a run cannot be resumed without it.

    Raises:
        PrivacyError: At the start of ``fit``, wherever the guarantee would not hold or could not be shown.

    Example:
        >>> dpsgd = DPSGD(target_epsilon=8, delta="1/n", max_grad_norm=1.0)
        >>> trainer = pl.Trainer(callbacks=[dpsgd], logger=False, enable_checkpointing=False)
        >>> dpsgd.epsilon
        0.0

    Note:
        What is proven: the final weights, and every weight on the way, are (epsilon, delta)-differentially private
        with respect to adding or removing one patient, if the noise is random. What is not: whatever else left the
        training, such as logged losses, a checkpoint chosen by a validation loss, hyper-parameters tried before. The
        statement lists what the ledger has seen of it. Seeds do not make a private run repeatable: sampling and noise
        come from the operating system's entropy, since noise that can be repeated can be subtracted.
    """

    def __init__(
        self,
        *,
        target_epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float | str = "1/n",
        max_grad_norm: float = 1.0,
        unit: Literal["patient", "record"] = "patient",
        record_to_patient: Any = "auto",
        sample_rate: float | None = None,
        expected_batch_size: float | None = None,
        max_records_per_patient: int | None = None,
        physical_batch_size: int | None = None,
        average: Literal["mean", "sum"] = "mean",
        engine: Literal["auto", "opacus", "loop"] = "auto",
        budgets: Mapping[str, float] | None = None,
        strata: Mapping[Any, str] | Sequence[str] | None = None,
        strata_from_data: bool = True,
        checks: bool = True,
        dirpath: str | Path | None = None,
    ) -> None:
        self.settings = RunSettings(
            target_epsilon=target_epsilon,
            noise_multiplier=noise_multiplier,
            delta=delta,
            max_grad_norm=max_grad_norm,
            unit=unit,
            record_to_patient=record_to_patient,
            sample_rate=sample_rate,
            expected_batch_size=expected_batch_size,
            max_records=max_records_per_patient,
            physical_batch_size=physical_batch_size,
            average=average,
            engine=engine,
            budgets=budgets,
            strata=strata,
            strata_from_data=strata_from_data,
            checks=checks,
        )
        self.dirpath = None if dirpath is None else Path(dirpath)
        self._run: PrivateRun | None = None
        self._loop: PrivateLoop | None = None
        self._state: Mapping[str, Any] | None = None
        self._stage: str | None = None
        self._logged: set[str] = set()
        self._finished, self._text = False, ""

    # -- what a person reads -------------------------------------------------------------------------------

    @property
    @override
    def books(self) -> PrivateRun | None:
        return self._run

    @property
    def epsilon(self) -> float:
        """Spent by this run so far, over everything that it was resumed from; the largest over strata."""
        return 0.0 if self._run is None else self._run.epsilon()

    @property
    def noise_multiplier(self) -> float | None:
        """In use, or as given."""
        return self.settings.noise_multiplier if self._run is None else self._run.noise_multiplier

    @property
    def sample_rate(self) -> float | None:
        """Probability with which a patient is in a step, on average."""
        return self.settings.sample_rate if self._run is None else self._run.plan.sample_rate

    @property
    def ledger_path(self) -> Path | None:
        """The file that epsilon is derived from."""
        return None if self._run is None else self._run.ledger_path

    def statement(self) -> Statement:
        """What is promised to whom, and what is not covered, derived from the ledger.

        Raises:
            PrivacyError: Before a training has begun.
        """
        if self._run is None:
            raise PrivacyError(
                "no training has begun", "there is nothing to state", "call statement() after Trainer.fit"
            )
        return self._run.statement()

    # -- the life of a fit ---------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stage = stage
        if stage != "fit":
            return
        self._restore()
        others = [one for one in trainer.callbacks if isinstance(one, DPSGD)]  # type: ignore[attr-defined]
        if len(others) > 1:
            raise PrivacyError(
                f"{len(others)} DPSGD callbacks", "each would add its noise to the other's", "keep one"
            )
        refuse(scan(trainer, pl_module))
        if trainer.global_step == 0:  # the Trainer begins a run; a checkpoint tells of another later
            self._run = None
        self._loop = PrivateLoop(trainer, pl_module, self.settings, run=self._run)
        self._loop.install()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        refuse(scan(trainer, pl_module))  # optimizers and schedulers exist now

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._loop is not None
        findings = scan(trainer, pl_module)
        refuse(findings)
        folder = self.dirpath or Path(trainer.default_root_dir) / "memguard-dp"
        self._run = self._loop.open(folder, self._state)
        self._state = None
        self._logged.clear()
        self._finished, self._text = False, ""
        for finding in findings:
            self._run.note(finding)
            if finding.warn:
                warnings.warn(finding.warning(), stacklevel=2)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._loop is not None:
            self._loop.begin_epoch()

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._loop is not None:
            self._loop.release(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._loop is None or self._run is None:
            return
        counts = self._loop.stepped()
        if counts is None:
            return
        shown = {
            "epsilon": self._run.epsilon_now(),
            "noise_multiplier": self._run.noise_multiplier,
            "sample_rate": self._run.plan.sample_rate,
            "clipped_share": counts.clipped_share,
        }
        for name, value in shown.items():
            if math.isnan(value) or trainer.barebones:
                continue
            # Every process has the same number: there is nothing to reduce.
            pl_module.log(
                f"memguard/dp/{name}", value, on_step=True, on_epoch=False, prog_bar=name == "epsilon",
                batch_size=1, rank_zero_only=False, sync_dist=False,
            )  # fmt: skip
        if self._run.exhausted() and not self._loop.at_end():
            trainer.should_stop = True

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note_logged(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note_logged(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.finish(trainer)

    @override
    def finish(self, trainer: pl.Trainer) -> str:
        """End the books of this fit and write the statement; once, whoever asks first.

        Returns:
            The statement as text, for reports of other callbacks; empty on other processes than the first.
        """
        if self._run is None or self._loop is None or self._finished:
            return self._text
        self._finished = True
        self._note_logged(trainer)
        why = "as planned" if self._run.complete else "stopped early"
        self._run.end(step=trainer.global_step, why=why, weights=self._weights(trainer.lightning_module))
        if rank() == 0:
            self._write_statement()
        return self._text

    @override
    def before(self) -> dict[str, Any]:
        """The user's loader and the Trainer's settings, which the private ones stand in for while a fit runs."""
        return {} if self._loop is None else self._loop.data.before()

    def _weights(self, module: pl.LightningModule) -> str:
        """Hash of the weights, on the process that writes the ledger."""
        return weights_hash(module) if self._run is not None and self._run.ledger is not None else ""

    def _note_logged(self, trainer: pl.Trainer) -> None:
        """What was logged is written down when it is first seen: a run that is killed has shown it too."""
        if self._run is None or self._loop is None or trainer.sanity_checking:
            return
        shown = (
            {*trainer.logged_metrics, *trainer.callback_metrics}
            - PUBLIC_METRICS
            - self._logged
            - scheduled_rates(trainer.callbacks, trainer.lr_scheduler_configs)  # type: ignore[attr-defined]
        )
        if shown:
            self._logged |= shown
            self._run.write("private_log", keys=sorted(shown))

    def _write_statement(self) -> None:
        assert self._run is not None
        try:
            self._text = self._run.write_statement().text()
        except Exception as problem:  # the weights of a whole training are not lost for a page of text
            warnings.warn(
                MemguardWarning(
                    f"the statement of the private training could not be written ({problem})",
                    f"what was spent stands in {self._run.ledger_path}",
                    "call DPSGD.statement()",
                ),
                stacklevel=2,
            )

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        try:
            if self._run is not None and self._loop is not None:
                why = f"cut off by {type(exception).__name__}"
                self._run.end(step=trainer.global_step, why=why, weights=self._weights(pl_module))
        finally:
            self._restore()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stage = None
        if stage == "fit":
            self._restore()

    def _restore(self) -> None:
        """Leave trainer, strategy, module and loaders as they were; idempotent."""
        loop, self._loop = self._loop, None
        try:
            if loop is not None:
                loop.restore()
        finally:
            if self._run is not None:
                self._run.close()

    # -- state ---------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._run is None:
            return dict(self._state or {})
        return self._run.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage in (None, "fit"):  # to test a checkpoint is not to go on from it
            self._state = state_dict or None
