"""A result in the making."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.epsilon import EpsilonBound
from memguard.attacks.estimate import Estimate
from memguard.probes.result import Evidence, NotTested

__all__ = ["Draft"]


@dataclass
class Draft:
    """What has been found so far."""

    numbers: dict[str, Estimate] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gaps: list[NotTested] = field(default_factory=list)
    bounds: list[EpsilonBound] = field(default_factory=list)
    flagged: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def miss(self, what: str, why: str, fix: str) -> None:
        """Note a gap."""
        self.gaps.append(NotTested(what=what, why=why, fix=fix))
