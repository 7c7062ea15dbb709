"""What may fail in a look, and what that costs: the watch, and not the training."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from memguard.callbacks.gather import n_ranks
from memguard.errors import MemguardError, MemguardWarning

__all__ = ["Guard", "warn"]


def warn(seen: str, why: str, fix: str) -> None:
    """A `MemguardWarning` at the line of the caller's caller."""
    warnings.warn(MemguardWarning(seen, why, fix), stacklevel=3)


class Guard:
    """Ends the watch where a look fails, and lets training go on.

    Args:
        notes: Where the end of the watch is noted.
        on_problem: As the monitor takes it.

    Attributes:
        stopped: Whether the watch has ended.

    Example:
        >>> guard = Guard(notes := [])
        >>> with warnings.catch_warnings(action="ignore"), guard.at_no_cost(12):
        ...     raise MemguardError("7 losses for 8 records")
        >>> guard.stopped, notes
        (True, ['The watch ended at step 12: 7 losses for 8 records.'])
    """

    def __init__(self, notes: list[str], on_problem: str = "auto") -> None:
        self.notes, self.on_problem, self.stopped = notes, on_problem, False

    @contextmanager
    def at_no_cost(self, step: int, *, early: bool = False) -> Iterator[None]:
        """What fails in here ends the watch and not the training, unless that has hardly begun.

        Args:
            step: Optimizer steps taken.
            early: Whether there is no training to lose yet.

        Raises:
            MemguardError: With ``on_problem="auto"``, where it is early.
            Exception: Any, with ``on_problem="raise"`` or in more than one process.
        """
        try:
            yield
        except Exception as error:
            refused = early and isinstance(error, MemguardError) and self.on_problem == "auto"
            # Of several processes none can stop alone: the others would wait for it for ever.
            if refused or self.on_problem == "raise" or n_ranks() > 1:
                raise
            if not self.stopped:
                self._stop(step, error)

    def _stop(self, step: int, error: Exception) -> None:
        self.stopped = True
        why = str(error) if isinstance(error, MemguardError) else f"{type(error).__name__} in a look."
        self.notes.append(f"The watch ended at step {step}: {why}")
        if isinstance(error, MemguardError):
            warn(why, f"no further look is taken after step {step}", "")
        else:
            warn(
                f"a look failed at step {step}:\n{traceback.format_exc()}",
                "training goes on, and monitor.curve holds what was measured before",
                "report this",
            )
