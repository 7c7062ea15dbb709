"""Matched utility: at which stage of its training each arm is first as good as the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.comparing.outcomes import Outcomes
from memguard.comparing.utility import of_seeds

__all__ = ["Bar", "bars", "best_within"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A level of utility, and where each arm first meets it.

    Attributes:
        name: Short.
        limit: Largest mean loss on the choosing half of the held-out patients.
        words: What it is.
        stages: Arm -> stage; an arm that never meets it is not in here.
        without: Arm -> ``(S,)`` the same when limit and stage are taken without each seed; where the arm then never
            meets the limit, its stage of lowest loss.
    """

    name: str
    limit: float
    words: str
    stages: Mapping[str, int]
    without: Mapping[str, tuple[int, ...]]


def best_within(tolerance: float) -> str:
    """Name of the level of the baseline's best loss and a tolerance.

    Example:
        >>> best_within(0.01), best_within(0.005)
        ('best + 1 %', 'best + 0.5 %')
    """
    return f"best + {100 * tolerance:g} %"


def bars(outcomes: Outcomes, tolerance: float) -> list[Bar]:
    """Levels of utility, and the earliest stage at which each arm is within.

    Only the choosing half of the held-out patients is looked at, and no leakage: whatever is then said about the chosen
    stage is judged on other people. The baseline is treated like every arm, so early stopping is given to everybody.

    Args:
        outcomes: Of all arms.
        tolerance: Relative loss of utility that counts as none; 5 % is a level too.
    """
    choosing = ~outcomes.judging
    losses = {
        arm.name: of_seeds(arm, arm.held_out[:, :, choosing].mean(axis=2, dtype=np.float64))
        for arm in outcomes.arms
    }
    base = losses[outcomes.baseline]
    name = outcomes.baseline
    kinds = [
        ("baseline's end", f"the mean loss of {name} when its training ends", -1, 0.0),
        ("baseline's best", f"the lowest mean loss of {name} over its stages", None, 0.0),
    ]
    for share in sorted({tolerance, 0.05}):
        kinds.append(
            (best_within(share), f"the lowest mean loss of {name} and {100 * share:g} % more", None, share)
        )
    found = []
    for title, words, stage, share in kinds:
        limit = _limit(base.mean(axis=0), stage, share)
        stages, without = {}, {}
        for arm, loss in losses.items():
            first = _earliest(loss.mean(axis=0), limit)
            if first is None:
                continue
            stages[arm] = first
            without[arm] = tuple(
                _without(np.delete(loss, s, axis=0).mean(axis=0), np.delete(base, s, axis=0), stage, share)
                for s in range(outcomes.seeds)
            )
        found.append(Bar(name=title, limit=limit, words=words, stages=stages, without=without))
    return found


def _limit(base: Floats, stage: int | None, share: float) -> float:
    lowest = float(base.min() if stage is None else base[stage])
    return lowest + share * abs(lowest)


def _earliest(loss: Floats, limit: float) -> int | None:
    within = np.flatnonzero(loss <= limit)
    return int(within[0]) if len(within) else None


def _without(loss: Floats, base: Floats, stage: int | None, share: float) -> int:
    first = _earliest(loss, _limit(base.mean(axis=0), stage, share))
    return int(np.argmin(loss)) if first is None else first
