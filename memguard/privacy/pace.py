"""What a Trainer counts in the user's batches, counted in draws and in parts of draws.

A user sets limits and intervals in batches of his loader, of which ``accumulate`` make an optimizer step. In a private
training a step is a draw, and the Trainer sees its parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Pace", "done_in_epoch", "planned_steps"]


@dataclass(frozen=True)
class Pace:
    """How a Trainer is to count during a private training.

    Attributes:
        steps: Optimizer steps in an epoch, each of one draw.
        parts: Parts of a draw: batches that the Trainer accumulates.
        accumulate: Batches of the user's loader in an optimizer step.

    Example:
        >>> pace = Pace.of(steps_per_epoch=50, parts=3, accumulate=2, limit=20)
        >>> pace.steps, pace.validate_every(0.5), pace.validate_every(8), pace.validate_every(1.0)
        (10, 15, 12, 1.0)
    """

    steps: int
    parts: int
    accumulate: int = 1

    @classmethod
    def of(cls, *, steps_per_epoch: int, parts: int, accumulate: int, limit: int | float) -> Pace:
        """Under ``limit_train_batches``: a share of the epoch, or a number of the user's batches.

        Args:
            steps_per_epoch: Without a limit.
            parts: Of a draw.
            accumulate: The user's ``accumulate_grad_batches``.
            limit: The user's ``limit_train_batches``.
        """
        if isinstance(limit, int):
            steps = min(steps_per_epoch, math.ceil(limit / accumulate))
        else:
            steps = int(steps_per_epoch * limit)
        return cls(max(1, steps), parts, accumulate)

    @property
    def loss_factor(self) -> float:
        """What a loss is multiplied by, since the Trainer divides it by the parts and not by the user's batches."""
        return self.parts / self.accumulate

    def validate_every(self, interval: int | float) -> int | float:
        """``val_check_interval`` for the Trainer: whole draws, counted in parts.

        Args:
            interval: The user's: a number of his batches, or a share of an epoch.

        Returns:
            A number of parts; 1.0, once an epoch, stays as it is.
        """
        if isinstance(interval, int):
            return max(1, round(interval / self.accumulate)) * self.parts
        return interval if interval == 1.0 else max(1, int(self.steps * interval)) * self.parts


def planned_steps(steps_in_epoch: int, max_epochs: int | None, max_steps: int | None) -> int | None:
    """Optimizer steps of a whole training; ``None`` where it has no planned end.

    Args:
        steps_in_epoch: Of each epoch.
        max_epochs: Of the Trainer; ``None`` or -1 for no limit.
        max_steps: Of the Trainer; ``None`` or -1 for no limit.

    Example:
        >>> planned_steps(10, 3, -1), planned_steps(10, 3, 25), planned_steps(10, -1, 25), planned_steps(10, -1, -1)
        (30, 25, 25, None)
    """
    by_epochs = None if max_epochs is None or max_epochs < 0 else max_epochs * steps_in_epoch
    if max_steps is None or max_steps < 0:
        return by_epochs
    return max_steps if by_epochs is None else min(max_steps, by_epochs)


def done_in_epoch(parts_done: int, parts_then: int, parts_now: int) -> int:
    """Where an epoch stands that was interrupted with other parts of a draw, in parts of now.

    Args:
        parts_done: Parts that were trained on in the epoch.
        parts_then: Parts of a draw at that time.
        parts_now: Parts of a draw from now on.

    Returns:
        The same where a draw has as many parts as before; otherwise whole draws, and one that was interrupted is
        begun again.

    Example:
        >>> done_in_epoch(7, 3, 3), done_in_epoch(7, 3, 2), done_in_epoch(6, 3, 1)
        (7, 4, 2)
    """
    return parts_done if parts_then == parts_now else parts_done // parts_then * parts_now
