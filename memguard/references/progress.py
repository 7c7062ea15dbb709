"""How far the references are, and how long they will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["Progress", "say"]

_EVERY = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """A bar with the time left on a terminal, plain lines elsewhere; ``with Progress(...) as bar``.

    Args:
        references: How many are to be trained.
        batches: All that they will train on.
        shown: Whether anything is shown.
        stream: Where; ``None`` for standard error.
        clock: Gives seconds.

    Example:
        >>> seconds = iter([0.0, 10.0, 20.0])
        >>> with Progress(2, 100, stream=sys.stdout, clock=lambda: next(seconds)) as bar:
        ...     bar.finished("reference 0", 50)
        ...     bar.finished("reference 1", 50)
        References: 1 of 2 done (reference 0), 10 s gone, 10 s left
        References: 2 of 2 done (reference 1), 20 s gone
    """

    def __init__(
        self,
        references: int,
        batches: int,
        *,
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.references, self.batches, self.shown = references, batches, shown and references > 0
        self.stream, self.clock = stream or sys.stderr, clock
        self.done_batches = self.done_references = 0
        self.bar: Any = None
        self.began = self.said = self.clock()

    def __enter__(self) -> Progress:
        if self.shown and self.stream.isatty():
            self.bar = tqdm(total=self.batches, desc="References", unit="batch", file=self.stream, leave=True)
            self._name()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def batch(self, n: int = 1) -> None:
        """So many batches were trained on."""
        self.done_batches += n
        if self.bar is not None:
            self.bar.update(n)
        elif self.shown:
            now = self.clock()
            if now - self.said >= _EVERY:
                self._line("", now)

    def finished(self, what: str, n: int = 0) -> None:
        """A reference is done, with so many batches that were not told before."""
        self.done_batches += n
        self.done_references += 1
        if self.bar is not None:
            self.bar.update(n)
            self._name()
        elif self.shown:
            self._line(f" ({what})", self.clock())

    def _name(self) -> None:
        self.bar.set_postfix_str(f"{self.done_references} of {self.references} done")

    def _line(self, what: str, now: float) -> None:
        self.said = now
        gone = now - self.began
        share = self.done_batches / self.batches if self.batches else 0.0
        left = f", {_time(gone / share - gone)} left" if 0 < share < 1 else ""
        done = f"References: {self.done_references} of {self.references} done{what}"
        self.stream.write(f"{done}, {_time(gone)} gone{left}\n")
        self.stream.flush()


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def say(line: str) -> None:
    """A line beside the bar, on standard error."""
    tqdm.write(line, file=sys.stderr)
