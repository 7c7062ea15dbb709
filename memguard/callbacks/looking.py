"""One look from beginning to end: measured by the session, kept and logged by the results."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import lightning.pytorch as pl

from memguard.callbacks.guard import warn
from memguard.callbacks.results import Results
from memguard.callbacks.schedule import epochs_done
from memguard.callbacks.session import WatchSession

if TYPE_CHECKING:
    from memguard.callbacks.probing import Probing

__all__ = ["look_at_the_end", "look_between", "look_now"]


def look_now(
    session: WatchSession,
    results: Results,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    *,
    whole: bool,
    probing: Probing | None = None,
) -> None:
    """Look at the members and at all held-out patients.

    Args:
        session: Of the fit.
        results: Of the fit.
        trainer: Of the run.
        module: Of the run; the metrics are logged through it.
        whole: Whether an epoch is over, so that members can be ranked.
        probing: Asks probes of the audit as well, if given.
    """
    start = time.perf_counter()
    epoch = trainer.current_epoch + 1 if whole else epochs_done(trainer)
    look = session.look(epoch=epoch, step=trainer.global_step, rank_members=whole)
    if look is not None:
        results.keep(look, start)
        if probing is not None:
            probing.look(session, results, trainer, module)
        results.log(module, on_step=False)


def look_between(
    session: WatchSession, results: Results, trainer: pl.Trainer, module: pl.LightningModule
) -> None:
    """Look inside an epoch, at samples of both sides; arguments as for `look_now`."""
    start = time.perf_counter()
    look = session.look_between(epoch=epochs_done(trainer), step=trainer.global_step)
    if look is not None:
        results.keep(look, start)
        results.log(module, on_step=True)


def look_at_the_end(
    session: WatchSession,
    results: Results,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    *,
    final_evaluation: Literal["auto"] | bool,
    reference_budget: float,
    probing: Probing | None = None,
) -> None:
    """Look at members as the held-out patients were looked at, and at all if nothing was looked at yet.

    Args:
        session: Of the fit.
        results: Of the fit.
        trainer: Of the run.
        module: Of the run; nothing can be logged through it any more.
        final_evaluation: As the monitor takes it.
        reference_budget: As the monitor takes it.
        probing: Asks probes of the audit as well, if given.
    """
    start, step = time.perf_counter(), trainer.global_step
    last = results.last_look
    if last is None:  # too short for a validation: look now
        last = session.look(epoch=epochs_done(trainer), step=step, rank_members=True, evaluate=True)
        if last is None:  # a warning has said why
            return
        if not last.coverage:
            warn(
                "training ended before any record was seen",
                "there is no leakage number for this run",
                "let at least one training batch and one validation batch run",
            )
            return
        results.keep(last, start)
        start = time.perf_counter()
    if getattr(trainer, "fast_dev_run", False):
        return
    session.train_reference(trainer, module, reference_budget)
    look = session.final_look(last, final_evaluation, epochs=trainer.current_epoch, step=step)
    if look is not None:
        results.keep(look, start)
    if probing is not None:
        probing.look(session, results, trainer, module, last=True)
