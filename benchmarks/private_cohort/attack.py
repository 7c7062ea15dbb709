"""LiRA on patients: how many of a group are found when one in a hundred non-members is called a member."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memguard.attacks import Estimate, auc, by_patient, lira, tpr_at_fpr
from memguard.attacks._intervals import clopper_pearson, effective_records

__all__ = ["VARIANCES", "Found", "attack", "by_group", "patient_losses"]

VARIANCES = ("pooled", "per_record", "global")


@dataclass(frozen=True)
class Found:
    """How well an attack tells members of a group of patients from non-members, over all models as targets.

    Attributes:
        patients: In the group.
        pairs: Of a target model and a patient of the group whom it trained on.
        auc: Within the group.
        common: TPR at the threshold that a share ``fpr`` of *all* non-members exceeds; the interval allows for
            the uncertainty of the threshold.
        own_fpr: Share of the group's non-members above the common threshold.
        own: TPR at the threshold that a share ``fpr`` of the group's own non-members exceeds.
        own_low: 95 % Clopper-Pearson at that threshold, pairs of one patient counted once as far as they agree.
        own_high: Its upper end.
    """

    patients: int
    pairs: int
    auc: Estimate
    common: Estimate
    own_fpr: float
    own: float
    own_low: float
    own_high: float


def patient_losses(losses: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the records of each patient: ``(K, P)`` from ``(K, N)``; and the first record of each, ``(P,)``."""
    first = np.unique(patient, return_index=True)[1]
    return np.stack([by_patient(patient, row).nats_per_token for row in losses]), first


def attack(losses: np.ndarray, inside: np.ndarray, group: np.ndarray, variance: str) -> np.ndarray:
    """Log likelihood ratio ``(K, P)`` of each patient, each model attacked with all others as references.

    Variances are those of the patient's own group where they are pooled: a single one over all patients hides
    groups that scatter less.
    """
    out = np.full(losses.shape, np.nan)
    for k in range(len(losses)):
        others = np.arange(len(losses)) != k
        for one in np.unique(group):
            mine = group == one
            found = lira(
                -losses[k, mine], -losses[others][:, mine], inside[others][:, mine], variance=variance
            )
            out[k, mine] = found.score
    return out


def by_group(
    scores: np.ndarray, inside: np.ndarray, groups: Mapping[str, np.ndarray], fpr: float
) -> dict[str, Found]:
    """Success in each group of patients; targets are pooled, since log likelihood ratios are on one scale.

    Args:
        scores: ``(K, P)``; NaN where a patient had too few references.
        inside: ``(K, P)`` the truth.
        groups: Bool ``(P,)`` by name.
        fpr: Share of non-members that may be called members.

    Returns:
        By name; a group without a member or without a non-member is left out.
    """
    known = np.isfinite(scores)
    column = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    # A patient is a member of some targets and a non-member of others: two clusters.
    cluster = 2 * column + inside
    outer = known & ~inside
    threshold = _threshold(scores[outer], fpr)
    out = {}
    for name, mask in groups.items():
        mine = known & mask
        inner, not_in = mine & inside, mine & ~inside
        if not inner.any() or not not_in.any():
            continue
        both = inner | outer
        own = scores[inner] > _threshold(scores[not_in], fpr)
        n = effective_records(own, np.unique(column[inner], return_inverse=True)[1])
        low, high = clopper_pearson(float(own.mean()), n, 0.95)
        out[name] = Found(
            patients=int(mask.sum()),
            pairs=int(inner.sum()),
            auc=auc(scores[mine], inside[mine], groups=cluster[mine]),
            common=tpr_at_fpr(scores[both], inner[both], fpr, groups=cluster[both]),
            own_fpr=float((scores[not_in] > threshold).mean()),
            own=float(own.mean()),
            own_low=low,
            own_high=high,
        )
    return out


def _threshold(outside: np.ndarray, fpr: float) -> float:
    """At most a share ``fpr`` of ``outside`` lies above."""
    return float(np.sort(outside)[::-1][int(np.floor(fpr * len(outside) + 1e-9))])
