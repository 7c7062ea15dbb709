"""Weights of records, or of their tokens, with exact gradients and without touching what the step returned.

A record's part of a cross entropy flows through its own rows of the call's input alone. Multiplying the gradient of
those rows by the record's weight therefore gives the gradient of ``sum_b r_b L_b``, where ``L_b`` is the record's part
of the returned loss and the denominator stays the same: no second forward, and the value that is returned and logged
is not touched. That the returned loss depends on nothing else is read from the graph at every weighted step.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, prod
from typing import Any, Protocol

import torch
from torch import Tensor

from memguard.capture.call import LossCall
from memguard.capture.evaluation import PerRecordLoss
from memguard.capture.graph import kept_log_p
from memguard.capture.ids import Positions
from memguard.capture.losses import CapturedLoss, loss_of
from memguard.capture.masses import token_masses
from memguard.capture.stillness import untouched
from memguard.capture.ways import call_of, changed_at, ways_to
from memguard.errors import AmbiguousLossError, MemguardError, MemguardWarning

__all__ = ["Weigher", "WeightRule", "random_states", "rerun_of", "weigh_call", "weigh_losses"]

RandomStates = tuple[Tensor, dict[int, Tensor]]

_FIX = "return the loss of one call of torch.nn.functional, or pass per_record_loss="


class WeightRule(Protocol):
    """Weights ``(B,)`` of the records of a step, or ``(B, T)`` of their tokens; ``None`` where all are one.

    A rule with an attribute ``of_tokens = True`` is told by ``captured.masses`` how much each token counts.
    """

    def __call__(self, positions: Positions, captured: CapturedLoss) -> Tensor | None:
        """Positions ``(B,)`` in the data set, and the losses that the step has just computed."""
        ...


@dataclass
class Weigher:
    """Applies rules to the training steps of a run; several multiply.

    Attributes:
        rules: What gives the weights.
        checked: Whether a step has shown that its loss can be weighed. Until then what is in the way raises; later it
            warns once, and the step is trained as it is.
        private: Whether a private step calls the training step: it may do so several times on one batch, and runs the
            records one by one where something is in the way, which therefore always raises.
        weighed: Steps whose gradient was changed.
        missed: Steps that could not be weighed.
        problem: Why, the first time.
    """

    rules: list[WeightRule] = field(default_factory=list)
    checked: bool = False
    private: bool = False
    weighed: int = 0
    missed: int = 0
    problem: MemguardError | None = None
    _pooling: set[str] = field(default_factory=lambda: {"mean", "tokens", "sum"})

    def weights(self, positions: Positions, captured: CapturedLoss) -> Tensor | None:
        """The product of the rules' weights, ``None`` where all are one.

        Example:
            >>> import numpy as np
            >>> from memguard.capture.losses import from_override
            >>> rules = [lambda at, seen: torch.tensor([1.0, 0.5]), lambda at, seen: None]
            >>> captured = from_override(torch.ones(2), batch_size=2)
            >>> Weigher(rules).weights(np.arange(2), captured)
            tensor([1.0000, 0.5000])
        """
        product: Tensor | None = None
        for rule in self.rules:
            found = rule(positions, captured)
            if found is not None:
                product = found if product is None else _times(product, found)
        return product

    def refuse_again(self) -> None:
        """A step is run a second time on its batch (LBFGS), where its loss is not captured.

        Raises:
            MemguardError: Always.
        """
        raise MemguardError(
            "the optimizer runs the training step several times on one batch",
            "the second run would train on the records at full weight",
            "use an optimizer that evaluates the loss once (not LBFGS), or take the mitigation out of callbacks=",
        )

    def step(
        self,
        returned: Any,
        calls: Sequence[LossCall],
        positions: Positions,
        captured: CapturedLoss,
        rerun: Callable[[], Any] | None = None,
    ) -> Any:
        """What the Trainer is to get for what a training step returned: the same value, with weighed gradients.

        Args:
            returned: Of the step.
            calls: That may be its loss.
            positions: ``(B,)`` of its records.
            captured: Their losses.
            rerun: Gives the ``per_record_loss`` of the batch with a gradient, where that is how losses are known.

        Raises:
            AmbiguousLossError: At the first step, if its loss cannot be weighed.
        """
        loss = loss_of(returned)
        try:
            if loss is not None and any(getattr(rule, "of_tokens", False) for rule in self.rules):
                captured = replace(captured, masses=token_masses(loss, call_of(loss, calls), captured))
            weights = self.weights(positions, captured)
            if weights is None and self.checked:
                return returned
            if loss is None or not loss.requires_grad:
                raise AmbiguousLossError(
                    "the training step returned no loss with a gradient (manual optimization?)",
                    "its backward pass may be over before weights can be applied",
                    "return the loss from training_step, with automatic_optimization = True",
                )
            ones = torch.ones(len(positions), device=captured.loss.device)
            if rerun is None:
                weigh_call(
                    loss, calls, ones if weights is None else weights, captured, hook=weights is not None
                )
            elif weights is not None or not self.checked:
                parts, self._pooling = _parts(rerun(), loss, len(positions), self._pooling)
                if weights is not None:
                    returned = _replaced(returned, weigh_losses(loss, parts, weights))
        except MemguardError as problem:
            if not self.checked or self.private:
                raise
            self._miss(problem)
            return returned
        self.checked = True
        self.weighed += weights is not None
        return returned

    def _miss(self, problem: MemguardError) -> None:
        self.missed += 1
        if self.problem is None:
            self.problem = problem
            warnings.warn(
                MemguardWarning(
                    f"a step was not weighed: {problem}", "it trained on its records at full weight"
                ),
                stacklevel=4,
            )


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Weights of records or tokens, multiplied: a record's weight counts for each of its tokens."""
    most = max(a.dim(), b.dim())
    a, b = (one.reshape(*one.shape, *[1] * (most - one.dim())) for one in (a, b))
    return a * b


def weigh_call(
    loss: Tensor, calls: Sequence[LossCall], weights: Tensor, captured: CapturedLoss, *, hook: bool = True
) -> None:
    """Let the backward pass of a loss count each record by its weight.

    Args:
        loss: Scalar with a graph, as the step returned it.
        calls: Calls of loss functions, one of which it was made of.
        weights: ``(B,)`` of records, or ``(B, T)`` of tokens, of the layout in which they were captured.
        captured: Losses of the records, whose capture has shown that rows stand in record order.
        hook: Whether to do it, or only to see whether it can be done.

    Raises:
        AmbiguousLossError: If the graph of the loss leads anywhere else than through the rows of one call.

    Guarantees:
        ``loss.backward()`` then leaves the gradient of ``sum_b weights[b] L_b`` in every parameter, where ``sum_b L_b``
        is the loss and ``L_b`` the terms of record ``b`` over the same denominator. Where batch normalization or
        attention mixes records before the call, ``L_b`` depends on them too, and so does its gradient. A weight of zero
        leaves no gradient, even of a loss that is infinite.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> from memguard.capture.losses import LossCapture, attribute
        >>> logits, y = torch.zeros(2, 2, requires_grad=True), torch.tensor([0, 1])
        >>> with LossCapture() as seen:
        ...     loss = cross_entropy(logits * 1, y)
        >>> weigh_call(loss, seen.calls, torch.tensor([1.0, 0.0]), attribute(seen.calls, loss, 2))
        >>> loss.backward()
        >>> (logits.grad + 0).tolist()  # no zero has a sign
        [[-0.25, 0.25], [0.0, 0.0]]
    """
    call = call_of(loss, calls)
    if call is None or call.elements is None or call.signature != captured.signature:
        raise AmbiguousLossError(
            "the returned loss is not one call of a loss function, or a linear function of one",
            "terms of other records, or of none, would be weighed as if they were a record's own",
            _FIX,
        )
    whole = call.result.shape == call.elements.shape and call.reduction == "none"
    through = call.result if whole else call.input
    log_p = None if whole or call.name != "cross_entropy" else kept_log_p(call.result)
    if log_p is not None:  # as in steps that are read from their graph: the same bits in every step
        through = log_p
    ways = [] if whole else ways_to(call.result, through)
    if not whole and not ways:
        raise AmbiguousLossError(
            f"the gradient of {call.name} reaches other tensors than its input",
            "that part of it would keep its full weight",
            "detach target and weight, or pass per_record_loss=",
        )
    fitted = _fit(weights, call, through, len(captured.loss))
    if not hook or not through.requires_grad:
        return
    zero = fitted == 0

    def scaled(grad: Tensor) -> Tensor:
        product = grad * fitted.to(grad.dtype)
        if product.device.type == "cpu" and bool(product.sum().isfinite()):  # an infinity times zero is none
            return product
        return product.masked_fill_(zero, 0.0)

    if whole:
        through.register_hook(scaled)  # type: ignore[no-untyped-call]
    for node, number in ways:
        # Not on the input itself: whoever listens there, as DP-SGD does at a layer, is to see the weighed gradient.
        node.register_hook(changed_at(number, scaled))


def weigh_losses(loss: Tensor, parts: Tensor, weights: Tensor) -> Tensor:
    """A loss of the same value whose gradient counts each part by its weight.

    Args:
        loss: Scalar, the sum of the parts.
        parts: ``(B,)`` with a gradient.
        weights: ``(B,)``.

    Example:
        >>> parts = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = weigh_losses(parts.sum(), parts, torch.tensor([1.0, 0.25]))
        >>> loss.backward()
        >>> loss.item(), parts.grad.tolist()
        (3.0, [1.0, 0.25])
    """
    if weights.shape != parts.shape:
        raise AmbiguousLossError(
            f"weights of shape {tuple(weights.shape)} for losses of {len(parts)} records",
            "per_record_loss gives no losses of tokens",
            "give one weight per record where losses come from per_record_loss=",
        )
    more = ((weights.to(parts.dtype) - 1) * parts).sum()
    return loss + (more - more.detach()).to(loss.dtype)


def _fit(weights: Tensor, call: LossCall, through: Tensor, batch_size: int) -> Tensor:
    """Weights in the shape in which they multiply the gradient of a tensor."""
    elements, shape = call.elements, through.shape
    assert elements is not None
    each = elements.numel() // batch_size
    if weights.shape[:1] != (batch_size,) or weights.numel() not in (batch_size, batch_size * each):
        raise AmbiguousLossError(
            f"weights of shape {tuple(weights.shape)} for {batch_size} records with losses {tuple(elements.shape)}",
            "a weight would be given to another record",
            "give one weight per record, or one per token of the captured loss",
        )
    flat = weights.detach().reshape(batch_size, -1)
    flat = (flat.expand(batch_size, each) if flat.shape[1] == 1 else flat).reshape(-1)
    if shape == elements.shape or shape.numel() == elements.numel() == 1:
        return flat.reshape(shape)
    if through.dim() > 1 and elements.numel() == shape[0] * prod(shape[2:]):
        return flat.reshape(shape[0], 1, *shape[2:])
    if batch_size == 1 and elements.numel() == 1:
        return flat.reshape(1)
    raise AmbiguousLossError(
        f"{call.name} made losses of shape {tuple(elements.shape)} from {tuple(shape)}",
        "the rows of its input are not those of its records",
        "give input and target the same shape, or pass per_record_loss=",
    )


def _parts(given: Any, loss: Tensor, batch_size: int, possible: set[str]) -> tuple[Tensor, set[str]]:
    """The parts ``(B,)`` of a loss by records, from the user's per-record losses; proven to add up to it."""
    losses, tokens = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(losses, Tensor) or losses.shape != (batch_size,) or not losses.requires_grad:
        raise AmbiguousLossError(
            "per_record_loss gave losses without a gradient",
            "weights act on the gradient of each record's loss",
            "return losses of shape (batch size,) that are not detached from per_record_loss=",
        )
    wrong = int((~losses.isfinite()).sum())
    if wrong:
        raise AmbiguousLossError(
            f"{wrong} of {batch_size} losses of per_record_loss are NaN or infinite",
            "so would be the loss that is returned, and gradients of the whole batch, whatever the weights",
            "give 0, and 0 tokens beside it, for a record without targets: divide by max(tokens, 1)",
        )
    ways = {"mean": losses / batch_size, "sum": losses}
    if tokens is not None:
        ways["tokens"] = losses * (tokens / tokens.sum().clamp(min=1)).to(losses.dtype)
    value = loss.item()
    coarse = max(torch.finfo(one.dtype).eps for one in (loss, losses)) > 1e-3
    scale = max(abs(value), 1e-6) * (2e-2 if coarse else 1e-4)
    apart = {name: abs(ways[name].sum(dtype=torch.float64).item() - value) for name in possible & set(ways)}
    left = {name for name, far in apart.items() if isfinite(value) and far <= scale}
    if coarse and {"mean", "tokens"} <= left and not torch.allclose(ways["mean"], ways["tokens"], rtol=1e-2):
        raise AmbiguousLossError(
            f"losses in {loss.dtype}, in which their mean and their mean over tokens are both {value:.3g}",
            "each record would be weighed by the wrong share in the loss",
            "compute the loss, and those of per_record_loss=, on logits.float()",
        )
    if not left:
        raise AmbiguousLossError(
            f"the losses of per_record_loss do not add up to the loss {value:.6g} that the step returned",
            "weighing them would change something else than what is trained on",
            "let per_record_loss= compute the parts whose mean (or mean over tokens, or sum) training_step returns",
        )
    return ways[min((one for one in ("tokens", "mean", "sum") if one in left), key=apart.__getitem__)], left


def _replaced(returned: Any, loss: Tensor) -> Any:
    return {**returned, "loss": loss} if isinstance(returned, Mapping) else loss


def rerun_of(
    override: PerRecordLoss, module: torch.nn.Module, batch: Any, states: RandomStates
) -> Callable[[], Any]:
    """Calls a user's ``per_record_loss`` as the step ran: its modes, precision and random numbers, with a gradient."""
    plugin = getattr(getattr(module, "_trainer", None), "precision_plugin", None)

    def rerun() -> Any:
        modes = [(part, part.training) for part in module.modules()]
        precision = contextlib.nullcontext() if plugin is None else plugin.train_step_context()
        with untouched(module), torch.enable_grad(), precision:
            for part, mode in modes:
                part.training = mode
            torch.set_rng_state(states[0])
            for device, state in states[1].items():
                torch.cuda.set_rng_state(state, device)
            return override(module, batch)

    return rerun


def random_states() -> RandomStates:
    """The states of torch's generators: of the CPU, and of the current accelerator where it is in use.

    Example:
        >>> random_states()[0].dtype
        torch.uint8
    """
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if used else []
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}
