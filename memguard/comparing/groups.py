"""Groups of patients, by the seed whose models are attacked: all, strata, the hardest, the untouched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.comparing.attack import by_seed, statistics
from memguard.comparing.outcomes import ArmRuns, Outcomes
from memguard.records.small_cells import MIN_CELL

__all__ = ["Members", "fixed", "hardest", "large_strata", "untouched"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Members:
    """Who is in a group.

    Attributes:
        of_seed: ``(S, P)``, for each target seed.
    """

    of_seed: Bools

    @property
    def patients(self) -> int:
        """How many belong to it for a seed, on average."""
        return round(float(self.of_seed.sum(axis=1).mean()))

    @property
    def enough(self) -> bool:
        """Whether there are enough for a number."""
        return bool(self.of_seed.sum(axis=1).min() >= MIN_CELL)


def fixed(mask: Bools, seeds: int) -> Members:
    """The same patients for every seed, from ``(P,)``."""
    return Members(np.broadcast_to(mask, (seeds, len(mask))))


def large_strata(outcomes: Outcomes) -> tuple[dict[str, Bools], list[str]]:
    """Strata with enough patients for a number, and the names of the others."""
    large = {name: mask for name, mask in outcomes.strata.items() if np.count_nonzero(mask) >= MIN_CELL}
    return large, [name for name in outcomes.strata if name not in large]


def hardest(arms: Sequence[ArmRuns], unit: str, share: float) -> Members:
    """For each seed, the patients with the largest gap between IN and OUT under the other seeds, over all arms.

    Two ways of choosing are unfair. Choosing by the models that are then attacked makes those look worst by whom they
    were chosen: whom chance made easy to find in some runs is found less often in others (regression to the mean).
    Choosing by the other seeds of the baseline alone, who are the references of the attacks on the baseline, sharpens
    the attacks on the baseline and on nobody else: an arm of the same law then looks better
    (``tests/comparing/test_compute.py`` measures it). So every arm has the same say: its gap of the deployed model's
    statistic at the end of training (on the logit scale for losses of whole records), in units of the scatter of its
    models, and the mean over the arms counts.

    Args:
        arms: All of them.
        unit: Of the losses.
        share: Of the patients; at least the smallest number that may be reported.
    """
    gap = np.mean([_gap(arm, unit) for arm in arms], axis=0)
    most = min(max(MIN_CELL, math.ceil(share * gap.shape[1] - 1e-9)), gap.shape[1])
    return Members(_top(gap.sum(axis=0) - gap, most))


def _gap(arm: ArmRuns, unit: str) -> Floats:
    """``(S, P)`` IN minus OUT score of each seed, over the standard deviation of scores about their patient's mean."""
    loss = arm.loss[:, -1, 0].astype(np.float64)
    stat = by_seed(arm, list(statistics(loss, unit).values())[-1])
    scatter = float(np.sqrt((stat - stat.mean(axis=1, keepdims=True)).var()))
    gap: Floats = (stat[0] - stat[1]) / (scatter or 1.0)
    return gap


def untouched(arm: ArmRuns) -> Members | None:
    """Patients whom the arm's mitigation never touched in the runs of the other seeds; ``None`` if it does not say."""
    if arm.touched is None:
        return None
    ever = by_seed(arm, arm.touched.astype(np.float64)).max(axis=0)
    return Members(ever.sum(axis=0) - ever < 0.5)


def _top(values: Floats, most: int) -> Bools:
    """Marks the ``most`` largest of the last axis."""
    found = np.zeros(values.shape, dtype=np.bool_)
    best = np.argpartition(values, values.shape[-1] - most, axis=-1)[..., values.shape[-1] - most :]
    np.put_along_axis(found, best, True, axis=-1)
    return found
