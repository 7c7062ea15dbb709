"""What references said, patient by patient, and how it enters a comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.probes.trajectory.asking import Questions, compared
from memguard.probes.trajectory.summary import TierResult

__all__ = ["Answers", "tier_result"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass
class Answers:
    """What K references said at one tier about n patients.

    Attributes:
        wanted: ``(K, n)`` which of them each patient is compared with.
        asked: ``(K, n)`` which of those were asked.
        best: Measure -> ``(K, n)`` of the sample that comes nearest, NaN where not asked.
        mean: Likewise of all samples in the mean.
    """

    wanted: Bools
    asked: Bools
    best: dict[str, Floats]
    mean: dict[str, Floats]

    @classmethod
    def of(cls, wanted: Bools) -> Answers:
        """Nothing asked yet."""
        return cls(wanted=wanted, asked=np.zeros_like(wanted), best={}, mean={})

    def add(self, k: int, who: NDArray[np.int64], measured: dict[str, Floats]) -> None:
        """Take in ``(len(who), samples)`` of each measure by reference k."""
        self.asked[k, who] = True
        for name, values in measured.items():
            for store, value in (
                (self.best, values.min(axis=1) if name == "distance" else values.max(axis=1)),
                (self.mean, values.mean(axis=1)),
            ):
                store.setdefault(name, np.full(self.wanted.shape, np.nan))[k, who] = value


def tier_result(q: Questions, target: dict[str, Floats], ratio: Floats, answers: Answers) -> TierResult:
    """Target and references put together; each patient is compared with the same number of references."""
    chosen, depth = compared(answers.asked, q.member) if answers.asked.any() else (answers.asked, 0)
    reference: dict[str, dict[str, Floats]] = {}
    if depth:
        known = chosen.sum(axis=0) == depth
        for name in target:
            nothing = np.inf if name == "distance" else -np.inf
            picked = np.where(chosen, answers.best[name], nothing)
            most = picked.min(axis=0) if name == "distance" else picked.max(axis=0)
            reference[name] = {
                how: np.where(known, np.where(chosen, store[name], 0.0).sum(axis=0) / depth, np.nan)
                for how, store in (("best", answers.best), ("mean", answers.mean))
            }
            reference[name]["most"] = np.where(known, most, np.nan)
    return TierResult(
        plan=q.plan,
        patient=q.patient,
        member=q.member,
        target=target,
        reference=reference,
        depth=depth,
        ratio=ratio,
    )
