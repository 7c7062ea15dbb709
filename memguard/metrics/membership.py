"""Membership metrics: how well members can be told from records that were not trained on."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from memguard.attacks._checks import share
from memguard.attacks.advantage import membership_advantage
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import auc, tpr_at_fpr
from memguard.attacks.risk import tnr_at_fnr
from memguard.errors import MemguardError
from memguard.metrics.scored import Arrays, ScoredRecords

__all__ = ["MembershipAUROC", "MembershipAdvantage", "TNRAtFNR", "TPRAtFPR"]


class _Membership(ScoredRecords):
    """A rate with an interval that is clustered by patient."""

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    groups: list[Tensor] | Tensor

    def __init__(self, *, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(confidence=confidence, **kwargs)
        self.add_state("groups", [], dist_reduce_fx="cat")

    @override
    def update(self, preds: Tensor, target: Tensor, groups: Tensor | None = None) -> None:
        """Add the records of a batch.

        Args:
            preds: ``(N,)`` membership scores, larger = more likely a member, of any real type; kept exactly.
            target: ``(N,)``, 1 (or True) for members, 0 for held-out records.
            groups: ``(N,)`` integer id of each record's patient; each record its own patient if omitted. In a
                `torchmetrics.MetricCollection` pass it by name, since not every metric takes it.

        Raises:
            MemguardError: if the shapes differ, or ``groups`` does not hold integers.
        """
        if groups is None:
            self._keep(preds=preds, target=target)
            return
        if groups.is_floating_point() or groups.is_complex():
            raise MemguardError(
                f"groups of type {groups.dtype}",
                "large ids would run together, and records would be given to the wrong patient",
                "pass integer patient ids in groups=",
            )
        self._keep(preds=preds, target=target, groups=groups)

    def estimate(self) -> Estimate:
        """The number with its interval, over the records of all processes (each must call it).

        Raises:
            MemguardError: where `compute` would give NaN, saying why.
        """
        return self._estimate(self._gathered())

    def _estimate(self, arrays: Arrays) -> Estimate:
        preds, groups = arrays["preds"], arrays["groups"]
        if len(groups) not in (0, len(preds)):
            raise MemguardError(
                f"groups for {len(groups)} of {len(preds)} records",
                "records would be given to the wrong patient",
                "pass groups= in every update, or in none",
            )
        return self._rate(preds, arrays["target"], groups if len(groups) else None)

    def _rate(self, preds: Any, target: Any, groups: Any) -> Estimate:
        raise NotImplementedError

    @override
    def _value(self, arrays: Arrays) -> float:
        return self._estimate(arrays).value

    @override
    def _interval(self, arrays: Arrays) -> Estimate | None:
        return self._estimate(arrays)


class MembershipAUROC(_Membership):
    """Probability that a member scores above a held-out record, ties one half.

    `memguard.attacks.auc` of everything that was passed to `update`; .5 is chance. It says how this attack fares
    on average, neither that a stronger one fares as badly, nor that no single patient is found.

    Args:
        confidence: Coverage of the interval that `estimate` gives (clustered DeLong, logit scale).
        kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = MembershipAUROC()
        >>> metric.update(torch.tensor([4.0, 3.0, 2.0]), torch.tensor([1, 1, 1]))
        >>> metric.update(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 0, 0]))
        >>> metric.compute()
        tensor(0.9444)
        >>> print(metric.estimate())
        0.944 [0.210, 0.999]
    """

    @override
    def _rate(self, preds: Any, target: Any, groups: Any) -> Estimate:
        return auc(preds, target, groups=groups, confidence=self.confidence)


class TPRAtFPR(_Membership):
    """Share of members found while at most a share ``fpr`` of the held-out records is wrongly accused.

    `memguard.attacks.tpr_at_fpr` of everything that was passed to `update`. It needs ``1 / fpr`` held-out patients
    and is NaN with fewer.

    Args:
        fpr: False positive rate, in (0, 1).
        confidence: Coverage of the interval that `estimate` gives (Clopper-Pearson and order statistics).
        kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = TPRAtFPR(0.1)
        >>> metric.update(torch.arange(40.0).sin() + 1, torch.ones(40))
        >>> metric.update(torch.arange(40.0).sin(), torch.zeros(40))
        >>> metric.compute()
        tensor(0.5500)
    """

    def __init__(self, fpr: float, *, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(confidence=confidence, **kwargs)
        self.fpr = share(fpr, "fpr")

    @override
    def _rate(self, preds: Any, target: Any, groups: Any) -> Estimate:
        return tpr_at_fpr(preds, target, self.fpr, groups=groups, confidence=self.confidence)


class MembershipAdvantage(_Membership):
    """TPR minus FPR, at the best threshold or at a given one.

    `memguard.attacks.membership_advantage` of everything that was passed to `update`. At the best threshold the
    number leans upward; its interval allows for that.

    Args:
        threshold: A record is called a member if its score is at least this; the best one if omitted.
        confidence: Coverage of the interval that `estimate` gives.
        kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = MembershipAdvantage(threshold=1.5)
        >>> metric.update(torch.tensor([4.0, 3.0, 1.0, 0.0]), torch.tensor([1, 1, 1, 0]))
        >>> metric.compute()
        tensor(0.6667)
    """

    def __init__(self, *, threshold: float | None = None, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(confidence=confidence, **kwargs)
        self.threshold = threshold

    @override
    def _rate(self, preds: Any, target: Any, groups: Any) -> Estimate:
        return membership_advantage(
            preds, target, groups=groups, threshold=self.threshold, confidence=self.confidence
        )


class TNRAtFNR(_Membership):
    """Share of held-out records that score below almost all members: risk of a model as a whole.

    `memguard.attacks.tnr_at_fnr` with minus the scores as losses. It goes along with what an attack with many
    reference models would find, and is no bound for it (arXiv 2510.19773). It needs ``1 / fnr`` member patients.

    Args:
        fnr: Share of members that may score lower, in (0, 1).
        confidence: Coverage of the interval that `estimate` gives (Clopper-Pearson and order statistics).
        kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = TNRAtFNR(0.1)
        >>> metric.update(-torch.linspace(0, 1, 50), torch.ones(50))
        >>> metric.update(-torch.linspace(0, 2, 50), torch.zeros(50))
        >>> metric.compute()
        tensor(0.5400)
    """

    def __init__(self, fnr: float, *, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(confidence=confidence, **kwargs)
        self.fnr = share(fnr, "fnr")

    @override
    def _rate(self, preds: Any, target: Any, groups: Any) -> Estimate:
        return tnr_at_fnr(-preds, target, self.fnr, groups=groups, confidence=self.confidence)
