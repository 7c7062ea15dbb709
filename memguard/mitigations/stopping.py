"""When leakage ends a training, and which of its weights are kept: looks in, decisions out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from memguard.errors import MemguardError
from memguard.mitigations.arguments import is_number, is_whole

__all__ = ["Judged", "StoppingRule"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One look by the number that has a limit.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps taken.
        bound: Of the number; NaN where the look does not have it.
        over: Whether the bound lies above the limit.
        utility: By which the best look is chosen; NaN where not measured at this look.

    Example:
        >>> Judged.of(Judged(epoch=1, step=8, bound=0.5, over=False, utility=2.0).as_dict()).step
        8
    """

    epoch: float
    step: int
    bound: float
    over: bool
    utility: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        """Primitives, for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, found: dict[str, Any]) -> Judged:
        """What `as_dict` gave."""
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Stop after so many looks in a row over a limit; the best look under it is the one to keep.

    Everything is a function of the looks so far, in order of time. Where two looks were taken at one step the weights
    are the same, and the later one, which saw more patients, takes the place of the earlier; what was decided to stop
    stays decided. A look without the number says nothing: it is neither over nor under.

    Attributes:
        limit: Of the bound; at the limit is under it.
        patience: Looks in a row over the limit after which to stop.
        mode: Whether the best utility is the smallest or the largest.

    Raises:
        MemguardError: For a limit that is no number, a patience below 1 or an unknown mode.

    Guarantees:
        None about leakage: it says what the looks showed, and what was learned of a patient before stays learned.

    Example:
        >>> rule = StoppingRule(limit=0.6, patience=2)
        >>> looks = [rule.judge(epoch=t, step=t, bound=b, utility=u)
        ...          for t, b, u in [(1, .52, 3.), (2, .58, 2.), (3, .61, 1.), (4, .63, .9), (5, .7, .8)]]
        >>> rule.stopped_at(looks).epoch, rule.best(looks).epoch, rule.in_a_row(looks)
        (4, 2, 3)
    """

    limit: float
    patience: int = 1
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if not is_number(self.limit) or not math.isfinite(self.limit):
            raise MemguardError(
                f"limit={self.limit!r}", "nothing can be compared with it", "pass a finite number"
            )
        if not is_whole(self.patience, 1):
            raise MemguardError(
                f"patience={self.patience!r}",
                "it counts looks in a row over the limit",
                "pass a whole number from 1",
            )
        if self.mode not in ("min", "max"):
            raise MemguardError(
                f"mode={self.mode!r}", "it says which utility is the best", 'pass "min" or "max"'
            )

    def judge(self, *, epoch: float, step: int, bound: float, utility: float = math.nan) -> Judged:
        """A look by its bound: ``over`` where that is above the limit."""
        return Judged(epoch=epoch, step=step, bound=bound, over=bound > self.limit, utility=utility)

    def in_a_row(self, looks: Sequence[Judged]) -> int:
        """Looks over the limit since the last one under it."""
        return next(reversed([row for _, row in self._rows(looks)]), 0)

    def stopped_at(self, looks: Sequence[Judged]) -> Judged | None:
        """The first look at which ``patience`` was at its end; ``None`` where it never was."""
        return next((look for look, row in self._rows(looks) if row >= self.patience), None)

    def best(self, looks: Sequence[Judged]) -> Judged | None:
        """The look under the limit with the best utility, the earliest of equals; ``None`` where there is none."""
        last = {look.step: look for look in looks}
        under = [look for look in last.values() if look.bound <= self.limit and math.isfinite(look.utility)]
        sign = 1 if self.mode == "min" else -1
        return min(under, key=lambda look: (sign * look.utility, look.step), default=None)

    def to_keep(self, looks: Sequence[Judged]) -> set[int]:
        """Steps whose weights may still be the best: one more look may be taken at the last step."""
        step = looks[-1].step if looks else 0
        found = self.best(looks), self.best([look for look in looks if look.step != step])
        return {look.step for look in found if look is not None}

    def _rows(self, looks: Sequence[Judged]) -> Iterator[tuple[Judged, int]]:
        """Each look, with how many in a row are over the limit as of it."""
        row = before = 0
        step: int | None = None
        for look in looks:
            if look.step != step:
                before, step = row, look.step
            if not math.isnan(look.bound):
                row = before + 1 if look.over else 0
            yield look, row
