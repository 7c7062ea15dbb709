"""How many patients must be behind a number before it may be shown."""

from __future__ import annotations

__all__ = ["MIN_CELL", "patients_logged", "patients_shown"]

MIN_CELL = 5
"""Fewer patients are not shown, nor any number about them."""


def patients_shown(n: int) -> int | str:
    """A count of patients as it may be shown.

    Example:
        >>> patients_shown(0), patients_shown(3), patients_shown(12)
        (0, '<5', 12)
    """
    return n if n == 0 or n >= MIN_CELL else f"<{MIN_CELL}"


def patients_logged(n: int, min_cell: int = MIN_CELL) -> int:
    """A count of patients as a number that may be logged: never too low, and a small one does not tell how small.

    Example:
        >>> patients_logged(0), patients_logged(1), patients_logged(12)
        (0, 4, 12)
    """
    return min_cell - 1 if 0 < n < min_cell else n
