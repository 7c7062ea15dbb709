"""How numbers are written for people: fixed forms, nothing that claims more digits than the data carry."""

from __future__ import annotations

import math

from memguard.attacks.estimate import Estimate
from memguard.records.small_cells import MIN_CELL

__all__ = ["DASH", "MIN_CELL", "cell", "count", "estimate", "number", "percent", "share"]

DASH = "–"


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def share(value: float | None, digits: int = 2) -> str:
    """A number between 0 and 1 without its leading zero.

    Example:
        >>> share(0.914), share(1.0), share(0.0004, 4), share(None)
        ('.91', '1.00', '.0004', '–')
    """
    if _missing(value):
        return DASH
    written = f"{value:.{digits}f}"
    return written.replace("0.", ".", 1) if written.startswith(("0.", "-0.")) else written


def estimate(value: Estimate | None, digits: int = 2) -> str:
    """An estimate with its interval, both as shares.

    Example:
        >>> estimate(Estimate(value=.91, low=.89, high=.93, n=5200, method="x", confidence=.95))
        '.91 [.89, .93]'
    """
    if value is None or _missing(value.value):
        return DASH
    return f"{share(value.value, digits)} [{share(value.low, digits)}, {share(value.high, digits)}]"


def number(value: float | None, digits: int = 3) -> str:
    """A quantity with a unit, with a fixed number of decimals and thousands separated.

    Example:
        >>> number(2.34567), number(12345.6, 0), number(float("nan"))
        ('2.346', '12,346', '–')
    """
    return DASH if value is None or _missing(value) else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage.

    Example:
        >>> percent(0.1), percent(0.001, 1), percent(None)
        ('10 %', '0.1 %', '–')
    """
    return DASH if value is None or _missing(value) else f"{100 * value:.{digits}f} %"


def count(value: float | None) -> str:
    """A count, exact.

    Example:
        >>> count(4000), count(None)
        ('4,000', '–')
    """
    return DASH if value is None or _missing(value) else f"{int(value):,}"


def cell(value: float | None, min_cell: int = MIN_CELL) -> str:
    """A count of people, with the small ones suppressed: 1 to ``min_cell - 1`` is written ``<min_cell``.

    Zero is shown, since nobody is in that cell. Suppression hides one cell; it does not hide what the
    difference of two shown cells gives away.

    Example:
        >>> cell(412), cell(3), cell(0), cell(3, min_cell=1)
        ('412', '<5', '0', '3')
    """
    if value is None or _missing(value):
        return DASH
    return f"<{min_cell}" if 0 < value < min_cell else count(value)
