"""The full audit when training ends, in the run that trained."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from memguard.auditing.examine import Audit, Options, examine
from memguard.auditing.live import LiveRun
from memguard.callbacks.gather import n_ranks
from memguard.callbacks.guard import warn
from memguard.callbacks.session import WatchSession
from memguard.callbacks.stated import Stated, callbacks_of
from memguard.capture.stillness import forked_rng
from memguard.errors import MemguardError
from memguard.references.settings import Settings

__all__ = ["audit_at_end", "options_of"]


def options_of(wanted: bool | Mapping[str, Any], folder: Path, seed: int) -> Options | None:
    """What the audit is to do; ``None`` for no audit.

    Args:
        wanted: As the monitor takes it.
        folder: Where references are kept, unless it says otherwise.
        seed: Of every draw, unless it says otherwise.

    Raises:
        MemguardError: If it names something that an audit does not take.

    Example:
        >>> options_of({"references": "counts"}, Path("audit"), 0).references
        'counts'
    """
    if wanted is False:
        return None
    given = {} if wanted is True else dict(wanted)
    unknown = sorted(set(given) - set(Options.__dataclass_fields__))
    if unknown:
        raise MemguardError(
            f"audit_on_end= with {', '.join(unknown)}",
            "an audit takes no such argument",
            f"pass some of {', '.join(sorted(Options.__dataclass_fields__))}",
        )
    return Options(**{"folder": folder, "seed": seed, "progress": False, **given})


def audit_at_end(
    trainer: pl.Trainer, module: pl.LightningModule, session: WatchSession, monitor: Any, options: Options
) -> Audit | None:
    """Audit the trained module and write the report beside that of the monitor; a fault costs no training.

    Args:
        trainer: Of the run, which is over.
        module: Of the run.
        session: Of the watch.
        monitor: Whose report is finished.
        options: What to do.

    Returns:
        What was found; ``None``, with a warning, where it failed or several processes train.
    """
    if n_ranks() > 1:
        warn(
            "audit_on_end= in a training of several processes",
            "references are trained by one",
            "call memguard.audit afterwards",
        )
        return None
    before = next(
        (known for one in callbacks_of(trainer) if isinstance(one, Stated) and (known := one.before())), {}
    )
    try:
        with forked_rng(None):
            if before and options.trainer is None:  # references train as the user's Trainer would
                options = replace(options, trainer=_as_given(Settings.of(trainer), before))
            run = LiveRun(
                trainer=trainer,
                module=module,
                capture=session.capture,
                source=session.source,
                record_to_patient=session.record_to_patient,
                loader=before.get("loader"),
            )
            found = examine(
                run, options, model=module, data=getattr(trainer, "datamodule", None), monitor=monitor
            )
            found.save(options.folder)
        return found
    except Exception:  # the model is trained: whatever went wrong here must not cost it
        warn(
            f"the audit was not finished:\n{traceback.format_exc()}",
            "the model is trained, and the monitor's own report stands",
            "call memguard.audit(model, data) with what the message asks for",
        )
        return None


def _as_given(settings: Settings, before: Mapping[str, Any]) -> Settings:
    """Settings with what another callback changed for its own ends as it was."""
    known = {
        name: before[name] for name in ("accumulate_grad_batches", "limit_train_batches") if name in before
    }
    return replace(settings, **known)
