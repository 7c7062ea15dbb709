"""Gradients of a returned loss that never touch ``p.grad``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memguard.capture.losses import loss_of
from memguard.errors import PrivacyError

__all__ = ["gradients", "has_reentrant_checkpoint", "p_grad_aside", "scalar_loss"]


def scalar_loss(returned: Any) -> Tensor:
    """The loss in what a step returned, or a refusal.

    Raises:
        PrivacyError: If there is none, if it is no single number, or if it has no gradient.

    Example:
        >>> scalar_loss({"loss": torch.tensor(1.0, requires_grad=True)}).item()
        1.0
    """
    loss = loss_of(returned)
    if loss is None:
        raise PrivacyError(
            f"the training step returned {type(returned).__name__}",
            "without a loss there is no gradient to clip",
            'return the loss, or a dict with "loss"',
        )
    if loss.numel() != 1:
        raise PrivacyError(
            f"the training step returned a loss of shape {tuple(loss.shape)}",
            "the gradient of a record is that of one number",
            "return the mean over the batch",
        )
    if not loss.requires_grad:
        raise PrivacyError(
            "the loss that the training step returned has no gradient",
            "no patient would contribute, and the model would learn noise",
            "return the loss as it was computed, not detached, and leave the optimization to Lightning",
        )
    return loss


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter], module: nn.Module) -> list[Tensor | None]:
    """The gradient of a loss for each parameter, ``None`` where there is none; every ``p.grad`` stays as it is.

    Args:
        loss: A scalar; its graph is freed.
        parameters: What to differentiate by; frozen ones give ``None``.
        module: Whose ``p.grad`` are set aside where only ``backward()`` will do (reentrant checkpointing).

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> gradients((3 * weight).sum(), [weight], nn.Module()), weight.grad
        ([tensor([3., 3.])], None)
    """
    wanted = [p for p in parameters if p.requires_grad]
    if not wanted:
        return [None] * len(parameters)
    found: Sequence[Tensor | None]
    if has_reentrant_checkpoint(loss):
        with p_grad_aside([*module.parameters(), *wanted]):
            loss.backward()  # type: ignore[no-untyped-call]
            found = [p.grad for p in wanted]
    else:
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
    given = iter([None if g is None else g.to_dense() for g in found])
    return [next(given) if p.requires_grad else None for p in parameters]


@contextmanager
def p_grad_aside(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """``p.grad`` is empty inside, and afterwards what it was before: the same object, or None."""
    before = [(p, p.grad) for p in parameters]
    try:
        for p, _ in before:
            p.grad = None
        yield
    finally:
        for p, grad in before:
            p.grad = grad


def has_reentrant_checkpoint(loss: Tensor) -> bool:
    """Whether ``torch.utils.checkpoint(..., use_reentrant=True)`` is in the graph: only ``backward()`` passes it.

    Example:
        >>> has_reentrant_checkpoint(torch.ones(1, requires_grad=True) * 2)
        False
    """
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
    return False
