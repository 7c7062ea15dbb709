"""Leakage as `torchmetrics.Metric`: scores in per batch, one number out, with its interval, over all processes.

Every metric takes ``preds`` (membership scores, larger = more likely a member, for instance minus the loss) and
``target`` (1 for members, 0 for records that were not trained on). They are thin: the arithmetic is that of
`memguard.attacks`.
"""

from __future__ import annotations

from memguard.metrics.epsilon import EpsilonLowerBound
from memguard.metrics.exposure import Exposure
from memguard.metrics.membership import MembershipAdvantage, MembershipAUROC, TNRAtFNR, TPRAtFPR
from memguard.metrics.scored import ScoredRecords

__all__ = [
    "EpsilonLowerBound",
    "Exposure",
    "MembershipAUROC",
    "MembershipAdvantage",
    "ScoredRecords",
    "TNRAtFNR",
    "TPRAtFPR",
]
