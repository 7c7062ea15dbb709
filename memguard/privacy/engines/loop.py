"""The gradient of each record by itself: one forward and one backward pass a record. Slow, and right by definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memguard.privacy.clipping import ClippedSum
from memguard.privacy.engines.backward import gradients, scalar_loss
from memguard.privacy.engines.base import Engine, Read, RunStep, Work

__all__ = ["LoopEngine", "shown"]


class LoopEngine(Engine):
    """Runs the user's step on every record alone: exact for any model and any loss, at the price of small batches.

    It is what the other engines are compared with, and what is left where they refuse. Whatever happens between the
    records of a batch (batch normalization, contrastive losses, partial likelihoods) happens in a batch of one here:
    the guarantee holds, and the model learns from what is left of such a loss.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from memguard.privacy.draws import Chunk
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> chunk = Chunk(draw=0, part=0, parts=1, positions=np.array([0, 1]), owner=np.array([0, 0]), n_owners=1)
        >>> into = ClippedSum(list(net.parameters()), max_grad_norm=10.0)
        >>> engine = LoopEngine(net, list(net.parameters()))
        >>> _ = engine.accumulate(Work(x, chunk, "sum"), lambda b: net(b).sum(), lambda i: x[i : i + 1], into)
        >>> into.sums[0].tolist(), net.weight.grad
        ([[3.0, 4.0]], None)
    """

    name = "loop"

    def accumulate(self, work: Work, run_step: RunStep, read: Read, into: ClippedSum) -> Any:
        """Add the clipped contribution of each owner; see :meth:`Engine.accumulate`."""
        losses: list[Tensor] = []
        last: Any = None
        for positions in _records_of_owners(work):
            total: list[Tensor | None] = [None] * len(self.parameters)
            for position in positions:
                returned = run_step(read(position))
                if returned is None:
                    continue
                loss = scalar_loss(returned)
                for at, grad in enumerate(gradients(loss, self.parameters, self.module)):
                    if grad is not None:
                        total[at] = _plus(total[at], grad)
                losses.append(loss.detach())
                last = returned
            if work.average == "mean":
                total = [None if each is None else each / len(positions) for each in total]
            into.add_one(total)
        return shown(last, torch.stack(losses).mean()) if losses else None


def _records_of_owners(work: Work) -> list[list[int]]:
    """The positions of each owner's records in a chunk, in the order of the owners."""
    records: list[list[int]] = [[] for _ in range(work.chunk.n_owners)]
    for position, owner in zip(work.chunk.positions.tolist(), work.chunk.owner.tolist(), strict=True):
        records[owner].append(position)
    return records


def shown(returned: Any, loss: Tensor) -> Any:
    """What a step returned, with another loss in it and without its graph, for logs and other callbacks.

    Example:
        >>> shown({"loss": torch.ones(1, requires_grad=True), "n": 3}, torch.tensor(2.0))
        {'loss': tensor(2.), 'n': 3}
    """
    if not isinstance(returned, Mapping):
        return loss
    rest = {key: value.detach() if isinstance(value, Tensor) else value for key, value in returned.items()}
    return {**rest, "loss": loss}


def _plus(total: Tensor | None, grad: Tensor) -> Tensor:
    """Sums are float32 at least, and new tensors: autograd may give one tensor as the gradient of two parameters."""
    wide = grad.detach().to(torch.promote_types(grad.dtype, torch.float32))
    return wide if total is None else total + wide
