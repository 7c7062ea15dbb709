"""Batches of several models as one batch with a first axis for the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from memguard.errors import ReferenceModelError

__all__ = ["Group", "together"]


@dataclass(frozen=True)
class Group:
    """Models whose batches are alike.

    Attributes:
        models: Their numbers.
        batch_idx: Place of the batch in the epoch.
        batch: Theirs, stacked.
    """

    models: list[int]
    batch_idx: int
    batch: Any


def together(batches: list[tuple[int, int, Any]], device: torch.device) -> list[Group]:
    """Stack batches of the same shape and place: halves may end on batches of other sizes.

    Args:
        batches: Number of a model, place in its epoch, and its batch.
        device: Where to.

    Raises:
        ReferenceModelError: If a batch is not made of tensors.

    Example:
        >>> ones = [(0, 5, [torch.ones(3)]), (1, 5, [torch.ones(2)]), (2, 5, [torch.ones(3)])]
        >>> [(group.models, group.batch[0].shape) for group in together(ones, torch.device("cpu"))]
        [([0, 2], torch.Size([2, 3])), ([1], torch.Size([1, 2]))]
    """
    groups: list[tuple[Any, list[int], list[list[Any]]]] = []
    for model, place, batch in batches:
        leaves, spec = tree_flatten(batch)
        kind = (place, [_kind(leaf) for leaf in leaves], spec)
        for known, models, parts in groups:
            if known == kind:
                models.append(model)
                parts.append(leaves)
                break
        else:
            groups.append((kind, [model], [leaves]))
    return [
        Group(
            models,
            kind[0],
            tree_unflatten([torch.stack(p).to(device) for p in zip(*parts, strict=True)], kind[2]),
        )
        for kind, models, parts in groups
    ]


def _kind(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        raise ReferenceModelError(
            f"a batch with {type(leaf).__name__} in it",
            "only tensors can be stacked",
            'pass backend="sequential"',
        )
    return leaf.shape, leaf.dtype
