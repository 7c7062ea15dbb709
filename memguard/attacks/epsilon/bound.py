"""A lower bound on epsilon with everything that it rests on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EpsilonBound"]


@dataclass(frozen=True, kw_only=True)
class EpsilonBound:
    """What an audit with canaries shows about a mechanism.

    Attributes:
        epsilon: Lower bound: with probability at least ``confidence`` over the coins that included the canaries, a
            mechanism that is (epsilon', delta)-DP gives a bound of at most epsilon'. 0 says that nothing was shown,
            not that nothing leaks.
        delta: Of the claim.
        confidence: Of the claim.
        n: Canaries.
        guesses: Canaries on whose inclusion the decisive test guessed; the others were abstained from.
        correct: Of these, how many guesses were right.
        largest: The bound that so many canaries would have given if every guess had been right: a bound near it says
            that more canaries are needed to see the leak whole.
        method: Which theorem.
        assumption: What must hold beside the coins, in words; "none" where nothing must.
        threshold: How it was decided on which canaries to guess.

    Example:
        >>> bound = EpsilonBound(epsilon=1.2, delta=1e-5, confidence=.95, n=100, guesses=20, correct=19, largest=3.5,
        ...                      method="one run", assumption="none", threshold="explicit")
        >>> print(bound)
        epsilon >= 1.20 at delta 1e-05 with 95 % confidence (one run, 19 of 20 guesses right,
        100 canaries, at most 3.50)
    """

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

    def __str__(self) -> str:
        return (
            f"epsilon >= {self.epsilon:.2f} at delta {self.delta:g} with {100 * self.confidence:g} % confidence "
            f"({self.method}, {self.correct} of {self.guesses} guesses right, {self.n} canaries, "
            f"at most {self.largest:.2f})"
        )

    def at_least(self, other: EpsilonBound | None) -> EpsilonBound:
        """The larger of two bounds that hold together.

        Example:
            >>> from dataclasses import replace
            >>> b = EpsilonBound(epsilon=1.2, delta=0, confidence=.95, n=9, guesses=9, correct=9, largest=2,
            ...                  method="", assumption="", threshold="")
            >>> b.at_least(replace(b, epsilon=1.5)).epsilon, b.at_least(None).epsilon
            (1.5, 1.2)
        """
        return self if other is None or self.epsilon >= other.epsilon else other
