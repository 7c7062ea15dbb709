"""One call of a loss function, as a step made it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["LossCall"]


@dataclass(slots=True, eq=False)
class LossCall:
    """One call of a loss function, as the step made it.

    Attributes:
        name: Name in ``torch.nn.functional``.
        result: What the user received, the same object.
        elements: The values before reduction, detached; ``None`` if they could not be taken.
        input: First argument.
        target: Second argument.
        reduction: ``"mean"``, ``"sum"``, ``"batchmean"`` or ``"none"``, as the user asked.
        weight: Class weights of cross entropy and NLL; ``None`` otherwise.
        ignore_index: Target value that is left out, for cross entropy and NLL.
        escaped: Whether the values belong to an outer ``torch.func`` transform and mean nothing outside it.
        problem: Why the values could not be taken.
        source: Shape that the input had before it was flattened, where no graph tells it; ``None`` if unknown.

    Example:
        >>> import torch
        >>> from memguard.capture.mode import LossCapture
        >>> with LossCapture() as seen:
        ...     loss = torch.nn.functional.mse_loss(torch.ones(3), torch.zeros(3))
        >>> seen.calls[0].name, seen.calls[0].elements.tolist()
        ('mse_loss', [1.0, 1.0, 1.0])
    """

    name: str
    result: Tensor
    elements: Tensor | None
    input: Tensor
    target: Tensor
    reduction: str
    weight: Tensor | None = None
    ignore_index: int | None = None
    escaped: bool = False
    problem: str = ""
    source: tuple[int, ...] | None = None

    @property
    def signature(self) -> tuple[str, str]:
        """Function and reduction: enough to find the same loss again in another step."""
        return self.name, self.reduction
