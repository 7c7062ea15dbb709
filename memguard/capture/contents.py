"""What all training records hold, read before training: one pass in evaluation mode, without a trace on the run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DistributedSampler

from memguard.capture.content import batch_content
from memguard.capture.ids import Positions, entry_of
from memguard.capture.session import Capture
from memguard.records.content import ContentStore, RecordContent

__all__ = ["read_contents", "rows_of"]

_BATCHES = 16  # held at a time


def rows_of(loader: Any, n_records: int) -> Positions:
    """Positions that a loader trains on: those of its ``SubsetRandomSampler``, or all.

    Args:
        loader: As Lightning has it.
        n_records: Of its data set.

    Example:
        >>> from torch.utils.data import DataLoader, SubsetRandomSampler
        >>> rows_of(DataLoader([5, 6, 7], sampler=SubsetRandomSampler([2, 0])), 3).tolist()
        [0, 2]
    """
    source = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)
    while True:  # inside of samplers that group, and of those that Lightning shares out among processes
        inner = getattr(source, "sampler", None)
        if isinstance(source, DistributedSampler):
            inner = getattr(source.dataset, "_sampler", None)
        if inner is None:
            break
        source = inner
    indices = getattr(source, "indices", None)
    if indices is None or callable(indices):
        return np.arange(n_records, dtype=np.int64)
    return np.unique(np.asarray(indices, dtype=np.int64))


def read_contents(capture: Capture, rows: Positions) -> tuple[RecordContent, dict[int, Any]]:
    """The contents of training records as :func:`~memguard.capture.content.batch_content` has them.

    The validation step runs on them, since the target of its loss says which entry of a batch are the codes. Draws of
    the data set (windows) are the same at every call, and the generators are as before afterwards.

    Args:
        capture: Installed in the run, its training loader made.
        rows: ``(n,)`` which records.

    Returns:
        Contents of all N records of the data set, those of ``rows`` observed; and, where batches name the patients, the
        id by position.

    Raises:
        AmbiguousLossError: If the module has no validation step whose loss can be shared out.
    """
    store, ids = ContentStore(capture.tracker.n_records("train")), dict[int, Any]()
    at_once = _BATCHES * (getattr(capture.tracker.loader("train"), "batch_size", None) or 64)
    for start in range(0, len(rows), at_once):
        batches = capture.fetch("train", rows[start : start + at_once])
        for batch, at, captured in zip(batches, batches.positions, capture.evaluate(batches), strict=True):
            store.add(at, **batch_content(batch, _on_cpu(captured), names=capture.names))
            if capture.patient_key is not None:
                named = entry_of(batch, capture.patient_key)
                ids.update(zip(at.tolist(), [] if named is None else named, strict=False))
    return store.content(), ids


def _on_cpu(captured: Any) -> Any:
    """A capture beside a batch as the loader gave it."""
    moved = {name: value.cpu() for name, value in vars(captured).items() if isinstance(value, Tensor)}
    return dataclasses.replace(captured, **moved)
