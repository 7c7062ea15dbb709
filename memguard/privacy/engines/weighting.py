"""What a record's gradient in a batch is multiplied by to become the gradient of its own loss.

A batch's loss is a mean over records, a sum, or a mean over positions of which one record has more than another. The
gradient of record i within the batch is then its own one times 1/n, 1, or m_i / sum(m), with m_i its positions (or
the class weights at them). A record's contribution is that of the record alone, whoever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from memguard.capture.call import LossCall
from memguard.capture.layout import LayoutMemory, unflatten_length
from memguard.capture.losses import attribute
from memguard.errors import AmbiguousLossError

__all__ = ["Weighting", "by_identity", "candidates"]


@dataclass(frozen=True)
class Weighting:
    """How the loss of a batch weighs its records.

    Attributes:
        kind: ``"mean"`` over records; ``"sum"``; ``"mass"``, a mean over the positions of the loss function's call;
            ``"weights"``, the values of a call with ``reduction="none"``, pooled by the user with weights that sum
            to 1.
        call: Which call of a loss function of the step it is, for the last two.
        signature: Function and reduction of that call.

    Example:
        >>> Weighting("mean").scale([], None, 4, None, LayoutMemory(), torch.device("cpu")).tolist()
        [4.0, 4.0, 4.0, 4.0]
    """

    kind: Literal["mean", "sum", "mass", "weights"]
    call: int = 0
    signature: tuple[str, str] = ("", "")

    def heard(self, calls: Sequence[LossCall]) -> LossCall | None:
        """The call that it speaks of, ``None`` if this step made another."""
        if self.call < len(calls) and calls[self.call].signature == self.signature:
            return calls[self.call]
        return None

    def scale(
        self,
        calls: Sequence[LossCall],
        gradient: Tensor | None,
        n: int,
        batch: Any,
        memory: LayoutMemory,
        device: torch.device,
    ) -> Tensor:
        """``(n,)`` factors; zero for a record without positions.

        Args:
            calls: What the step called.
            gradient: Of the returned loss by the call's values, for ``"weights"``.
            n: Records.
            batch: The batch, which proves how flattened targets are laid out.
            memory: What earlier steps proved.
            device: Where the factors go.

        Raises:
            AmbiguousLossError: If this step's loss is of another form, or cannot be shared out.
        """
        if self.kind in ("mean", "sum"):
            return torch.full((n,), float(n if self.kind == "mean" else 1), device=device)
        call = self.heard(calls)
        if call is None:
            raise AmbiguousLossError(
                f"the step did not call {self.signature[0]} as it did before",
                "its records may weigh otherwise",
            )
        if self.kind == "mass":
            mass = attribute([call], call.result, n, exact_call=call, batch=batch, memory=memory).mass
            assert mass is not None
            share = mass / mass.sum()
        else:
            if gradient is None:
                raise AmbiguousLossError(
                    f"the loss does not depend on {call.name}", "its records have no weights"
                )
            length = 1 if len(gradient) == n else unflatten_length(call, n, batch, memory)
            share = gradient.float().reshape(n, length, -1).sum((1, 2))
        return torch.where(share > 0, 1 / share, torch.zeros_like(share)).to(device)


def by_identity(calls: Sequence[LossCall], loss: Tensor) -> Weighting | None:
    """The weighting of a loss that *is* the result of a loss function, ``None`` for any other.

    Example:
        >>> from memguard.capture.losses import LossCapture
        >>> with LossCapture() as seen:
        ...     loss = torch.nn.functional.mse_loss(torch.ones(3, requires_grad=True), torch.zeros(3))
        >>> by_identity(seen.calls, loss).kind, by_identity(seen.calls, 2 * loss)
        ('mass', None)
    """
    for at, call in enumerate(calls):
        if call.result is loss and call.reduction in ("mean", "batchmean"):
            return Weighting("mass", at, call.signature)
        if call.result is loss and call.reduction == "sum":
            return Weighting("sum")
    return None


def candidates(calls: Sequence[LossCall], loss: Tensor) -> list[Weighting]:
    """Every weighting that a loss may have, the most particular first."""
    heard = [(at, call) for at, call in enumerate(calls) if call.result.requires_grad and not call.escaped]
    heard.sort(key=lambda each: each[1].result is not loss)
    particular = [
        Weighting("weights" if call.reduction == "none" else "mass", at, call.signature)
        for at, call in heard
        if call.reduction != "sum"
    ]
    return [*particular, Weighting("mean"), Weighting("sum")]
