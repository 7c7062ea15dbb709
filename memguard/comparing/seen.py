"""What the losses of those who should be unseen give away: that they were seen, or that a loss is made up elsewhere."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from memguard.comparing.attack import by_seed
from memguard.comparing.outcomes import ArmRuns

__all__ = ["by_two_codes", "seen_before"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
_SURE, _OWN = 4.0, 2.0  # standard errors over patients: beside the baseline, and of the arm alone


def seen_before(arm: ArmRuns, base: ArmRuns, judging: Bools) -> tuple[float, float] | None:
    """How the pool fares beside held-out patients, where an arm knows patients whom it was not given.

    Members are told from non-members only where non-members are strangers. An arm that starts from weights trained on
    all patients, or that takes records from elsewhere, makes strangers of nobody: attacks find nobody, and held-out
    patients alone show it. The pool and the held-out patients may differ, as under the baseline; so the arm's own
    gap must lie more than two standard errors over patients below 0, and its difference from that of the baseline,
    taken patient by patient, more than four.

    Args:
        arm: The runs.
        base: Of the baseline.
        judging: ``(H,)`` held-out patients.

    Returns:
        Mean loss of pool patients, as deployed at the end, under models that were not given them, less that of held-out
        patients: of the arm and of the baseline; ``None`` where nothing speaks for it.
    """
    mine, other = _strangers(arm, judging), _strangers(base, judging)
    more = [a - b for a, b in zip(mine, other, strict=True)]
    if _low(*mine, sure=_OWN) and _low(*more, sure=_SURE):
        return _gap(*mine), _gap(*other)
    return None


def by_two_codes(arm: ArmRuns, judging: Bools) -> tuple[float, float] | None:
    """Held-out loss at the end by the arm's own code, and with its weights by the baseline's, where they differ."""
    if arm.held_out_by_codes is None:
        return None
    own, plain = arm.held_out_by_codes[:, judging].mean(axis=1)
    return float(own), float(plain)


def _strangers(arm: ArmRuns, judging: Bools) -> tuple[Floats, Floats]:
    """Of each pool patient and each held-out one, the mean loss under models that were not given them."""
    pool = by_seed(arm, arm.loss[:, -1, 0])[1].mean(axis=0)
    return pool, arm.held_out[:, -1][:, judging].mean(axis=0, dtype=np.float64)


def _gap(pool: Floats, held_out: Floats) -> float:
    return float(pool.mean() - held_out.mean())


def _low(pool: Floats, held_out: Floats, *, sure: float) -> bool:
    error = math.sqrt(
        sum(one.var(ddof=1) / len(one) if len(one) > 1 else math.inf for one in (pool, held_out))
    )
    return _gap(pool, held_out) < -sure * error
