"""What callbacks share that stand beside a monitor: which one they follow, and what was trained without them."""

from __future__ import annotations

import lightning.pytorch as pl

from memguard.callbacks.monitor import LeakageMonitor
from memguard.callbacks.stated import callbacks_of
from memguard.capture import Capture
from memguard.capture.weigh import Weigher
from memguard.errors import MemguardError

__all__ = ["missed", "monitor_of"]


def monitor_of(trainer: pl.Trainer, name: str, does: str, wanted: LeakageMonitor | None) -> LeakageMonitor:
    """The one monitor of a Trainer that a callback follows.

    Args:
        trainer: With its callbacks.
        name: Of the callback that asks.
        does: What it does, for the message.
        wanted: The one that the user named; ``None`` where there is one alone.

    Raises:
        MemguardError: If there is none, several, or not the one that was named.
    """
    found = [one for one in callbacks_of(trainer) if isinstance(one, LeakageMonitor)]
    chosen = [one for one in found if wanted is None or one is wanted]
    if wanted is not None and found and not chosen:
        raise MemguardError(
            f"{name} whose monitor= is none of the {len(found)} LeakageMonitor in callbacks=",
            f"it {does} of one that watches the same training",
            "pass one of them as monitor=, or leave it out where there is one alone",
        )
    if len(chosen) != 1:
        raise MemguardError(
            f"{name} in a Trainer with {len(found)} LeakageMonitor",
            f"it {does} of exactly one that watches the same training",
            "add a LeakageMonitor to callbacks=, and where there are several say which by monitor=",
        )
    return chosen[0]


def missed(weigher: Weigher | None, capture: Capture | None) -> str:
    """What was trained on without weights, in words; empty where nothing was.

    Example:
        >>> missed(Weigher(missed=3), None)
        ' 3 steps could not be weighed and were trained on as they were.'
    """
    said = ""
    if weigher is not None and weigher.missed:
        said += f" {weigher.missed:,} steps could not be weighed and were trained on as they were."
    if capture is not None and "train" in capture.problems:
        said += " It ended early, with the capture of losses."
    return said
