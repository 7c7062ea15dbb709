"""What a reader must know beside the numbers: of each arm, and of what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.comparing.groups import Members
from memguard.comparing.outcomes import ArmRuns, Outcomes
from memguard.records.small_cells import MIN_CELL
from memguard.report.comparison import ArmSummary

__all__ = ["notes", "partly", "summary"]


def notes(
    outcomes: Outcomes,
    small: Sequence[str],
    judges: Mapping[str, NDArray[np.bool_]],
    alone: Mapping[str, Members | None],
) -> list[str]:
    """Caveats, and what was left out.

    Args:
        outcomes: Of all arms.
        small: Strata without numbers.
        judges: Group -> held-out patients who judge.
        alone: Arm -> patients whom its mitigation left alone.
    """
    found = [
        "Every interval is over seeds, for the same patients: it does not say how other patients would fare.",
        "A maximum over attacks is too large on average, in every arm; an arm with more signals has more attacks.",
    ]
    if small:
        found.append(f"Fewer than {MIN_CELL} patients, and therefore no numbers, in: {', '.join(small)}.")
    few = [n for n, m in judges.items() if n in outcomes.strata and np.count_nonzero(m) < MIN_CELL]
    if few:
        found.append(
            f"Fewer than {MIN_CELL} held-out patients judge, so no held-out loss, in: {', '.join(few)}."
        )
    for arm in outcomes.arms:
        members = alone[arm.name]
        if members is not None and not members.enough and arm.name != outcomes.baseline:
            found.append(f"{arm.name} left too few patients alone to attack them again.")
        lacking = partly(arm)
        if lacking:
            found.append(f"{arm.name}: not measured for every model and patient, so left out: {lacking}.")
    return found


def partly(arm: ArmRuns) -> str:
    """Signals that some models or patients lack at the last stage and others have."""
    last = np.isfinite(arm.loss[:, -1]).mean(axis=(0, 2))
    return ", ".join(arm.signals[int(g)] for g in np.flatnonzero((last > 0) & (last < 1)))


def summary(arm: ArmRuns) -> ArmSummary:
    """What stands above an arm's numbers: settings, promise, time, whom it touched."""
    settings: Mapping[str, str | int | float | bool | None] = dict(arm.settings)
    epsilon = None if arm.epsilon is None or not arm.private else float(np.max(arm.epsilon))
    touched = None
    if arm.touched is not None:
        touched = float((arm.touched & arm.inside).sum(axis=1).mean() / arm.inside.sum(axis=1).mean())
    return ArmSummary(
        name=arm.name,
        settings=settings,
        epsilon=epsilon,
        seconds=float(arm.seconds.mean()),
        touched_share=touched,
        guarantee=arm.guarantee,
        signals=tuple(arm.signals[g] for g in arm.measured(arm.stages - 1)),
        same=tuple(arm.same),
        notes=tuple(arm.notes),
    )
