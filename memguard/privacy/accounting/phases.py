"""What was run: steps of one noise and one sampling rate, and the deltas that may be asked for."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from memguard.errors import MemguardWarning, PrivacyError

__all__ = ["Phase", "check_delta", "merged", "resolve_delta"]


@dataclass(frozen=True)
class Phase:
    """Steps of the Poisson-subsampled Gaussian mechanism at one noise and one rate.

    Attributes:
        noise_multiplier: Standard deviation of the noise on the sum, in units of the clipping norm; at least 0.
        sample_rate: Probability with which each unit of privacy (patient or record) is drawn into a step,
            independently of all others; 0 to 1, and 1 is full batch.
        steps: Number of optimizer steps, empty batches included; at least 0.

    Raises:
        PrivacyError: If a value lies outside its range.

    Example:
        >>> Phase(noise_multiplier=1.0, sample_rate=0.01, steps=1000)
        Phase(noise_multiplier=1.0, sample_rate=0.01, steps=1000)
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        check_noise(self.noise_multiplier)
        check_rate(self.sample_rate)
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        object.__setattr__(self, "sample_rate", float(self.sample_rate))
        object.__setattr__(self, "steps", check_count(self.steps, "steps", least=0))


def check_noise(noise_multiplier: float) -> None:
    """Refuse a noise multiplier that is negative or no number."""
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise PrivacyError(
            f"noise_multiplier={noise_multiplier}",
            "epsilon is defined for noise of a finite standard deviation",
            "pass noise_multiplier= at least 0 (0 is no noise, and epsilon is infinite)",
        )


def check_rate(sample_rate: float) -> None:
    """Refuse a sampling rate that is no probability."""
    if not 0 <= sample_rate <= 1:
        raise PrivacyError(
            f"sample_rate={sample_rate}",
            "the rate is the probability with which a unit is drawn into a step",
            "pass sample_rate= between 0 and 1, for example the expected batch over the number of patients",
        )


def check_count(count: int, name: str, least: int) -> int:
    """The count as an int; refuse one that is no whole number or too small."""
    try:
        whole = operator.index(count)
    except TypeError:
        whole = least - 1
    if isinstance(count, bool) or whole < least:
        raise PrivacyError(
            f"{name}={count!r}",
            "each step and each record counts as one, and no part of one can be accounted for",
            f"pass {name}= as a whole number, {least} or more",
        )
    return whole


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1): at 0 the Gaussian promises nothing, at 1 anything holds."""
    if not 0 < delta < 1:
        raise PrivacyError(
            f"delta={delta}",
            "delta is the probability that the promise of epsilon does not hold: no epsilon is finite for the "
            "Gaussian mechanism at 0, and at 1 every model is private",
            'pass delta= between 0 and 1, for example delta="1/n"',
        )


def resolve_delta(delta: float | str, n: int) -> float:
    """Delta as a number: itself, or one over the number of patients.

    Args:
        delta: A number in (0, 1), or ``"1/n"``.
        n: Number of units of privacy in the training data, frozen and public.

    Raises:
        PrivacyError: If delta is neither, or lies outside (0, 1).

    Warns:
        MemguardWarning: If delta exceeds 1/n: a mechanism that publishes one patient of n, drawn at random, has
            delta 1/n and epsilon 0.

    Example:
        >>> resolve_delta("1/n", 20_000)
        5e-05
        >>> resolve_delta(1e-6, 20_000)
        1e-06
    """
    n = check_count(n, "n", least=2)
    if isinstance(delta, str):
        if delta.replace(" ", "") == "1/n":
            return 1 / n
        try:
            delta = float(delta)
        except ValueError:
            raise PrivacyError(
                f"delta={delta!r}", "it is read as no number", 'pass a number, or delta="1/n"'
            ) from None
    check_delta(delta)
    if delta > 1 / n:
        warnings.warn(
            MemguardWarning(
                f"delta={delta:g} exceeds 1/n={1 / n:g}",
                "such a delta would allow one patient in full to be published",
                'pass delta="1/n" or less',
            ),
            stacklevel=2,
        )
    return float(delta)


def merged(history: Sequence[Phase]) -> tuple[Phase, ...]:
    """The history with equal phases joined and phases that touch no one left out; the order does not matter.

    Example:
        >>> merged([Phase(1.0, 0.01, 10), Phase(2.0, 0.01, 5), Phase(1.0, 0.01, 7), Phase(3.0, 0.0, 9)])
        (Phase(noise_multiplier=1.0, sample_rate=0.01, steps=17),
         Phase(noise_multiplier=2.0, sample_rate=0.01, steps=5))
    """
    steps: dict[tuple[float, float], int] = {}
    for phase in history:
        if phase.steps and phase.sample_rate > 0:
            key = (phase.noise_multiplier, phase.sample_rate)
            steps[key] = steps.get(key, 0) + phase.steps
    return tuple(Phase(sigma, rate, n) for (sigma, rate), n in sorted(steps.items()))
