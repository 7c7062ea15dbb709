"""What a probe of a training measured, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from memguard.attacks.estimate import Estimate
from memguard.probes.membership import MembershipResult
from memguard.probes.memorization import Memorization

__all__ = ["Look"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one probe measured.

    Attributes:
        epoch: Epochs finished, a fraction inside one.
        step: Optimizer steps taken.
        train_loss: Mean train-time loss of the epoch under way.
        membership: Member sample against held-out patients; ``None`` where there was nothing to compare.
        memorization: Every member patient's score; ``None`` where it is refused.
        memorized_share: Share of the members that stand out, from the sample.
        surrogate_fit: Correlation of expected and actual loss on held-out patients, where one was fitted.
        blind: Blind baseline.
        coverage: Share of the training records seen at least once.
        refused: Why there is no ranking, in words; empty where there is one.
    """

    epoch: float
    step: int
    train_loss: float | None
    membership: MembershipResult | None
    memorization: Memorization | None
    memorized_share: Estimate | None
    surrogate_fit: float | None
    blind: Estimate | None
    coverage: float
    refused: str = ""
