"""The way from a returned loss back to the call that it was made of, and from that call to its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from memguard.capture.call import LossCall

__all__ = ["call_of", "changed_at", "ways_to"]

# Nodes that are linear in the one input that has a gradient, whatever the constants beside it.
_LINEAR = frozenset(
    {"Add", "Alias", "Clone", "Div", "Expand", "Index", "MaskedFill", "MaskedSelect", "Mean", "Mul", "Neg", "Permute",
     "Reshape", "ReshapeAlias", "Select", "Slice", "Squeeze", "Sub", "Sum", "T", "ToCopy", "Transpose", "UnsafeView",
     "Unsqueeze", "View", "Where"}
)  # fmt: skip
_LONGEST = 64  # nodes between a returned loss and its call, or inside a call


def call_of(loss: Tensor, calls: Sequence[LossCall]) -> LossCall | None:
    """The call whose result a loss is, or is a linear function of."""
    made = {call.result.grad_fn: call for call in calls if call.result.grad_fn is not None}
    node: Any = loss.grad_fn
    for _ in range(_LONGEST):
        if node in made:
            return made[node]
        kind = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if kind not in _LINEAR:
            return None
        before = [one for one, _ in node.next_functions if one is not None]
        if len(before) != 1 or (kind == "Div" and node.next_functions[0][0] is None):
            return None  # a product of two, or something over the loss
        node = before[0]
    return None


def ways_to(result: Tensor, given: Tensor) -> list[tuple[Any, int]]:
    """The nodes, each with the number of the argument, from which a result's gradient goes on into a tensor.

    Empty if the gradient of the result reaches anything else, or if the way is too long to tell.
    """
    waiting: list[Any] = [result.grad_fn]
    seen: set[Any] = set(waiting)
    found: list[tuple[Any, int]] = []
    while waiting:
        node = waiting.pop()
        if node is None or len(seen) > _LONGEST:
            return []
        for at, (before, number) in enumerate(node.next_functions):
            if before is None:
                continue
            if before is given.grad_fn and number == given.output_nr:
                found.append((node, at))
            elif getattr(before, "variable", None) is not None:
                if before.variable is not given:
                    return []
                found.append((node, at))
            elif before not in seen:
                seen.add(before)
                waiting.append(before)
    return found


def changed_at(number: int, change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor | None, ...]]:
    """A hook of a node that changes the gradient of one of its arguments."""

    def hook(given: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
        return tuple(change(g) if at == number and g is not None else g for at, g in enumerate(given))

    return hook
