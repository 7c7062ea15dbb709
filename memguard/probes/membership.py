"""The membership probe: can the loss of a record tell a member from a held-out patient?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import loss_gap, supported_fprs, tpr_at_fpr
from memguard.attacks.powered import powered_auc
from memguard.errors import MemguardWarning

__all__ = ["EvaluatedLosses", "MembershipResult", "membership_probe"]

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class EvaluatedLosses:
    """Losses of some records, all measured the same way: eval mode, fixed windows, one state of the model.

    Attributes:
        loss: ``(n,)`` nats per predicted token (sequence models) or per record.
        patient: ``(n,)`` integer code of the patient of each record.
    """

    loss: Floats
    patient: NDArray[np.int64]

    def finite(self) -> EvaluatedLosses:
        """The records whose loss is a number; says how many were not."""
        good = np.isfinite(self.loss)
        if bool(good.all()):
            return self
        warnings.warn(
            MemguardWarning(
                f"{int((~good).sum())} of {good.size} evaluated records have a loss that is not finite",
                "they are left out of the membership numbers, which then speak of the other records only",
                "look for a diverged model or for records without a predicted token",
            ),
            stacklevel=3,
        )
        return EvaluatedLosses(loss=self.loss[good], patient=self.patient[good])


@dataclass(frozen=True, kw_only=True)
class MembershipResult:
    """What one look at the losses says.

    Attributes:
        auc: AUC of the attack that guesses "member" for a low loss.
        tpr: True-positive rate at each false-positive rate that the number of held-out patients supports.
        gap: Mean held-out loss minus mean member loss, in the unit of the losses.
        member_loss: Mean loss of the evaluated members.
        held_out_loss: Mean loss of the held-out records.
    """

    auc: Estimate
    tpr: dict[float, Estimate]
    gap: Estimate
    member_loss: float
    held_out_loss: float


def membership_probe(
    members: EvaluatedLosses,
    held_out: EvaluatedLosses,
    *,
    sample_proxy: Floats | None = None,
    all_proxy: Floats | None = None,
    fprs: Sequence[float] = (0.1, 0.01, 0.001),
    seed: int = 0,
) -> MembershipResult | None:
    """Compare evaluated members with held-out patients.

    The same function serves the light probe (a sample of members, sharpened by the train-time losses of all
    of them) and the full one (all members evaluated, no proxy).

    Args:
        members: A uniform random sample of the members, or all of them.
        held_out: Patients that the model never trained on.
        sample_proxy: ``(m,)`` train-time loss of the same members, when the sample is not everybody.
        all_proxy: ``(N,)`` train-time loss of every member; NaN where a record was not seen.
        fprs: False-positive rates of interest; those that the held-out patients cannot resolve are left out.
        seed: Seed of the bootstrap.

    Returns:
        The result, or ``None`` when either side has no finite loss.

    Guarantees:
        A plain loss attack is a lower bound on what an attacker can do: a low AUC does not show that nobody
        is memorized.

    References:
        Yeom et al. 2018, arXiv 1709.01604, section 3.2; Carlini et al. 2022, arXiv 2112.03570, section III.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> inside = EvaluatedLosses(loss=rng.normal(1, 1, 300), patient=np.arange(300))
        >>> outside = EvaluatedLosses(loss=rng.normal(2, 1, 300), patient=np.arange(300))
        >>> look = membership_probe(inside, outside)
        >>> look.auc.low > 0.65, sorted(look.tpr)
        (True, [0.01, 0.1])
    """
    member_is_finite = np.isfinite(members.loss)
    members, held_out = members.finite(), held_out.finite()
    if members.loss.size == 0 or held_out.loss.size == 0:
        return None
    proxy = np.zeros(members.loss.size) if sample_proxy is None else sample_proxy[member_is_finite]
    everyone = np.zeros(1) if all_proxy is None else all_proxy[np.isfinite(all_proxy)]
    if sample_proxy is None or everyone.size == 0 or not bool(np.isfinite(proxy).all()):
        proxy, everyone = np.zeros(members.loss.size), np.zeros(1)
    auc = powered_auc(
        -members.loss,
        -proxy,
        -everyone,
        -held_out.loss,
        sample_groups=members.patient,
        held_out_groups=held_out.patient,
    )
    scores = np.concatenate([-members.loss, -held_out.loss])
    is_member = np.repeat([True, False], [members.loss.size, held_out.loss.size])
    # Patients of the two sides are numbered apart: the same code on both sides is not the same person.
    groups = np.concatenate([members.patient, -1 - held_out.patient])
    n_held_out = int(np.unique(held_out.patient).size)
    tpr = {
        fpr: tpr_at_fpr(scores, is_member, fpr, groups=groups, seed=seed)
        for fpr in supported_fprs(n_held_out, fprs)
    }
    gap = loss_gap(
        members.loss, held_out.loss, member_groups=members.patient, held_out_groups=held_out.patient
    )
    return MembershipResult(
        auc=auc,
        tpr=tpr,
        gap=gap,
        member_loss=float(members.loss.mean()),
        held_out_loss=float(held_out.loss.mean()),
    )
