"""Which rows of a flattened loss belong to which record, and the proof that is asked for.

Sequence models often flatten ``(B, T)`` targets to ``(B * T,)`` before the loss. Cutting such a vector back
into ``B`` equal pieces is right only if nothing was selected, padded away or transposed on the way. A piece
that is cut wrongly gives one patient's loss to another, so one of two proofs is demanded: the targets are
found, row by row, in the batch; or the graph shows that the logits were ``(B, T, ...)`` just before. Targets that
fit as well when time stands first, as those of an outcome that nobody in the batch has, prove nothing by themselves:
they need the graph, or an earlier step in which the same entry of the batch proved it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor

from memguard.capture.call import LossCall
from memguard.errors import AmbiguousLossError

__all__ = ["LayoutMemory", "UndecidedLayoutError", "source_shape", "tensors_in", "unflatten_length"]

_MOST = (64, 32, 8, 4)  # entries that are searched, level by level
_FIX = "pass per_record_loss=, a function (module, batch) -> loss of shape (batch size,)"
# Functions whose output row is a function of one input row, with the argument that holds the rows.
_BY_ROW = {
    "Addmm": 1, "Mm": 0, "ToCopy": 0, "Clone": 0, "Alias": 0, "LogSoftmax": 0, "Relu": 0, "Gelu": 0, "Silu": 0,
    "Tanh": 0, "Sigmoid": 0, "NativeDropout": 0, "NativeLayerNorm": 0, "Mul": 0, "Div": 0,
}  # fmt: skip
_VIEWS = ("View", "UnsafeView", "ReshapeAlias")


class UndecidedLayoutError(AmbiguousLossError):
    """The rows of one batch fit with records first and with positions first; another batch may tell."""


def tensors_in(batch: Any, *, _depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a batch with its path: mappings, sequences, dataclasses and plain objects are searched.

    Example:
        >>> import torch
        >>> [path for path, _ in tensors_in({"x": torch.zeros(2), "more": [torch.zeros(1)]})]
        ['x', 'more.0']
    """
    if isinstance(batch, Tensor):
        yield "", batch
        return
    if _depth >= len(_MOST):
        return
    items: Any
    if isinstance(batch, Mapping):
        items = batch.items()
    elif isinstance(batch, (list, tuple)):
        items = enumerate(batch)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        items = ((f.name, getattr(batch, f.name)) for f in dataclasses.fields(batch))
    elif hasattr(batch, "__dict__") and not isinstance(batch, type):
        items = vars(batch).items()
    else:
        return
    for name, value in islice(items, _MOST[_depth]):
        for path, tensor in tensors_in(value, _depth=_depth + 1):
            yield f"{name}.{path}" if path else str(name), tensor


@dataclasses.dataclass
class LayoutMemory:
    """What earlier steps proved: (loss function, path in the batch) -> positions that the loss leaves out."""

    proven: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    shifts: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)  # where the targets began
    looks: int = 0  # pooled losses compared so far on an accelerator


def unflatten_length(
    call: LossCall, batch_size: int, batch: Any = None, memory: LayoutMemory | None = None
) -> int:
    """The T of a loss over ``(B * T,)`` rows, or a refusal.

    Args:
        call: The loss call; its elements have ``rows`` in the first dimension.
        batch_size: B, from the records that the loader put into the batch.
        batch: The batch, searched for the targets.
        memory: What earlier steps of this run proved; extended here.

    Returns:
        T, such that rows ``i * T`` to ``(i + 1) * T`` belong to record ``i``.

    Raises:
        AmbiguousLossError: If the rows do not divide, or if nothing proves that they are in record order
            (:class:`UndecidedLayoutError`, if that may be so of this batch alone).

    Example:
        >>> import torch
        >>> y = torch.arange(6).reshape(2, 3)
        >>> v = torch.zeros(6)
        >>> call = LossCall("cross_entropy", v.mean(), v, torch.zeros(6, 9), y.reshape(-1), "mean")
        >>> unflatten_length(call, 2, {"codes": y})
        3
    """
    assert call.elements is not None
    rows = call.elements.shape[0]
    if batch_size == 1:
        return rows
    length, rest = divmod(rows, batch_size)
    if rest or not length:
        raise AmbiguousLossError(
            f"{call.name} was called on {rows} rows for a batch of {batch_size} records",
            "the rows cannot be shared out among the records (were positions selected or packed?)",
            _FIX,
        )
    memory = memory if memory is not None else LayoutMemory()
    fit = _fit(call, batch_size, length, batch, memory)
    if fit is not None and fit.proven:
        return length
    plain = (batch_size, length), (length, batch_size)
    found = source_shape(call.input), call.source, _source_of_rows(call.input)
    source = next((s for s in found if s and (s in plain or (prod(s[:-1]) == rows and len(s) >= 3))), None)
    if source is not None:
        if source[0] == batch_size and (len(source) < 2 or source[1] != batch_size):
            if fit is not None:
                memory.proven[fit.key], memory.shifts[fit.key] = fit.gap, fit.shift
            return length
        square = source[0] == batch_size
        kind = UndecidedLayoutError if square and fit is not None else AmbiguousLossError
        raise kind(
            f"the rows of {call.name} come from a tensor of shape {tuple(source)} for {batch_size} records",
            ("it cannot be told that records stand first" if square else "records do not stand first")
            + ", so a row would be given to the wrong record",
            _FIX,
        )
    if fit is not None:
        raise UndecidedLayoutError(
            f"{call.name} was called on {rows} flattened rows whose targets are those of the batch both with records "
            "first and with positions first",
            "nothing proves which of the two it is, so a row could be given to the wrong record",
            "flatten logits of shape (batch size, positions, ...) right before the loss, or " + _FIX,
        )
    raise AmbiguousLossError(
        f"{call.name} was called on {rows} flattened rows for a batch of {batch_size} records",
        "nothing proves that the rows stand in record order; positions may have been selected or transposed",
        _FIX,
    )


@dataclasses.dataclass(frozen=True)
class _Fit:
    """An entry of the batch that holds the targets, if records stand first."""

    key: tuple[str, str]
    gap: int
    shift: int
    proven: bool


def _fit(call: LossCall, batch_size: int, length: int, batch: Any, memory: LayoutMemory) -> _Fit | None:
    if call.target.shape[:1] != (batch_size * length,):
        return None
    rest = call.target.shape[1:]
    target = call.target.reshape(batch_size, length, *rest)
    # Reading values makes an accelerator wait: there, what was proven once on this path is not proven again.
    trust = target.device.type != "cpu"
    candidates, fit = [], None
    for path, tensor in tensors_in(batch):
        if tensor.dim() != target.dim() or tensor.shape[0] != batch_size or tensor.shape[1] < length:
            continue
        gap = tensor.shape[1] - length
        key = (call.name, path)
        known = memory.proven.get(key) == gap
        if trust and known:
            return _Fit(key, gap, memory.shifts.get(key, 0), True)
        if gap > 2 or tensor.shape[2:] != target.shape[2:] or tensor.device != target.device:
            continue
        candidates.append(tensor)
        shift = _shift(target, tensor, call.ignore_index, memory.shifts.get(key, 0))
        if shift is not None and known:
            memory.shifts[key] = shift
            return _Fit(key, gap, shift, True)
        if shift is not None and fit is None:
            fit = _Fit(key, gap, shift, False)
    if fit is None:
        return None
    crossed = call.target.reshape(length, batch_size, *rest).transpose(0, 1)
    if any(_shift(crossed, tensor, call.ignore_index) is not None for tensor in candidates):
        return fit
    memory.proven[fit.key], memory.shifts[fit.key] = fit.gap, fit.shift
    return dataclasses.replace(fit, proven=True)


def _shift(target: Tensor, tensor: Tensor, ignore_index: int | None, first: int = 0) -> int | None:
    """Where in the entry ``(B, T + gap)`` the targets ``(B, T)`` begin; ``None`` if they are not in it."""
    length = target.shape[1]
    gap = tensor.shape[1] - length
    for shift in sorted({0, gap, min(gap, 1)}, key=lambda at: at != first):
        if _same_rows(target, tensor[:, shift : shift + length], ignore_index):
            return shift
    # Hugging Face pads the shifted labels at the end.
    if gap == 0 and length > 1 and _same_rows(target[:, :-1], tensor[:, 1:], ignore_index):
        return 0
    return None


def _same_rows(target: Tensor, candidate: Tensor, ignore_index: int | None) -> bool:
    if ignore_index is None:
        return torch.equal(target, candidate)
    left_out = target == ignore_index
    return bool((left_out | (target == candidate)).all()) and not bool(left_out.all())


def source_shape(rows: Tensor) -> tuple[int, ...] | None:
    """The shape that a flattened tensor had before, if its graph or its base still tells."""
    node = rows.grad_fn
    for _ in range(4):
        if node is None:
            break
        kind = type(node).__name__
        if kind.startswith(tuple(f"{view}Backward" for view in _VIEWS)):
            return _saved_sizes(node)
        if not kind.startswith(("ToCopyBackward", "CloneBackward", "AliasBackward", "LogSoftmaxBackward")):
            break
        node = node.next_functions[0][0]
    if rows._is_view() and rows._base is not None and rows.is_contiguous() and rows._base.is_contiguous():
        base = rows._base
        return tuple(base.shape) if base.numel() == rows.numel() else None
    return None


def _source_of_rows(rows: Tensor) -> tuple[int, ...] | None:
    """The shape of what was flattened before functions of each row by itself: a head that is called on rows."""
    node = rows.grad_fn
    for _ in range(16):
        kind = type(node).__name__.partition("Backward")[0]
        if kind in _VIEWS:
            return _saved_sizes(node)
        if node is None or kind not in _BY_ROW:
            return None
        node = node.next_functions[_BY_ROW[kind]][0]
    return None


def _saved_sizes(view: Any) -> tuple[int, ...] | None:
    return tuple(int(size) for size in getattr(view, "_saved_self_sym_sizes", ())) or None


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds class numbers."""
    return not (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.bool
