"""Where the losses of held-out patients come from: the run's validation loop, or data that the monitor evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from memguard.capture.content import batch_content
from memguard.capture.fetch import Fetched, fetch
from memguard.capture.session import Capture
from memguard.errors import HeldOutError, IndexTrackingError, MemguardError

__all__ = ["HeldOutSource"]

Ints = NDArray[np.int64]
Evaluated = tuple[Ints, NDArray[np.float32], Ints, list[dict[str, Any]]]


class HeldOutSource:
    """The held-out patients of a run.

    Args:
        heldout: ``"val"`` or ``"val:K"`` for a loader of the validation loop; a DataLoader; a map-style data set.
        capture: Of the run.

    Attributes:
        free: Whether the run computes the losses anyway.
        dataloader_idx: Which validation loader, where ``free``.

    Raises:
        HeldOutError: If ``heldout`` is ``None``.
        MemguardError: If it is none of these.

    Example:
        >>> HeldOutSource("val:1", Capture()).dataloader_idx
        1
    """

    def __init__(self, heldout: Any, capture: Capture) -> None:
        if heldout is None:
            raise HeldOutError(
                "heldout=None",
                "without held-out patients no leakage number means anything",
                'pass heldout="val", or a DataLoader of held-out patients',
            )
        self.capture = capture
        self.dataloader_idx = 0
        self.free = isinstance(heldout, str)
        self._dataset: Any = None
        self._collate: Any = None
        self._batch_size = 64
        if isinstance(heldout, str):
            name, _, index = heldout.partition(":")
            if name != "val" or not (index or "0").isdigit():
                raise MemguardError(
                    f"heldout={heldout!r}",
                    "it does not say where the held-out patients are",
                    'pass heldout="val", "val:1" for a second validation loader, a DataLoader or a data set',
                )
            self.dataloader_idx = int(index or 0)
        elif isinstance(heldout, DataLoader):
            self._dataset, self._collate = heldout.dataset, heldout.collate_fn
            self._batch_size = heldout.batch_size or 64
            _check_map_style(self._dataset)
        elif hasattr(heldout, "__getitem__") and hasattr(heldout, "__len__"):
            self._dataset = heldout
            _check_map_style(heldout)
        else:
            raise MemguardError(
                f"heldout of type {type(heldout).__name__}",
                "it does not say where the held-out patients are",
                'pass heldout="val", a DataLoader or a map-style data set',
            )

    @property
    def dataset(self) -> Any:
        """The held-out data set."""
        if self.free:
            return self.capture.tracker.dataset("val", self.dataloader_idx)
        return self._dataset

    @property
    def collate_fn(self) -> Any:
        """How its records become a batch; ``None`` for torch's default."""
        if self.free:
            return getattr(self.capture.tracker.loader("val", self.dataloader_idx), "collate_fn", None)
        return self._collate

    @property
    def n_records(self) -> int:
        """Its length.

        Raises:
            HeldOutError: If there is no validation loader.
            IndexTrackingError: If the data set is a stream.
        """
        if self.free and self.dataloader_idx >= self.capture.tracker.n_loaders("val"):
            raise HeldOutError(
                "no validation loader" + (f" number {self.dataloader_idx}" if self.dataloader_idx else ""),
                "membership and memorization are measured against patients that the model never saw",
                "give the run a validation loader, or pass heldout= with a DataLoader of held-out patients",
            )
        _check_map_style(self.dataset)
        if self.free:
            return self.capture.tracker.n_records("val", self.dataloader_idx)
        return len(self._dataset)

    def windows(self, positions: Ints | None = None) -> Fetched:
        """Batches of these records (of all by default), the same at every call."""
        rows = np.arange(self.n_records) if positions is None else positions
        if self.free:
            return self.capture.fetch("val", rows, dataloader_idx=self.dataloader_idx)
        return fetch(self._dataset, rows, self._collate, self._batch_size)

    def evaluate(self, windows: Fetched, *, contents: bool = False) -> Evaluated:
        """Losses of such batches by the run's own validation step.

        Returns:
            positions, losses, tokens (each ``(n,)``), and the contents per batch where asked for.
        """
        captured = self.capture.evaluate(windows, dataloader_idx=self.dataloader_idx)
        pairs = zip(windows, captured, strict=True) if contents else ()
        found = [batch_content(batch, one, names=self.capture.names) for batch, one in pairs]
        return (
            np.concatenate([*windows.positions, np.zeros(0, np.int64)]),
            _joined([c.loss.cpu().float().numpy() for c in captured], np.float32),
            _joined([c.tokens.cpu().numpy() for c in captured], np.int64),
            found,
        )


def _check_map_style(dataset: Any) -> None:
    stream = isinstance(dataset, IterableDataset)
    if stream or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise IndexTrackingError(
            f"held-out data of type {type(dataset).__name__}"
            + (", an IterableDataset" if stream else " without __getitem__ and __len__"),
            "its records have no positions, so their losses cannot be given to patients",
            "give the validation loader a map-style dataset, or pass heldout= with one",
        )


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype)
