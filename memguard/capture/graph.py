"""Read a step's loss out of its own graph: autograd keeps the log-probabilities of a cross entropy until backward.

Two uses. While someone listens (:mod:`memguard.capture.mode`), the values of each position come from there for the
price of a gather instead of a second log-softmax. And where a few steps have shown that the graph of the returned loss
tells exactly what listening told, later steps need no listening at all: a function mode costs a few microseconds for
every operation of the user's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from memguard.capture.call import LossCall

__all__ = ["GraphRoute", "kept_log_p", "values_at"]

_NODES = ("NllLossBackward0", "NllLoss2DBackward0")
_REDUCTIONS = {1: "mean", 2: "sum"}
_PROOFS = 3
_SAVED_HOOKS = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def kept_log_p(loss: Tensor) -> Tensor | None:
    """The log-probabilities that the graph of a cross entropy or NLL keeps; ``None`` if it is none, or has none left.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> logits = torch.zeros(2, 4, requires_grad=True)
        >>> tuple(kept_log_p(cross_entropy(logits, torch.tensor([1, 3]))).shape)
        (2, 4)
        >>> kept_log_p(2 * cross_entropy(logits, torch.tensor([1, 3]))) is None
        True
    """
    node = loss.grad_fn
    if type(node).__name__ not in _NODES or _SAVED_HOOKS is None or _SAVED_HOOKS(True) is not None:
        return None  # under hooks (offloading, checkpointing) a look at a saved tensor would move or recompute it
    log_p: Tensor | None = getattr(node, "_saved_self", None)
    return log_p


def values_at(log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor | None:
    """The values before reduction, of the shape of ``target``: the same bits as a second call would give.

    Args:
        log_p: ``(N, V)`` or ``(B, V, ...)``, as the graph keeps them.
        target: Class numbers.
        weight: ``(V,)`` class weights.
        ignore_index: Target that counts nothing.
    """
    if target.is_floating_point() or target.dim() == 0:
        return None
    with torch.no_grad():
        # nll_loss2d sees (B, V, 1, T)
        where = target.reshape(log_p.shape[0], *log_p.shape[2:]) if log_p.dim() == 4 else target
        if log_p.shape[0] != where.shape[0]:
            return None
        values = nll_loss(log_p, where, weight=weight, ignore_index=ignore_index, reduction="none")
        return values.reshape(target.shape)


@dataclass
class GraphRoute:
    """Whether the graph of the returned loss can stand for listening, and the call as it tells it.

    Proven by three steps in a row in which both gave the same values for the same targets. A later step whose graph
    is another one is not guessed at: it gives no call, and from then on every step is listened to.

    Attributes:
        signature: Function and reduction of the proven call.
        proofs: Steps in a row that agreed; negative once it has failed.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> route = GraphRoute()
        >>> logits, y = torch.zeros(2, 4, requires_grad=True), torch.tensor([1, 3])
        >>> for _ in range(3):
        ...     loss = cross_entropy(logits, y)
        ...     values = cross_entropy(logits, y, reduction="none")
        ...     route.compare(loss, [LossCall("cross_entropy", loss, values, logits, y, "mean", ignore_index=-100)])
        >>> route.proven, route.call(cross_entropy(logits, y)).elements.tolist()
        (True, [1.3862943649291992, 1.3862943649291992])
        >>> route.call(cross_entropy(logits, y) + 1) is None, route.proven
        (True, False)
    """

    signature: tuple[str, str] = ("", "")
    proofs: int = 0
    _shape: int = 0  # dimensions of the user's target

    @property
    def proven(self) -> bool:
        """Whether steps need no listening."""
        return self.proofs >= _PROOFS

    def compare(self, returned: Tensor | None, calls: Sequence[LossCall]) -> None:
        """A step was listened to, and its loss was accepted: does the graph tell the same?"""
        if self.proofs < 0 or self.proven:
            return
        heard = [call for call in calls if call.result is returned]
        if len(heard) != 1:
            self.proofs = -1
            return
        call = heard[0]
        if self.signature != call.signature or self._shape != call.target.dim():
            self.signature, self._shape, self.proofs = call.signature, call.target.dim(), 0
        told = self._read(returned)
        self.proofs = self.proofs + 1 if told is not None and _agree(told, call) else -1

    def call(self, returned: Tensor | None) -> LossCall | None:
        """The call that made the returned loss; ``None``, and an end of this route, if its graph is another."""
        told = self._read(returned)
        if told is None:
            self.proofs = -1
        return told

    def _read(self, returned: Tensor | None) -> LossCall | None:
        if returned is None or returned.numel() != 1:
            return None
        try:
            log_p = kept_log_p(returned)
            if log_p is None:
                return None
            node: Any = returned.grad_fn
            target, weight, ignore = node._saved_target, node._saved_weight, node._saved_ignore_index
            ignore -= (ignore >> 63) << 64  # an unsigned reading of a negative number
            if _REDUCTIONS.get(node._saved_reduction) != self.signature[1]:
                return None
            if target.dim() == 3 and self._shape == 2:
                target = target.squeeze(1)
            elements = values_at(log_p, target, weight, ignore)
        except (RuntimeError, AttributeError, TypeError, ValueError):
            return None  # freed by a backward in the step, or changed in place
        name, reduction = self.signature
        return LossCall(name, returned, elements, log_p, target, reduction, weight, ignore)


def _agree(told: LossCall, heard: LossCall) -> bool:
    pairs = (told.elements, heard.elements), (told.target, heard.target), (told.weight, heard.weight)
    return told.ignore_index == heard.ignore_index and all(_same(a, b) for a, b in pairs)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
