"""The loss of each record, from the loss that the step computed anyway.

A capture is trusted only if exactly one noted call *is* the loss that the step returned (the same object, or
the same value where a wrapper copied it), and only if the per-record losses pool back to the returned
number. Anything else is refused with :class:`~memguard.errors.AmbiguousLossError`: a wrong number is worse
than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, isnan, nan, prod
from typing import Any

import torch
from torch import Tensor

from memguard.capture.call import LossCall
from memguard.capture.layout import LayoutMemory, is_integer, tensors_in, unflatten_length
from memguard.capture.mode import LIKELIHOODS, LossCapture
from memguard.errors import AmbiguousLossError

__all__ = ["CapturedLoss", "LossCall", "LossCapture", "attribute", "check_batch", "from_override", "loss_of"]

_LOOKS = 3
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
        mass: ``(B,)`` float32, what the record's mean divides by: positions, or the class weights at them. A loss
            that is a mean over positions is the mean of ``loss`` with these weights. ``None`` for an override.
        masses: ``(B, T)`` float32, how much each position counts in the returned loss, up to a factor; ``None`` unless
            somebody asked (:func:`~memguard.capture.masses.token_masses`).

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
    mass: Tensor | None = None
    masses: Tensor | None = None


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
    if call.elements is None and not call.escaped:
        raise AmbiguousLossError(
            f"the values of {call.name} before its {call.reduction} could not be taken ({call.problem})",
            "there is no loss of each record",
            _FIX,
        )
    if call.escaped:
        raise AmbiguousLossError(
            f"{call.name} ran inside a torch.func transform (vmap or grad)",
            "its values belong to the transform and cannot be read outside it",
            _FIX,
        )
    check_batch(batch, batch_size)
    try:
        shares = _share_out(call, batch_size, batch, memory)
        if call.result.numel() == 1 or value is not None:
            _check_pooled(call, value, shares, memory)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise AmbiguousLossError(
            f"the values of {call.name} have an unexpected form ({error})",
            "they cannot be shared out among the records",
            _FIX,
        ) from error
    sequence = shares.by_class and shares.width > 1
    return CapturedLoss(
        loss=shares.total / shares.mass,
        tokens=shares.tokens,
        targets=shares.targets,
        mask=shares.mask,
        unit="nats/token" if sequence else ("nats/record" if call.name in LIKELIHOODS else "loss/record"),
        route=f"{call.name}, {how}" + (", unflattened" if shares.rows != batch_size else ""),
        signature=call.signature,
        mass=shares.mass.to(torch.float32),
    )


@dataclass(slots=True, eq=False)
class _Shares:
    """The values of a call, summed for each record."""

    total: Tensor  # (B,) float32, sum of the values
    mass: Tensor  # (B,) what to divide by: positions, or class weights
    tokens: Tensor  # (B,) int64, positions that count
    targets: Tensor | None
    mask: Tensor | None
    rows: int
    width: int  # dimensions of the values, records first
    by_class: bool


def _share_out(call: LossCall, batch_size: int, batch: Any, memory: LayoutMemory | None) -> _Shares:
    elements, targets = call.elements, call.target
    assert elements is not None
    by_class = call.ignore_index is not None and is_integer(targets)
    if elements.dim() == 0:
        elements = elements.reshape(1)
        targets = targets.reshape(1) if targets.dim() == 0 else targets
    if not by_class and elements.numel() > max(call.input.numel(), targets.numel()):
        raise AmbiguousLossError(
            f"{call.name} broadcast {tuple(call.input.shape)} against {tuple(targets.shape)}",
            "each value then mixes several records",
            "give both the same shape",
        )
    rows = elements.shape[0]
    if rows != batch_size:
        length = unflatten_length(call, batch_size, batch, memory) if batch_size else 0
        elements = elements.reshape(batch_size, length, *elements.shape[1:])
        if targets.shape[:1] == (rows,):
            targets = targets.reshape(batch_size, length, *targets.shape[1:])
    known = targets.detach() if targets.shape[:1] == (batch_size,) else None
    total = _per_row(elements.to(torch.float32))
    if by_class:
        mask = torch.ne(targets, call.ignore_index if call.ignore_index is not None else -100)
        tokens = _per_row(mask.to(torch.int64))
        mass = tokens
        if call.weight is not None:
            safe = torch.where(mask, targets, torch.zeros_like(targets))
            mass = _per_row(call.weight.detach().to(torch.float32)[safe] * mask)
        return _Shares(total, mass, tokens, known, mask, rows, elements.dim(), by_class)
    each = prod(elements.shape[1:])
    if call.name == "kl_div" and call.reduction in ("batchmean", "sum") and elements.dim() > 1:
        each //= elements.shape[-1]  # a divergence is one number per distribution: the sum over its classes
    tokens = torch.full((batch_size,), each, dtype=torch.int64, device=elements.device)
    whole = torch.ones_like(elements, dtype=torch.bool) if elements.shape == targets.shape else None
    return _Shares(total, tokens, tokens, known, whole, rows, elements.dim(), by_class)


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


def _equal(a: float, b: float, tolerance: float) -> bool:
    return a == b or (isnan(a) and isnan(b)) or isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 0.1)


def _close(call: LossCall, value: Tensor) -> bool:
    if value.numel() != 1 or call.elements is None:
        return False
    number, tolerance = value.item(), _tolerance(value, call.result)
    if call.reduction != "none":
        return call.result.numel() == 1 and _equal(call.result.item(), number, tolerance)
    elements = call.elements.to(torch.float32)
    if _equal(elements.mean().item(), number, tolerance):
        return True
    if call.ignore_index is None or not is_integer(call.target):
        return False
    return _equal((elements.sum() / (call.target != call.ignore_index).sum()).item(), number, tolerance)


def _check_pooled(call: LossCall, value: Tensor | None, shares: _Shares, memory: LayoutMemory | None) -> None:
    """The per-record losses must pool to the number that the step returned."""
    returned = value if value is not None else call.result
    if call.reduction == "none":
        return  # compared when the call was chosen
    if returned.device.type != "cpu" and call.result is value and memory is not None:
        # Reading a value makes an accelerator wait; where the call is the loss itself, a few looks are enough.
        memory.looks += 1
        if memory.looks > _LOOKS:
            return
    total = shares.total.sum().item()
    if call.reduction == "sum":
        pooled = total
    elif call.reduction == "batchmean":
        pooled = total / max(shares.rows, 1)
    else:
        mass = shares.mass.sum().item()
        pooled = total / mass if mass else nan
    number = returned.item() if returned.numel() == 1 else None
    if number is None or not _equal(pooled, number, 2 * _tolerance(returned, call.elements)):
        raise AmbiguousLossError(
            f"the losses of the records pool to {pooled:.6g}, the step returned {returned.tolist()}",
            "the values are not parts of the returned loss",
            _FIX,
        )
