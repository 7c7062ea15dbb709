"""Losses in eval mode, by the run's own validation step: of a sample of members, of members, of held-out records."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from memguard.callbacks.gather import everybody, my_part
from memguard.capture import Capture, CapturedLoss, Fetched
from memguard.capture.heldout import HeldOutSource
from memguard.probes.sides import Floats, Ints, placed
from memguard.probes.watch import Watch

__all__ = ["Evaluation", "losses_of"]


def losses_of(windows: Fetched, captured: Sequence[CapturedLoss]) -> list[tuple[Ints, Floats]]:
    """Positions and losses of each batch, off the device."""
    return [(at, c.loss.float().cpu().numpy()) for at, c in zip(windows.positions, captured, strict=True)]


class Evaluation:
    """Evaluates records of both sides of one watch; the ranks share the work, and each gets every loss.

    Args:
        capture: Of the run.
        source: Of its held-out patients.
        watch: Of both sides, N members and M held-out records.
    """

    def __init__(self, capture: Capture, source: HeldOutSource, watch: Watch) -> None:
        self.capture, self.source, self.watch = capture, source, watch
        self._sample_windows: tuple[Ints, Fetched] | None = None
        self._held_out_windows: Fetched | None = None  # of all of them
        self._between_windows: Fetched | None = None  # of a sample

    def sample(self) -> Floats:
        """Losses ``(m,)`` of the member sample, whose batches are fetched once."""
        sample = self.watch.draw_sample()
        if self._sample_windows is None or not np.array_equal(self._sample_windows[0], sample):
            self._sample_windows = sample, self.capture.fetch("train", my_part(sample))
        return self._of_members(self._sample_windows[1])[sample]

    def members(self, rows: Ints) -> Floats:
        """Losses ``(N,)`` of these members, NaN for the others."""
        return self._of_members(self.capture.fetch("train", my_part(rows)))

    def held_out(self) -> Floats:
        """Losses ``(M,)`` of all held-out records."""
        return self._of_held_out(self._all())

    def held_out_sample(self) -> Floats:
        """Losses ``(M,)`` of a sample of the held-out records, NaN for the others."""
        if self._between_windows is None:
            rows = self.watch.settings.draw_held_out(self.source.n_records, len(self.watch.members.tokens))
            self._between_windows = self.source.windows(my_part(rows))
        return self._of_held_out(self._between_windows)

    def refresh_held_out(self) -> None:
        """Put the losses of all held-out records into this rank's watch, where no validation loop does."""
        windows = self._all()
        side = self.watch.held_out
        positions, loss, tokens, contents = self.source.evaluate(windows, contents=not side.store.complete)
        for at, content in zip(windows.positions, contents, strict=False):
            side.store.add(at, **content)
        side.traces.merge([])
        side.add(positions, loss, tokens)

    def _all(self) -> Fetched:
        if self._held_out_windows is not None:
            return self._held_out_windows
        windows = self.source.windows(my_part(np.arange(self.source.n_records)))
        if not self.source.free:  # needed again at each look
            self._held_out_windows = windows
        return windows

    def _of_members(self, windows: Fetched) -> Floats:
        mine = losses_of(windows, self.capture.evaluate(windows))
        return placed(chain.from_iterable(everybody(mine)), len(self.watch.members.tokens))

    def _of_held_out(self, windows: Fetched) -> Floats:
        positions, loss, _, _ = self.source.evaluate(windows)
        return placed(everybody((positions, loss)), len(self.watch.held_out.tokens))
