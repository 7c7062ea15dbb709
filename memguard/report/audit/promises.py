"""Promises of differential privacy in a report: what is claimed, why nothing is, and what was shown against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memguard.errors import DataError

__all__ = ["EpsilonClaim", "EpsilonShown", "NoClaim"]


@dataclass(frozen=True, kw_only=True)
class EpsilonClaim:
    """What a training with differential privacy promises.

    Attributes:
        epsilon: Of the promise.
        delta: Of the promise.
        unit: ``"patient"`` or ``"record"``: whose presence is protected.
        statement: The whole statement as text: adjacency, accountant, sampling, clip, noise, steps, what is outside.
        source: Where the numbers were read, and whether it is about the audited weights; empty for numbers that a
            person gave.

    Raises:
        DataError: If epsilon is negative, infinite or not a number, or delta outside [0, 1), or there is no such unit.
    """

    epsilon: float
    delta: float
    unit: str
    statement: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.epsilon < math.inf and 0 <= self.delta < 1):
            raise DataError(
                f"a claim of epsilon = {self.epsilon} at delta = {self.delta}",
                "no such promise exists, and nothing could contradict it",
                "give epsilon >= 0 and 0 <= delta < 1, or no claim at all",
            )
        if self.unit not in ("patient", "record"):
            raise DataError(
                f"a claim for one {self.unit!r}",
                "nobody would know whose presence it protects",
                'give unit="patient" or unit="record"',
            )


@dataclass(frozen=True, kw_only=True)
class NoClaim:
    """Why nothing can be claimed of a model, though there was a private training.

    Attributes:
        reasons: Why, as the ledger says it or as it was read.
        statement: The whole statement as text; empty where none could be made.
        source: Where it was read.

    Raises:
        DataError: If there is no reason: a claim would be dropped in silence.

    Example:
        >>> NoClaim(reasons=["3 of 40 steps were taken without noise"], source="ledger 5eed").reasons
        ['3 of 40 steps were taken without noise']
    """

    reasons: Sequence[str]
    statement: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not self.reasons:
            raise DataError(
                "no claim, and no reason for it",
                "a reader would not know why a private training promises nothing",
                "pass reasons= with one sentence at least",
            )


@dataclass(frozen=True, kw_only=True)
class EpsilonShown:
    """A lower bound of epsilon from canaries or coin flips.

    Attributes:
        probe: Which probe.
        epsilon: With probability at least ``confidence``, no smaller epsilon can be true.
        delta: Of the bound.
        confidence: Of the bound.
        n: Canaries, or patients with a coin.
        guesses: How many of them the decisive test guessed on.
        correct: How many guesses were right.
        largest: What the bound would be if every guess had been right: no audit of this size can show more.
        method: Which theorem.
        assumption: What must hold beside fair coins; "none" where nothing must.
        threshold: How it was decided on whom to guess.
        unit: ``"patient"`` or ``"record"``: what one coin decided on; anything else cannot be compared with a claim.
    """

    probe: str
    epsilon: float
    delta: float
    confidence: float
    n: int
    guesses: int
    correct: int
    largest: float
    method: str
    assumption: str
    threshold: str
    unit: str = "patient"

    def contradicts(self, claim: EpsilonClaim) -> bool | None:
        """Whether the bound is above the claim; ``None`` where the two cannot be compared.

        A promise (epsilon, delta) holds for every larger delta too. So a bound for a larger delta, of the same
        unit, contradicts it where it is higher; a bound for a smaller delta says nothing of it.

        Args:
            claim: The promise.
        """
        if self.unit != claim.unit or self.delta < claim.delta or not math.isfinite(self.epsilon):
            return None
        return self.epsilon > claim.epsilon
