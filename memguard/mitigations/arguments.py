"""Whether an argument is a number at all: of Python, of NumPy, and nothing else."""

from __future__ import annotations

from numbers import Integral, Real

__all__ = ["is_number", "is_whole"]


def is_number(value: object) -> bool:
    """Whether a value is a real number; tensors, text and ``None`` are not.

    Example:
        >>> is_number(0.5), is_number(1), is_number("a"), is_number(None)
        (True, True, False, False)
    """
    return isinstance(value, Real)


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number from ``least`` on; ``True`` and ``4.0`` are not.

    Example:
        >>> is_whole(4, 2), is_whole(1, 2), is_whole(True, 0), is_whole(4.0, 2)
        (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
