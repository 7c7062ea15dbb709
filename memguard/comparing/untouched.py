"""Patients whom a mitigation left alone: whether protecting others exposes them (the privacy onion effect)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.comparing.groups import Members
from memguard.comparing.intervals import Number, difference, estimate
from memguard.comparing.strongest import Leakage
from memguard.report.comparison import Untouched

__all__ = ["EXPOSED", "HIDDEN", "changed", "reaudit"]

Bools = NDArray[np.bool_]

HIDDEN, EXPOSED = 0.25, 0.5
"""A patient is hidden who is found in fewer than a quarter of the runs, exposed who is found in more than half."""


def changed(before: Bools, after: Bools, members: Bools) -> tuple[int, int]:
    """Patients hidden before and exposed after, and the reverse.

    Args:
        before: ``(S, P)`` whether a patient is found by the model of a seed that trained on it.
        after: The same of another way to train.
        members: ``(S, P)`` runs that count for a patient; patients count with at least half of the seeds.

    Example:
        >>> import numpy as np
        >>> never, always = np.zeros((4, 1), bool), np.ones((4, 1), bool)
        >>> changed(never, always, always), changed(always, never, always), changed(never, always, never)
        ((1, 0), (0, 1), (0, 0))
    """
    counted = members.sum(axis=0)
    known = 2 * counted >= len(members)
    runs = np.maximum(counted, 1)
    first, second = ((found & members).sum(axis=0) / runs for found in (before, after))
    exposed = known & (first < HIDDEN) & (second > EXPOSED)
    hidden = known & (second < HIDDEN) & (first > EXPOSED)
    return int(np.count_nonzero(exposed)), int(np.count_nonzero(hidden))


def reaudit(
    arm: str,
    group: str,
    members: Members,
    leakage: Leakage,
    baseline: Leakage,
    control: Leakage | None,
    confidence: float,
) -> Untouched:
    """Attack them again, under the arm, the baseline, and the baseline with new seeds.

    Carlini et al. (arXiv 2206.10469) removed the most exposed records and found others exposed instead. New seeds alone
    move patients in and out of what an attack finds, so that no count means anything without that of the control.

    Args:
        arm: Name.
        group: Of the untouched in the three leakages.
        members: Who counts for which seed.
        leakage: Of the arm.
        baseline: Of the baseline.
        control: Of the baseline trained again with other seeds.
        confidence: Of the intervals.
    """
    mine, base = _number(leakage, group), _number(baseline, group)
    exposed, hidden = changed(baseline.found[group], leakage.found[group], members.of_seed)
    again = None if control is None else changed(baseline.found[group], control.found[group], members.of_seed)
    return Untouched(
        arm=arm,
        patients=int(np.count_nonzero(2 * members.of_seed.sum(axis=0) >= len(members.of_seed))),
        attack=mine.attack,
        tpr=estimate(mine, confidence),
        baseline_tpr=estimate(base, confidence),
        difference=difference(mine, base, confidence),
        newly_exposed=exposed,
        newly_hidden=hidden,
        control_difference=None if control is None else difference(_number(control, group), base, confidence),
        control_newly_exposed=None if again is None else again[0],
        control_newly_hidden=None if again is None else again[1],
    )


def _number(leakage: Leakage, group: str) -> Number:
    return leakage.numbers[group, "tpr"]
