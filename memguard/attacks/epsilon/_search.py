"""From a test that is refuted up to some epsilon to that epsilon."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from memguard.attacks.epsilon.thresholds import Guesses

__all__ = ["best_of", "refuted"]

_XTOL = 1e-7


def best_of(
    sets: list[Guesses], p_value: Callable[[Guesses, float], float], most: float = 60.0
) -> tuple[float, Guesses]:
    """The largest epsilon that one of the sets of guesses refutes at its level, and that set.

    Args:
        sets: With the levels that they may spend.
        p_value: Of a set at an epsilon; rising in epsilon.
        most: Larger ones are not told apart.
    """
    best, decisive = 0.0, max(sets, key=lambda one: one.total)
    for one in sets:
        found = refuted(partial(p_value, one), one.level, best, most)
        if found > best:
            best, decisive = found, one
    return best, decisive


def refuted(p_value: Callable[[float], float], level: float, above: float = 0.0, most: float = 60.0) -> float:
    """Largest epsilon whose p-value, which rises in it, is at most the level; ``above`` if that is not larger.

    Example:
        >>> round(refuted(lambda e: e / 10, 0.05), 6)
        0.5
    """
    if p_value(above) > level:
        return above
    low, high = above, most
    if p_value(high) <= level:
        return high
    while high - low > _XTOL:  # bisection: the p-value may have steps, and the lower end is always refuted
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) <= level else (low, middle)
    return low
