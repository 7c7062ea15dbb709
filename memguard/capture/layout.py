"""Which rows of a flattened loss belong to which record, and the proof that is asked for.

Sequence models often flatten ``(B, T)`` targets to ``(B * T,)`` before the loss. Cutting such a vector back
into ``B`` equal pieces is right only if nothing was selected, padded away or transposed on the way. A piece
that is cut wrongly gives one patient's loss to another, so one of two proofs is demanded: the targets are
found, row by row, in the batch; or the graph shows that the logits were ``(B, T, ...)`` just before.
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

__all__ = ["LayoutMemory", "source_shape", "tensors_in", "unflatten_length"]

_MOST = (64, 32, 8, 4)  # entries that are searched, level by level
_FIX = "pass per_record_loss=, a function (module, batch) -> loss of shape (batch size,)"


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
        AmbiguousLossError: If the rows do not divide, or if nothing proves that they are in record order.

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
    if _found_in_batch(call, batch_size, length, batch, memory):
        return length
    source = source_shape(call.input)
    if (source is not None and prod(source[:-1]) == rows and len(source) >= 3) or (
        source is not None and source == (batch_size, length)
    ):
        if source[0] == batch_size and (len(source) < 2 or source[1] != batch_size):
            return length
        raise AmbiguousLossError(
            f"the rows of {call.name} come from a tensor of shape {tuple(source)} for {batch_size} records",
            "records do not stand first, so a row would be given to the wrong record",
            _FIX,
        )
    raise AmbiguousLossError(
        f"{call.name} was called on {rows} flattened rows for a batch of {batch_size} records",
        "nothing proves that the rows stand in record order; positions may have been selected or transposed",
        _FIX,
    )


def _found_in_batch(call: LossCall, batch_size: int, length: int, batch: Any, memory: LayoutMemory) -> bool:
    if call.target.shape[:1] != (batch_size * length,):
        return False
    target = call.target.reshape(batch_size, length, *call.target.shape[1:])
    # Reading values makes an accelerator wait: there, what was proven once on this path is not proven again.
    trust = target.device.type != "cpu"
    for path, tensor in tensors_in(batch):
        if tensor.dim() != target.dim() or tensor.shape[0] != batch_size or tensor.shape[1] < length:
            continue
        gap = tensor.shape[1] - length
        key = (call.name, path)
        if trust and memory.proven.get(key) == gap:
            return True
        if gap > 2 or tensor.shape[2:] != target.shape[2:] or tensor.device != target.device:
            continue
        for shift in sorted({0, gap, min(gap, 1)}, key=lambda at: at != memory.shifts.get(key)):
            if _same_rows(target, tensor[:, shift : shift + length], call.ignore_index):
                memory.proven[key], memory.shifts[key] = gap, shift
                return True
        # Hugging Face pads the shifted labels at the end.
        if gap == 0 and length > 1 and _same_rows(target[:, :-1], tensor[:, 1:], call.ignore_index):
            memory.proven[key] = gap
            return True
    return False


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
        if kind.startswith(("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward")):
            sizes = tuple(int(size) for size in getattr(node, "_saved_self_sym_sizes", ()))
            return sizes or None
        if not kind.startswith(("ToCopyBackward", "CloneBackward", "AliasBackward", "LogSoftmaxBackward")):
            break
        node = node.next_functions[0][0]
    if rows._is_view() and rows._base is not None and rows.is_contiguous() and rows._base.is_contiguous():
        base = rows._base
        return tuple(base.shape) if base.numel() == rows.numel() else None
    return None


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds class numbers."""
    return not (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.bool
