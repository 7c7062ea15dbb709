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
from torch import Tensor, nn

from memguard.capture.call import LossCall
from memguard.capture.layout import LayoutMemory, unflatten_length
from memguard.capture.losses import attribute
from memguard.errors import AmbiguousLossError
from memguard.privacy.engines.rows import Rows

__all__ = ["Weighting", "by_identity", "candidates", "disagreeing", "largest_difference"]


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


def disagreeing(
    scales: Sequence[Tensor], rows: Rows, parameters: Sequence[nn.Parameter], tolerance: float
) -> list[int]:
    """Records that two weightings multiply by different factors, those with the largest difference first.

    A few records are often alike (no rare label, no padding), so that several weightings fit them. Which of these is
    right, a later batch tells in which they part.

    Args:
        scales: ``(n,)`` factors of each weighting.
        rows: The records' gradients in the batch; where they are zero, no factor matters.
        parameters: What is trained.
        tolerance: Relative difference that is rounding.

    Example:
        >>> from memguard.privacy.engines.layouts import Layouts
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> rows = Rows(3, Layouts(), {}, {id(weight)})
        >>> rows.add(weight, torch.tensor([[1.0], [1.0], [0.0]]))
        >>> disagreeing([torch.tensor([3.0, 3.0, 3.0]), torch.tensor([3.0, 0.1, 0.1])], rows, [weight], 1e-3)
        [1]
    """
    if len(scales) < 2:
        return []
    every = torch.stack([scale.float().cpu() for scale in scales])
    high, low = every.max(0).values, every.min(0).values
    gap = (high - low) / high.abs().clamp(min=1e-30)
    found = torch.nonzero(gap > tolerance)[:, 0]
    if not len(found):
        return []
    size = torch.zeros(len(found))
    for p in parameters:
        mine = rows.of.get(id(p))
        if mine is not None:
            size += mine[found.to(mine.device)].reshape(len(found), -1).float().square().sum(1).cpu()
    found = found[size > 0]
    return [int(i) for i in found[gap[found].argsort(descending=True, stable=True)]]


def largest_difference(
    parameters: Sequence[nn.Parameter],
    rows: Rows,
    scale: Tensor,
    alone: Sequence[Sequence[Tensor | None]],
    which: Sequence[int] | None = None,
) -> tuple[float, int, int]:
    """Compare the scaled gradients of a batch's records with those of each record alone.

    Args:
        parameters: What is trained.
        rows: The records' gradients in the batch.
        scale: ``(n,)``, what they are multiplied by.
        alone: For each record, its gradient for each parameter; ``None`` is zero.
        which: The records that ``alone`` is of; all of them by default.

    Returns:
        The largest norm of a difference as a share of the record's norm (or of a thousandth of the largest norm, where
        that is larger), that record, and the parameter with most of it.
    """
    per: list[Tensor] = []
    chosen = list(range(rows.n) if which is None else which)
    n = len(chosen)
    sizes = torch.zeros(n)
    for at, p in enumerate(parameters):
        zero = torch.zeros_like(p, requires_grad=False)
        each = [zero if (own := g[at]) is None else own for g in alone]
        theirs = torch.stack(each).reshape(n, -1).float()
        ours = rows.of.get(id(p))
        difference = theirs
        if ours is not None:
            difference = ours[chosen].reshape(n, -1) * scale.to(ours)[chosen][:, None] - theirs
        per.append(difference.square().sum(1).cpu())
        sizes += theirs.square().sum(1).cpu()
    norms = sizes.sqrt()
    errors = torch.stack(per).sum(0).sqrt() / torch.maximum(norms, 1e-3 * norms.max()).clamp(min=1e-30)
    errors = errors.nan_to_num(nan=float("inf"))
    record = int(errors.argmax())
    return (
        float(errors[record]),
        chosen[record],
        max(range(len(per)), key=lambda at: float(per[at][record])),
    )
