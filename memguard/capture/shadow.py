"""Put a function in the place of a method of one object, and take it away again, in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Shadows"]

_ABSENT = object()


class Shadows:
    """Methods shadowed on instances. Several may be stacked by different owners, and leave in any order.

    Example:
        >>> class Strategy:
        ...     def step(self): return "step"
        >>> strategy, first, second = Strategy(), Shadows(), Shadows()
        >>> first.put(strategy, "step", lambda: "first")
        >>> second.put(strategy, "step", lambda: "second")
        >>> first.restore()
        >>> strategy.step()
        'second'
        >>> second.restore()
        >>> strategy.step(), vars(strategy)
        ('step', {})
    """

    def __init__(self) -> None:
        self._put: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        """Shadow ``owner.name`` on the instance."""
        below = owner.__dict__.get(name, _ABSENT)
        replacement.__dict__.update(_memguard_below=below, _memguard_gone=False)
        setattr(owner, name, replacement)
        self._put.append((owner, name, replacement))

    def restore(self) -> None:
        """Take away what this object put; what others have put since stays. Idempotent."""
        while self._put:
            owner, name, replacement = self._put.pop()
            replacement._memguard_gone = True
            if owner.__dict__.get(name) is not replacement:
                continue  # somebody shadows it; when they leave, this one is passed over
            below = replacement._memguard_below
            while getattr(below, "_memguard_gone", False):
                below = below._memguard_below
            if below is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, below)
