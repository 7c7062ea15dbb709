"""Membership attacks on the half-models: raw loss against LiRA (arXiv 2112.03570), by group of patients."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from benchmarks.ranking.truth import Pool
from memguard.attacks import lira

__all__ = ["attack_table"]


def _auc(score: np.ndarray, member: np.ndarray) -> float:
    ranks, n_in = rankdata(score), int(member.sum())
    return float((ranks[member].sum() - n_in * (n_in + 1) / 2) / (n_in * (len(member) - n_in)))


def _lira(models: Pool, losses: np.ndarray, k: int) -> np.ndarray:
    """Log likelihood ratio of target ``k`` from the other models; one variance for members, one for the others."""
    others = np.arange(len(models)) != k
    return lira(-losses[k], -losses[others], models.inside[others]).score


def attack_table(models: Pool, epoch: int, groups: dict[str, np.ndarray], fpr: float = 0.01) -> str:
    """AUC and TPR of both attacks for each group, mean over all models as targets.

    The threshold is the one at which ``fpr`` of *all* non-members are called members; a group's TPR and FPR are
    those at that common threshold.
    """
    losses = models.losses[:, int(np.flatnonzero(models.at == epoch)[0])]
    lines = [
        f"| after {epoch} epochs | patients | attack | AUC | TPR at {fpr:.0%} FPR | the group's own FPR |",
        "|---|---|---|---|---|---|",
    ]
    for name, mask in groups.items():
        for attack in ("loss", "LiRA"):
            found = []
            for k in range(len(models)):
                score = -losses[k] if attack == "loss" else _lira(models, losses, k)
                member = models.inside[k]
                threshold = np.quantile(score[~member], 1 - fpr)
                inner, outer = score[mask & member], score[mask & ~member]
                found.append(
                    (_auc(score[mask], member[mask]), (inner > threshold).mean(), (outer > threshold).mean())
                )
            auc, tpr, own = np.nanmean(found, axis=0)
            error = np.nanstd(found, axis=0, ddof=1) / np.sqrt(len(found))
            lines.append(
                f"| {name} | {int(mask.sum())} | {attack} | {auc:.3f} ± {error[0]:.3f} | {tpr:.3f} ± {error[1]:.3f} "
                f"| {own:.3f} |"
            )
    return "\n".join(lines) + "\n"
