"""When to look: read off the Trainer, which counts epochs, batches and steps."""

from __future__ import annotations

import lightning.pytorch as pl

from memguard.errors import MemguardError

__all__ = ["check_plan", "due", "due_between", "epochs_done"]


def check_plan(every_n_epochs: int, every_n_steps: int | None, log_on: str) -> None:
    """Refuse a plan under which nothing would be measured or logged.

    Args:
        every_n_epochs: As the monitor takes it.
        every_n_steps: As the monitor takes it.
        log_on: As the monitor takes it.

    Raises:
        MemguardError: If there would be no look, or no place for its metrics.
    """
    if every_n_epochs < 1 or (every_n_steps is not None and every_n_steps < 1):
        raise MemguardError(
            f"every_n_epochs={every_n_epochs}, every_n_steps={every_n_steps}",
            "there would be no look, or one at no time",
            "pass whole numbers from 1",
        )
    if log_on not in ("auto", "validation", "train"):
        raise MemguardError(
            f"log_on={log_on!r}", "metrics would be logged nowhere", 'pass "auto", "validation" or "train"'
        )


def epochs_done(trainer: pl.Trainer) -> float:
    """Epochs finished, with the fraction of the one under way."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    share = min(done / max(float(trainer.num_training_batches), 1.0), 1.0)
    return round(trainer.current_epoch + share, 4)


def due(trainer: pl.Trainer, loop: str, log_on: str, every_n_epochs: int) -> bool:
    """Whether to look now that a loop is over: after the first epoch, each so-many-th from it, and the last.

    Args:
        trainer: Of the run.
        loop: ``"validation"`` or ``"train"``: which loop has ended.
        log_on: The one in which looks are taken; for ``"auto"`` validation, where there is any.
        every_n_epochs: As the monitor takes it.
    """
    if log_on == "auto":
        log_on = "validation" if trainer.enable_validation else "train"
    last = (trainer.max_epochs or -1) > 0 and trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
    return loop == log_on and (last or trainer.current_epoch % every_n_epochs == 0)


def due_between(trainer: pl.Trainer, every_n_steps: int | None, batch_idx: int) -> bool:
    """Whether to look after this batch, inside an epoch: only where an optimizer step was taken."""
    if every_n_steps is None or trainer.is_last_batch:
        return False
    stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return stepped and trainer.global_step > 0 and trainer.global_step % every_n_steps == 0
