"""What the models are good for: losses of held-out patients and of pool patients whom a model never saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.comparing.attack import by_seed
from memguard.comparing.groups import Members
from memguard.comparing.intervals import Number
from memguard.comparing.outcomes import ArmRuns

__all__ = ["held_out_loss", "of_seeds", "over_seeds", "unseen_loss"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def of_seeds(arm: ArmRuns, values: NDArray[np.floating]) -> Floats:
    """``(S, ...)`` mean over the two models of each seed, from ``(K, ...)``."""
    order = np.argsort(arm.seed, kind="stable").reshape(-1, 2)
    means: Floats = values[order].astype(np.float64).mean(axis=1)
    return means


def over_seeds(values: Sequence[float] | Floats, patients: int) -> Number:
    """The mean of one number a seed; its jackknife interval is Student's."""
    one = np.asarray(values, dtype=np.float64)
    return Number(value=float(one.mean()), without=(one.sum() - one) / (len(one) - 1), patients=patients)


def held_out_loss(arm: ArmRuns, stage: int, judging: Bools) -> Number:
    """Mean loss of held-out patients, each counted once.

    Args:
        arm: The runs.
        stage: Of the training.
        judging: ``(H,)`` patients that judge, of a stratum or all.
    """
    means = of_seeds(arm, arm.held_out[:, stage][:, judging]).mean(axis=1)
    return over_seeds(means, int(np.count_nonzero(judging)))


def unseen_loss(arm: ArmRuns, stage: int, members: Members, judging: Bools) -> Number:
    """Mean loss, as deployed, of patients of a group whom the model never saw: what the group pays.

    Of the pool those in the half that the model did not train on; and the held-out patients that judge.

    Args:
        arm: The runs.
        stage: Of the training.
        members: Of the group, in the pool.
        judging: ``(H,)`` held-out patients of the group that judge; none for a group that is of the pool alone.
    """
    out = by_seed(arm, arm.loss[:, stage, 0])[1]
    means, held = [], of_seeds(arm, arm.held_out[:, stage][:, judging])
    for s, mine in enumerate(members.of_seed):
        # two models: each pool patient is unseen by one of them, each held-out patient by both
        total, count = float(out[s, mine].sum()), float(np.count_nonzero(mine))
        if judging.any():
            total, count = total + 2.0 * float(held[s].sum()), count + 2.0 * held.shape[1]
        means.append(total / count)
    return over_seeds(means, members.patients + int(np.count_nonzero(judging)))
