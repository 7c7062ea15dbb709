"""One pass over a batch, and what each known way of weighing makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memguard.capture.call import LossCall
from memguard.capture.layout import LayoutMemory
from memguard.errors import AmbiguousLossError
from memguard.privacy.engines.rows import Rows
from memguard.privacy.engines.weighting import Weighting

__all__ = ["Pass", "Plan", "asked_for", "rounding", "scales"]

Plan = Callable[[list[LossCall], Tensor], tuple[float, list[Tensor]]]
"""Calls and loss of a forward pass -> what the loss is multiplied by, and which gradients are wanted besides."""


@dataclass(frozen=True, eq=False)
class Pass:
    """Forward and backward over one batch.

    Attributes:
        returned: By the user's step.
        rows: The gradients of its records.
        calls: Of loss functions.
        loss: In what was returned.
        asked: The gradients that the plan wanted besides.
    """

    returned: Any
    rows: Rows
    calls: list[LossCall]
    loss: Tensor
    asked: list[Any]


def asked_for(weightings: Sequence[Weighting], calls: Sequence[LossCall]) -> list[Tensor]:
    """The values whose gradients are the weights, in the order of the weightings."""
    heard = [each.heard(calls) for each in weightings if each.kind == "weights"]
    return [call.result for call in heard if call is not None]


def scales(
    seen: Pass, weightings: Sequence[Weighting], batch: Any, memory: LayoutMemory
) -> tuple[list[Tensor | None], AmbiguousLossError | None]:
    """What each weighting multiplies the records by.

    Args:
        seen: A pass whose plan asked for :func:`asked_for` of these weightings.
        weightings: Of the records.
        batch: The batch, which proves how flattened targets are laid out.
        memory: What earlier steps proved.

    Returns:
        ``(n,)`` factors for each, ``None`` where it cannot tell, and why not.
    """
    found: list[Tensor | None] = []
    why, asked = None, iter(seen.asked)
    for each in weightings:
        wanted = each.kind == "weights" and each.heard(seen.calls) is not None
        gradient = next(asked) if wanted else None
        try:
            found.append(each.scale(seen.calls, gradient, seen.rows.n, batch, memory, seen.loss.device))
        except AmbiguousLossError as problem:
            found.append(None)
            why = problem
    return found, why


def rounding(rows: Rows) -> float:
    """Relative difference that is rounding: 8 roundings of the coarsest gradient, at least 1e-3."""
    return max(1e-3, 8 * rows.eps)
