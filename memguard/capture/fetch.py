"""Read chosen records again, the same way every time, without moving the run's randomness."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from memguard.capture.stillness import forked_rng, still_generators

__all__ = ["Fetched", "fetch", "source_of"]


class Fetched(list[Any]):
    """Batches in order, each with the positions of its records.

    Attributes:
        positions: One int64 array ``(B,)`` for each batch.

    Example:
        >>> fetch([10, 11, 12], [2, 0], batch_size=2).positions
        [array([2, 0])]
    """

    def __init__(
        self, batches: Sequence[Any], positions: Sequence[np.ndarray[Any, np.dtype[np.int64]]]
    ) -> None:
        super().__init__(batches)
        self.positions = list(positions)

    @property
    def sizes(self) -> list[int]:
        """B of each batch."""
        return [len(positions) for positions in self.positions]


def fetch(
    dataset: Any,
    positions: Any,
    collate_fn: Callable[[Any], Any] | None = None,
    batch_size: int = 64,
    *,
    seed: int | None = 0,
) -> Fetched:
    """Records of a dataset as batches, as its loader would collate them.

    Random crops and other draws made by the dataset start from the same ``seed`` at each call, so that a
    record's window is the same at every look. Afterwards the generators of torch, NumPy and ``random``, and
    those that hang on the dataset or on the collate function, are as they were.

    Args:
        dataset: A map-style dataset.
        positions: ``(n,)`` which records.
        collate_fn: The loader's collate function; torch's default if None.
        batch_size: Records in a batch; the last one may be smaller.
        seed: Start of the generators inside; None lets them run on from where they stand.

    Returns:
        The batches, a list that also knows the ``positions`` and ``sizes`` of its entries.

    Example:
        >>> fetch([10, 11, 12], [2, 0, 1], batch_size=2)
        [tensor([12, 10]), tensor([11])]
    """
    rows = np.asarray(positions, dtype=np.int64).reshape(-1)
    collate = collate_fn if collate_fn is not None else torch.utils.data.default_collate
    cuts = [rows[at : at + batch_size] for at in range(0, len(rows), max(1, batch_size))]
    batches = []
    many = getattr(dataset, "__getitems__", None)
    still = forked_rng(seed), still_generators(dataset, seed=seed), still_generators(collate, seed=seed)
    with torch.inference_mode(False), torch.no_grad(), still[0], still[1], still[2]:
        for cut in cuts:
            wanted = cut.tolist()
            samples = many(wanted) if many else [dataset[row] for row in wanted]
            batches.append(collate(samples))
    return Fetched(batches, cuts)


def source_of(loader: Any, whole_batches: bool) -> tuple[Any, Callable[[Any], Any], int]:
    """Dataset and collate function that make a batch of a list of positions, and how long that list may be.

    Args:
        loader: A DataLoader.
        whole_batches: Whether its sampler hands lists of positions to the dataset (``batch_size=None``).
    """
    collate = getattr(loader, "collate_fn", None) or torch.utils.data.default_collate
    if getattr(loader, "batch_sampler", None) is not None:
        return loader.dataset, collate, sys.maxsize
    if whole_batches:
        return _WholeBatches(loader.dataset), collate, sys.maxsize
    return loader.dataset, lambda samples: collate(samples[0]), 1


class _WholeBatches:
    """A dataset that collates by itself: it is asked for a list of positions and gives a batch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, positions: list[int]) -> Any:
        return self.dataset[positions]
