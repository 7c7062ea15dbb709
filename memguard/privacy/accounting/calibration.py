"""The least noise that keeps a promise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from memguard.errors import PrivacyError
from memguard.privacy.accounting.mixture import mixture_epsilon
from memguard.privacy.accounting.phases import Phase, check_count, check_delta, check_rate
from memguard.privacy.accounting.rdp import rdp_epsilon
from memguard.privacy.accounting.reported import BEYOND, epsilon

__all__ = ["check_target", "crossing", "noise_multiplier_for", "quick_epsilon"]

# Relative, of epsilon: how far below the target the reported epsilon may stay.
_CLOSE = 1e-3
_ROUNDS = 8
_MOST_NOISE = 1e6
# In logarithms: a longer step of the search would end at an epsilon in the thousands, which is slow to compute.
_LONGEST = 1.0


def noise_multiplier_for(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, *, spent: Sequence[Phase] = ()
) -> float:
    """Smallest noise multiplier with which the steps still to come stay within the target.

    Args:
        target_epsilon: Largest epsilon that :func:`epsilon` may report at the end, larger than 0.
        delta: In (0, 1).
        sample_rate: Of the steps to come, larger than 0.
        steps: To come, at least 1.
        spent: What was run on the same patients already: a resumed run's phases, or other runs.

    Returns:
        The noise multiplier sigma. ``epsilon([*spent, Phase(sigma, sample_rate, steps)], delta).value`` is at most
        the target, and within about a thousandth of it.

    Raises:
        PrivacyError: If an argument is out of range, if what is spent exceeds the target already, or if no noise
            reaches it.

    Guarantees:
        Those of :func:`epsilon`. The noise must be fixed before training: to choose it again after a look at the
        private results is not covered.

    Example:
        >>> sigma = noise_multiplier_for(8.0, 1e-5, sample_rate=0.01, steps=1000)
        >>> round(sigma, 2), epsilon([Phase(sigma, 0.01, 1000)], 1e-5).value <= 8
        (0.59, True)
    """
    check_target(target_epsilon, "target_epsilon")
    check_delta(delta)
    check_rate(sample_rate)
    steps = check_count(steps, "steps", least=1)
    if sample_rate == 0:
        raise PrivacyError(
            "sample_rate=0", "nobody would be drawn, and no noise is needed", "pass sample_rate= above 0"
        )
    done = epsilon(spent, delta).value
    if done >= target_epsilon:
        raise PrivacyError(
            f"epsilon {done:.4g} is spent already, of target_epsilon={target_epsilon:g}",
            "no noise on the steps to come takes it back",
            "raise target_epsilon=, or stop here",
        )

    def history(sigma: float) -> list[Phase]:
        return [*spent, Phase(sigma, sample_rate, steps)]

    if quick_epsilon(history(_MOST_NOISE), delta) >= target_epsilon:
        raise _out_of_reach(target_epsilon, done)
    aim, sigma = target_epsilon - min(0.0102, target_epsilon / 50), 1.0
    too_small, best = 0.0, math.inf
    for _ in range(_ROUNDS):
        # The reported epsilon is the quick one and a nearly constant error: two looks at it are mostly enough.
        sigma = crossing(lambda s: quick_epsilon(history(s), delta), aim, sigma, most=_MOST_NOISE)
        if too_small > 0 and best < math.inf and not too_small < sigma < best:
            sigma = math.sqrt(too_small * best)  # the reported one jumps, as from one accountant to another
        sigma = _up(sigma)
        reported = epsilon(history(sigma), delta).value
        if reported > target_epsilon:
            too_small = max(too_small, sigma)
        else:
            best = min(best, sigma)
            if reported >= target_epsilon * (1 - _CLOSE):
                return best
        aim = min(
            max(aim + target_epsilon * (1 - _CLOSE / 3) - reported, target_epsilon / 10), target_epsilon
        )
    if math.isinf(best):
        best = _louder(lambda s: epsilon(history(s), delta).value, target_epsilon, sigma, done)
    return best


def quick_epsilon(history: Sequence[Phase], delta: float) -> float:
    """Epsilon for a search: memguard's composition, or RDP where that cannot be computed, or need not be."""
    if (loose := rdp_epsilon(history, delta)) > BEYOND:
        return loose
    try:
        return mixture_epsilon(history, delta)
    except PrivacyError:
        return loose


def crossing(
    value_at: Callable[[float], float],
    target: float,
    start: float,
    *,
    least: float = 1e-3,
    most: float,
    rising: bool = False,
) -> float:
    """Where a monotone function meets the target, on the side where it is at most the target.

    Secants in logarithms, in which epsilon is nearly a straight line; halved wherever a secant does not help.

    Args:
        value_at: Monotone in its argument; may be 0 or infinite.
        target: Larger than 0.
        start: First guess.
        least: Smallest argument that is tried.
        most: Largest argument that is tried.
        rising: Whether the function rises.

    Returns:
        An argument with ``value_at`` at most the target and within a part in 10,000 of it; or the bound of the
        range, where the function stays below the target.

    Raises:
        PrivacyError: If the function is above the target in the whole range.

    Example:
        >>> round(crossing(lambda sigma: 4 / sigma, 2.0, 1.0, most=100), 3)
        2.0
    """
    sign = 1 if rising else -1
    low, high = math.log(least), math.log(most)  # below the target at one end, above it at the other
    good, bad = (low, high) if rising else (high, low)
    points: list[tuple[float, float]] = []
    x = min(max(math.log(start), low), high)
    for _ in range(200):
        value = value_at(math.exp(x))
        gap = math.log(value / target) if 0 < value < math.inf else (-math.inf if value == 0 else math.inf)
        if gap <= 0:
            good = x
        else:
            bad = x
        if -1e-4 <= gap <= 0 or abs(good - bad) < 1e-9:
            break
        if math.isfinite(gap):
            points.append((x, gap))
        x = _next(points, good, bad, sign)
    if value_at(math.exp(good)) > target:
        raise _out_of_reach(target, value_at(math.exp(good)))
    return math.exp(good)


def _next(points: list[tuple[float, float]], good: float, bad: float, sign: int) -> float:
    """The secant's zero, aimed a little inside; the middle where it leaves the bracket or the last one stalled."""
    low, high = min(good, bad), max(good, bad)
    slope = float(sign)
    if len(points) >= 2 and points[-1][0] != points[-2][0]:
        slope = (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])
    stalled = len(points) % 5 == 4
    if points and slope * sign > 0 and not stalled:
        step = -(points[-1][1] + 5e-5) / slope
        x = points[-1][0] + min(max(step, -_LONGEST), _LONGEST)
        if low < x < high:
            return x
    if points and high - low > 2 * _LONGEST:
        x = points[-1][0] - sign * math.copysign(_LONGEST, points[-1][1])
        if low < x < high:
            return x
    return (low + high) / 2


def _louder(value_at: Callable[[float], float], target: float, sigma: float, done: float) -> float:
    for _ in range(60):
        sigma = _up(sigma * 1.02)
        if value_at(sigma) <= target:
            return sigma
    raise _out_of_reach(target, done)


def _up(sigma: float) -> float:
    """Rounded up to six digits: what is printed is what was accounted for."""
    scale = 10.0 ** (5 - math.floor(math.log10(sigma)))
    return math.ceil(sigma * scale) / scale


def check_target(target: float, name: str) -> None:
    """Refuse an epsilon that is no promise."""
    if not (math.isfinite(target) and target > 0):
        raise PrivacyError(
            f"{name}={target}",
            "an epsilon to be kept is positive and finite",
            f"pass {name}= above 0, for example 8",
        )


def _out_of_reach(target: float, least: float) -> PrivacyError:
    return PrivacyError(
        f"target epsilon {target:.4g} cannot be reached (at best {least:.4g})",
        "a model trained so would not keep the promise",
        "raise the target, lower the sampling rate or train for fewer steps",
    )
