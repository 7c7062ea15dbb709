"""The time that a probe may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

__all__ = ["NO_LIMIT", "Clock"]


@dataclass(frozen=True)
class Clock:
    """Started when it is made.

    Attributes:
        seconds: That may pass; ``None`` for no limit.
        start: Reading of ``time.perf_counter``.

    Example:
        >>> Clock(None).over(), Clock(0.0).over()
        (False, True)
    """

    seconds: float | None
    start: float = field(default_factory=time.perf_counter)

    def over(self, share: float = 1.0) -> bool:
        """Whether this share of the time is used up."""
        return self.seconds is not None and time.perf_counter() - self.start >= share * self.seconds


NO_LIMIT = Clock(None)
