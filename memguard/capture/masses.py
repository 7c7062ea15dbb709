"""How much each token counts in the loss that a step returned."""

from __future__ import annotations

import torch
from torch import Tensor

from memguard.capture.call import LossCall
from memguard.capture.layout import is_integer
from memguard.capture.losses import CapturedLoss
from memguard.errors import AmbiguousLossError

__all__ = ["token_masses"]


def token_masses(loss: Tensor, call: LossCall | None, captured: CapturedLoss) -> Tensor:
    """The factor with which the returned loss holds the loss of each token, up to one that all have in common.

    Args:
        loss: Scalar with a graph, as the step returned it.
        call: Of the loss function that it was made of.
        captured: The losses of its records.

    Returns:
        ``(B, T)`` float32, zero for positions that do not count: one, or the class weight, where the loss function
        pooled the tokens itself; where it gave the loss of each token (``reduction="none"``), what the step made of
        them, read from the graph.

    Raises:
        AmbiguousLossError: If the loss is not one of tokens.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> from memguard.capture.losses import LossCapture, attribute
        >>> logits, y = torch.zeros(2, 4, 3, requires_grad=True), torch.tensor([[1, 3, -100], [2, 1, 3]])
        >>> with LossCapture() as seen:
        ...     loss = cross_entropy(logits, y)
        >>> token_masses(loss, seen.calls[0], attribute(seen.calls, loss, 2)).tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    targets, mask = captured.targets, captured.mask
    if (
        call is None
        or captured.unit != "nats/token"
        or targets is None
        or mask is None
        or targets.dim() != 2
        or not is_integer(targets)
    ):
        raise AmbiguousLossError(
            f"a loss whose tokens are not known ({captured.route}, {captured.unit})",
            "which of them to weigh cannot be told",
            "return one cross entropy of sequences, with codes (B, T) or (B * T,) as its target, from training_step; "
            "take per_record_loss out; beside a model of single labels take out what weighs tokens",
        )
    if call.reduction == "none":
        # Of the few operations that pool the values, not of the model.
        (gradient,) = torch.autograd.grad(loss, call.result, retain_graph=True)
        return gradient.detach().abs().to(torch.float32).reshape(targets.shape) * mask
    if call.weight is not None:
        safe = torch.where(mask, targets, torch.zeros_like(targets))
        return call.weight.detach().to(torch.float32)[safe] * mask
    return mask.to(torch.float32)
