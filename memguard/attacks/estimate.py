"""A number with its interval, the number of patients behind it, and how it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number, never shown without its interval.

    Attributes:
        value: The point estimate (NaN where nothing could be computed).
        low: Lower end of the two-sided interval.
        high: Upper end of the two-sided interval.
        n: Number of independent units, in memguard: patients, both classes together.
        method: How value and interval were made, in a few words.
        confidence: Coverage that the interval aims at.

    Example:
        >>> e = Estimate(value=0.8123, low=0.79, high=0.8331, n=500, method="clustered DeLong")
        >>> f"{e}", f"{e:.2f}", f"{e:.1%}"
        ('0.812 [0.790, 0.833]', '0.81 [0.79, 0.83]', '81.2% [79.0%, 83.3%]')
        >>> e.covers(0.8), e.covers(0.5)
        (True, False)
        >>> Estimate(**e.as_dict()) == e
        True
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    confidence: float = 0.95

    def covers(self, number: float) -> bool:
        """Whether ``number`` lies in the interval (its ends included)."""
        return self.low <= number <= self.high

    def as_dict(self) -> dict[str, float | int | str]:
        """Plain Python numbers and strings, ready for JSON."""
        return {
            "value": float(self.value),
            "low": float(self.low),
            "high": float(self.high),
            "n": int(self.n),
            "method": self.method,
            "confidence": float(self.confidence),
        }

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        if math.isnan(self.value):
            return "n/a"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self, "")
