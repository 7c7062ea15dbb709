"""The loss of each record, from the loss that the step computed anyway.

A capture is trusted only if exactly one noted call *is* the loss that the step returned (the same object, or
the same value where a wrapper copied it), and only if the per-record losses pool back to the returned
number. Anything else is refused with :class:`~memguard.errors.AmbiguousLossError`: a wrong number is worse
than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memguard.capture.layout import LayoutMemory, is_integer, tensors_in, unflatten_length
from memguard.capture.mode import LIKELIHOODS, LossCall, LossCapture
from memguard.errors import AmbiguousLossError

__all__ = ["CapturedLoss", "LossCall", "LossCapture", "attribute", "check_batch", "from_override", "loss_of"]

_FIX = "pass per_record_loss=, a function (module, batch) -> loss of shape (batch size,)"


@dataclass(frozen=True, kw_only=True, eq=False)
class CapturedLoss:
    """The loss of each record of one batch.

    Attributes:
        loss: ``(B,)`` float32, detached, on the step's device; the mean over the record's predicted
            positions. NaN for a record without any.
        tokens: ``(B,)`` int64, how many positions that mean is over.
        targets: What was predicted, ``(B, ...)``, ignored positions as they are; ``None`` if unknown.
        mask: True where a target counts, the shape of ``targets``.
        unit: ``"nats/token"`` for sequences, ``"nats/record"`` for one likelihood per record,
            ``"loss/record"`` for losses that are no likelihood (squared error, ...).
        route: How the loss was found, for the report.
        signature: Function and reduction of the accepted call; ``None`` for an override.

    Example:
        >>> import torch
        >>> captured = from_override(torch.tensor([0.5, 0.25]), batch_size=2)
        >>> captured.loss.tolist(), captured.unit, captured.route
        ([0.5, 0.25], 'nats/record', 'per_record_loss')
    """

    loss: Tensor
    tokens: Tensor
    targets: Tensor | None = None
    mask: Tensor | None = None
    unit: str = "nats/record"
    route: str
    signature: tuple[str, str] | None = None


def loss_of(returned: Any) -> Tensor | None:
    """The loss in what a step returned: a tensor, or the entry ``"loss"`` of a mapping.

    Example:
        >>> import torch
        >>> loss_of({"loss": torch.tensor(1.0), "preds": None})
        tensor(1.)
    """
    if isinstance(returned, Mapping):
        returned = returned.get("loss")
    return returned if isinstance(returned, Tensor) else None


def attribute(
    calls: Sequence[LossCall],
    returned: Any,
    batch_size: int,
    *,
    exact_call: LossCall | None = None,
    like: tuple[str, str] | None = None,
    batch: Any = None,
    memory: LayoutMemory | None = None,
) -> CapturedLoss:
    """Give the loss of a step to the records of its batch.

    Args:
        calls: What :class:`LossCapture` noted during the step.
        returned: What the step returned: a tensor, a mapping with ``"loss"``, or None.
        batch_size: B, the number of records that the loader put into the batch.
        exact_call: The call to use, where the caller knows it.
        like: Signature of the accepted training call; used if the step returned no loss.
        batch: The batch itself: it proves how flattened targets are laid out.
        memory: What earlier steps proved about the layout.

    Returns:
        The loss of each record.

    Raises:
        AmbiguousLossError: If no single call is the returned loss, or if its values cannot be shared out.

    Guarantees:
        The returned values, weighted by their positions, pool to the loss that the step returned, within the
        rounding of its dtype. It does not show that the loss is a likelihood.

    Example:
        >>> import torch
        >>> logits, y = torch.zeros(3, 4), torch.tensor([0, 1, 2])
        >>> with LossCapture() as seen:
        ...     loss = torch.nn.functional.cross_entropy(logits, y)
        >>> captured = attribute(seen.calls, loss, 3)
        >>> captured.loss.shape, captured.tokens.tolist(), captured.unit
        (torch.Size([3]), [1, 1, 1], 'nats/record')
    """
    value = loss_of(returned)
    call, how = (exact_call, "named") if exact_call is not None else _choose(calls, value, like)
    if call.escaped or call.elements is None:
        raise AmbiguousLossError(
            f"{call.name} ran inside a torch.func transform (vmap or grad)",
            "its values belong to the transform and cannot be read outside it",
            _FIX,
        )
    check_batch(batch, batch_size)
    elements = call.elements
    if elements.dim() == 0:
        elements = elements.reshape(1)
    targets = call.target
    ignore = call.ignore_index if call.ignore_index is not None else -100
    by_class = call.ignore_index is not None and is_integer(targets)
    if not by_class and elements.numel() > max(call.input.numel(), targets.numel()):
        raise AmbiguousLossError(
            f"{call.name} broadcast {tuple(call.input.shape)} against {tuple(targets.shape)}",
            "each value then mixes several records",
            "give both the same shape",
        )
    valid = torch.ones_like(elements, dtype=torch.bool)
    if by_class:
        valid = torch.ne(targets, ignore)
    if by_class and call.weight is not None:
        safe = torch.where(valid, targets, torch.zeros_like(targets))
        weight = call.weight.detach().to(torch.float32)[safe] * valid
    else:
        weight = valid.to(torch.float32)
    rows = elements.shape[0]
    if valid.dim() == 0:
        valid, weight, targets = valid.reshape(1), weight.reshape(1), targets.reshape(1)
    flat = rows != batch_size
    if flat:
        length = unflatten_length(call, batch_size, batch, memory) if batch_size else 0
        shape = (batch_size, length)
        elements = elements.reshape(*shape, *elements.shape[1:])
        valid = valid.reshape(*shape, *valid.shape[1:])
        weight = weight.reshape(*shape, *weight.shape[1:])
        if targets.shape[:1] == (rows,):
            targets = targets.reshape(*shape, *targets.shape[1:])
    total, mass, tokens = (_per_row(t) for t in (elements.to(torch.float32), weight, valid.to(torch.int64)))
    if call.name == "kl_div" and call.reduction in ("batchmean", "sum"):
        # A divergence is one number per distribution: the sum over its classes, not their mean.
        classes = elements.shape[-1] if elements.dim() > 1 else 1
        mass, tokens = mass / classes, tokens // classes
    if call.result.numel() == 1 or value is not None:
        _check_pooled(call, value, total, mass, rows, int(elements.numel()))
    sequence = elements.dim() > 1 and by_class
    return CapturedLoss(
        loss=(total / mass).detach(),
        tokens=tokens,
        targets=targets.detach() if targets.shape[:1] == (batch_size,) else None,
        mask=valid if valid.shape == targets.shape else None,
        unit="nats/token" if sequence else ("nats/record" if call.name in LIKELIHOODS else "loss/record"),
        route=f"{call.name}, {how}" + (", unflattened" if flat else ""),
        signature=call.signature,
    )


def check_batch(batch: Any, batch_size: int) -> None:
    """Refuse a batch whose tensors do not have one row for each record that the loader put into it.

    Raises:
        AmbiguousLossError: If the batch has tensors, and none has ``batch_size`` rows.

    Example:
        >>> import torch
        >>> check_batch({"x": torch.zeros(4, 2)}, 4)
        >>> check_batch({"x": torch.zeros(3, 2)}, 4)
        Traceback (most recent call last):
        ...
        memguard.errors.AmbiguousLossError: 4 records were put into the batch, its tensors have [3] rows...
    """
    rows = {int(tensor.shape[0]) for _, tensor in tensors_in(batch) if tensor.dim()}
    if rows and batch_size not in rows:
        raise AmbiguousLossError(
            f"{batch_size} records were put into the batch, its tensors have {sorted(rows)} rows",
            "the collate function drops or mixes records, so a loss could be given to the wrong one",
            "pass record_ids=, a function (batch) -> positions, and per_record_loss=",
        )


def from_override(given: Any, *, batch_size: int | None, route: str = "per_record_loss") -> CapturedLoss:
    """What a user's ``per_record_loss(module, batch)`` returned, checked.

    Args:
        given: ``(B,)`` losses, or a pair ``(losses, tokens)``.
        batch_size: B; None if it is not known.
        route: Name for the report.

    Raises:
        AmbiguousLossError: If the shape is not ``(B,)``.

    Example:
        >>> import torch
        >>> from_override((torch.ones(2), torch.tensor([3, 4])), batch_size=2).unit
        'nats/token'
    """
    loss, tokens = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if (
        not isinstance(loss, Tensor)
        or loss.dim() != 1
        or (batch_size is not None and len(loss) != batch_size)
    ):
        seen = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise AmbiguousLossError(
            f"per_record_loss gave {seen} for a batch of {batch_size} records",
            "a loss could be given to the wrong record",
            "return one loss per record, shape (batch size,)",
        )
    unit = "nats/record" if tokens is None else "nats/token"
    count = torch.ones_like(loss, dtype=torch.int64) if tokens is None else tokens.detach().to(torch.int64)
    return CapturedLoss(loss=loss.detach().to(torch.float32), tokens=count, unit=unit, route=route)


def _choose(
    calls: Sequence[LossCall], value: Tensor | None, like: tuple[str, str] | None
) -> tuple[LossCall, str]:
    if not calls:
        raise AmbiguousLossError(
            "the step called no loss function of torch.nn.functional",
            "there is nothing to take the loss of each record from",
            _FIX,
        )
    if value is not None:
        same = [call for call in calls if call.result is value]
        if len(same) == 1:
            return same[0], "the returned loss"
        close = [call for call in calls if not call.escaped and _close(call, value)]
        if len(close) == 1:
            return close[0], "equal to the returned loss"
        what = "none is" if not close else f"{len(close)} are equal to"
        raise AmbiguousLossError(
            f"the step called {_names(calls)} and {what} the loss it returned",
            "a part of the loss, or a scaled one, is not the loss of a record",
            _FIX,
        )
    if like is not None:
        same = [call for call in calls if call.signature == like] or [c for c in calls if c.name == like[0]]
        if len(same) == 1:
            return same[0], "the function of the training loss"
    elif len(calls) == 1:
        return calls[0], "the only call"
    raise AmbiguousLossError(
        f"the step returned no loss and called {_names(calls)}",
        "which of them is the loss of a record cannot be told",
        "return the loss from the step, or " + _FIX,
    )


def _per_row(values: Tensor) -> Tensor:
    return values.sum(dim=tuple(range(1, values.dim()))) if values.dim() > 1 else values


def _names(calls: Sequence[LossCall]) -> str:
    return ", ".join(call.name for call in calls[:5]) + (", ..." if len(calls) > 5 else "")


def _tolerance(*tensors: Tensor | None) -> float:
    """Relative rounding of the coarsest dtype at hand; sums over a batch lose some more."""
    worst = max(torch.finfo(t.dtype).eps for t in tensors if t is not None and t.is_floating_point())
    return max(32 * worst, 1e-5) if worst < 1e-3 else 4 * worst


def _equal(a: Tensor, b: Tensor, tolerance: float) -> bool:
    a, b = a.detach().to(torch.float64), b.detach().to(torch.float64)
    return bool(torch.isclose(a, b, rtol=tolerance, atol=tolerance * 1e-1, equal_nan=True).all())


def _close(call: LossCall, value: Tensor) -> bool:
    if value.numel() != 1 or call.elements is None:
        return False
    value = value.reshape(())
    tolerance = _tolerance(value, call.result)
    if call.reduction != "none":
        return call.result.numel() == 1 and _equal(call.result.reshape(()), value, tolerance)
    elements = call.elements.to(torch.float32)
    if _equal(elements.mean(), value, tolerance):
        return True
    if call.ignore_index is None or not is_integer(call.target):
        return False
    return _equal(elements.sum() / (call.target != call.ignore_index).sum(), value, tolerance)


def _check_pooled(
    call: LossCall, value: Tensor | None, total: Tensor, mass: Tensor, rows: int, elements: int
) -> None:
    """The per-record losses must pool to the number that the step returned."""
    returned = value if value is not None else call.result
    if returned.device.type != "cpu" and call.result is value:
        return  # identity holds; reading the value here would make the accelerator wait at every step
    returned = returned.reshape(-1)
    if call.reduction == "none":
        return  # compared when the call was chosen
    if call.reduction == "sum":
        pooled = total.sum()
    elif call.reduction == "batchmean":
        pooled = total.sum() / max(rows, 1)
    else:
        pooled = total.sum() / mass.sum()
    if returned.numel() != 1 or not _equal(pooled, returned[0], 2 * _tolerance(returned, call.elements)):
        raise AmbiguousLossError(
            f"the losses of the records pool to {float(pooled):.6g}, the step returned {returned.tolist()}",
            "the values are not parts of the returned loss",
            _FIX,
        )
