"""What a batch says about its records, in the model's own terms."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memguard.capture.layout import is_integer, tensors_in
from memguard.capture.losses import CapturedLoss

__all__ = ["batch_content"]

_WIDEST = 4096
_NAMES = frozenset({"y", "label", "labels", "target", "targets", "outcome"})
_Array = np.ndarray[Any, np.dtype[Any]]


def batch_content(
    batch: Any, captured: CapturedLoss, *, widest: int = _WIDEST, names: Collection[str] = ()
) -> dict[str, Any]:
    """The records of a batch as codes, or as features and a label.

    For a sequence loss the captured targets *are* the record's codes, in the vocabulary that the model
    predicts; the first code, which is only ever an input, is taken from the batch where an entry of it is the
    targets shifted by one. For a classifier the features are every other number in the batch that has one row
    per record.

    Args:
        batch: The batch as the step received it.
        captured: Its captured loss.
        widest: Features beyond this many columns are left out, in the order of the batch.
        names: Entries of the batch that name its records and patients. They are no features: no two records are
            alike in them, and training and held-out patients are told apart by them without any model.

    Returns:
        ``{"codes": int32 (B, T), "mask": bool (B, T)}`` or
        ``{"x": float32 (B, d), "columns": entries and their shapes, "y": float64 (B,) or (B, c)}``; ``y`` is absent if
        the targets are unknown.

    Example:
        >>> import torch
        >>> y = torch.tensor([1, 0])
        >>> captured = CapturedLoss(loss=torch.zeros(2), tokens=torch.ones(2), targets=y, route="")
        >>> content = batch_content((torch.tensor([[0.5], [2.0]]), y), captured)
        >>> content["x"].tolist(), content["y"].tolist()
        ([[0.5], [2.0]], [1.0, 0.0])
    """
    targets = captured.targets
    if captured.unit == "nats/token" and targets is not None and targets.dim() >= 2 and is_integer(targets):
        mask = captured.mask if captured.mask is not None else torch.ones_like(targets, dtype=torch.bool)
        flat, keep = _with_first_code(batch, targets.flatten(1), mask.flatten(1))
        codes = torch.where(keep, flat, torch.zeros_like(flat))
        return {"codes": _cpu(codes).astype(np.int32), "mask": _cpu(keep)}
    size = len(captured.loss)
    features, columns, width = [], [], 0
    left_out = _paths(batch, names)
    parts = [
        (path, tensor)
        for path, tensor in tensors_in(batch)
        if tensor.dim() and tensor.shape[0] == size and not tensor.is_complex()
    ]
    labels = _labels(parts, targets) if targets is not None else set()
    for path, tensor in parts:
        if path in labels or path.partition(".")[0] in left_out:
            continue
        whole = tensor.detach().reshape(size, -1)
        part = whole[:, : widest - width]
        features.append(_cpu(part.to(torch.float32)))
        cut = part.shape[1] < whole.shape[1]
        columns.append((path, tuple(part.shape[1:]) if cut else tuple(tensor.shape[1:])))
        width += part.shape[1]
        if width >= widest:
            break
    content: dict[str, Any] = {
        "x": np.concatenate(features, axis=1) if features else np.empty((size, 0), dtype=np.float32),
        "columns": tuple(columns),
    }
    if targets is not None and targets.shape[:1] == (size,):
        content["y"] = _cpu(targets.to(torch.float64))
    return content


def _with_first_code(batch: Any, targets: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The codes with the one before the first target, from the entry of the batch that they were cut from."""
    size, length = targets.shape
    for _, tensor in tensors_in(batch):
        if not is_integer(tensor) or tuple(tensor.shape) != (size, length + 1):
            continue
        if bool(((tensor[:, 1:] == targets) | ~keep).all()):
            return tensor, torch.cat([keep[:, :1], keep], dim=1)
    return targets, keep


def _paths(batch: Any, names: Collection[str]) -> set[str]:
    """Where such entries are found by :func:`~memguard.capture.layout.tensors_in`."""
    if not isinstance(batch, list | tuple):
        return set(names)
    fields = getattr(batch, "_fields", ())  # of a named tuple, whose entries are numbered
    return {str(at) for at, field in enumerate(fields) if field in names}


def _labels(parts: list[tuple[str, Tensor]], targets: Tensor) -> set[str]:
    """Which entries of the batch are the label: the targets' own memory, or else the last entry equal to them.

    A feature may equal the label in a small batch by chance, so equality alone would drop a column now and then.
    """
    own = {
        path for path, tensor in parts if tensor.data_ptr() == targets.data_ptr() and _same(tensor, targets)
    }
    equal = [path for path, tensor in parts if _same(tensor, targets)] if not own else []
    named = [path for path in equal if path.rpartition(".")[2].lower() in _NAMES]
    return own or set(named[-1:] or equal[-1:])


def _same(tensor: Tensor, targets: Tensor) -> bool:
    """Equal values, whatever the dtype and the trailing dimensions."""
    if tensor.numel() != targets.numel() or tensor.device != targets.device:
        return False
    return bool((tensor.reshape(-1).to(torch.float64) == targets.reshape(-1).to(torch.float64)).all())


def _cpu(tensor: Tensor) -> _Array:
    array: _Array = tensor.detach().cpu().numpy().copy()
    return array
