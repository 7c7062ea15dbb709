"""The user's training loader with private draws in the place of its sampler; all else about it stays."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from memguard.capture.loaders import as_positions, why_untrackable
from memguard.capture.stillness import forked_rng
from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.sampling import PatientSampler

__all__ = ["EachAlone", "offered", "private_loader", "reader"]

_Ints = np.ndarray[Any, np.dtype[np.int64]]
# How a loader asks for records: samples that it collates, lists of positions for a dataset that collates by itself, or
# one position for what is a batch already.
_Layout = Literal["samples", "whole", "alone"]


class EachAlone:
    """Collates records of a loader whose batches are single records: a list of such batches.

    Args:
        collate_fn: Of the loader, for one record.

    Example:
        >>> EachAlone(float)([1, 2])
        [1.0, 2.0]
    """

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, records: Iterable[Any]) -> list[Any]:
        """One batch for each record."""
        return [self.collate_fn(record) for record in records]


def private_loader(loader: DataLoader[Any], sampler: PatientSampler) -> DataLoader[Any]:
    """A plain DataLoader with dataset, collate function and workers of the user's, and the draws of the sampler.

    Batch size, shuffling and ``drop_last`` have no meaning any more: the draws decide. Batches come in order.

    Args:
        loader: Any loader of a map-style dataset, also with ``batch_size=None`` and a sampler of lists, for a dataset
            that collates by itself. Where ``batch_size=None`` and each batch is one record, a private batch is a list
            of such batches (:class:`EachAlone`), since only the user knows how to join them.
        sampler: Over the records of ``loader.dataset``.

    Raises:
        PrivacyError: If the loader's records have no positions, or if its sampler repeats records, weighs them or
            leaves out some that ``sampler`` would draw.

    Warns:
        MemguardWarning: If a sampler of the user's own kind loses its say.

    Example:
        >>> sampler = PatientSampler([0, 0, 1], rates=1.0, steps=1, chunks=2, max_records=None, seed=bytes(8))
        >>> loader = DataLoader(torch.tensor([5, 6, 7]), batch_size=1, shuffle=True)
        >>> list(private_loader(loader, sampler))
        [tensor([5, 6]), tensor([7])]
    """
    reason = why_untrackable(loader)
    if reason:
        raise PrivacyError(
            reason,
            "patients must be drawn one by one, by an own coin each",
            "train with one torch DataLoader of a map-style dataset, one with __getitem__ and __len__",
        )
    n, expected = len(loader.dataset), len(sampler.owner_of_record)  # type: ignore[arg-type]
    if n != expected:
        raise PrivacyError(
            f"a dataset of {n} records, and patients of {expected}",
            "records would be given to the wrong patients",
            "give each record of this dataset its patient",
        )
    some = offered(loader)
    if some is not None and not np.isin(sampler.used, some).all():
        raise PrivacyError(
            f"the sampler of the loader offers {len(some)} of {n} records",
            "the private draws would bring back records that it leaves out",
            "train on torch.utils.data.Subset(dataset, indices) with indices that are public, and set drop_last=False",
        )
    workers: dict[str, Any] = {}
    if loader.num_workers > 0:
        workers = {
            "multiprocessing_context": loader.multiprocessing_context,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
        }
    device = getattr(loader, "pin_memory_device", "")
    if device:
        workers["pin_memory_device"] = device
    layout = _layout(loader)
    how: dict[str, Any]
    if layout == "whole":
        how = {"sampler": sampler, "batch_size": None, "collate_fn": loader.collate_fn}
    else:
        collate = EachAlone(loader.collate_fn) if layout == "alone" else loader.collate_fn
        how = {"batch_sampler": sampler, "collate_fn": collate}
    return DataLoader(
        loader.dataset,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        in_order=True,
        **how,
        **workers,
    )


def reader(loader: DataLoader[Any], *, once: bool = False) -> Callable[[Sequence[int]], Any]:
    """Reads a batch of chosen records in this process, collated as the loader does it.

    Random transforms draw as they would in a loader without workers.

    Args:
        loader: The user's loader, or the private one.
        once: Read each record from the dataset a single time and collate copies of it, so that a record is the same
            alone and in a batch though the dataset draws at random. Else nothing is kept.

    Returns:
        A function ``positions -> batch``. Where each batch is one record, one position gives that batch and several
        give the list of theirs.

    Example:
        >>> reader(DataLoader([5, 6, 7], batch_size=2))([2, 0])
        tensor([7, 5])
    """
    dataset: Any = loader.dataset
    collate: Any = loader.collate_fn
    layout = _layout(loader)
    if isinstance(collate, EachAlone):
        layout, collate = "alone", collate.collate_fn

    if once and layout != "whole":
        dataset = _ReadOnce(dataset)

    def read(positions: Sequence[int]) -> Any:
        wanted = [int(position) for position in positions]
        if layout == "whole":
            return collate(dataset[wanted])
        if layout == "alone":
            batches = [collate(dataset[position]) for position in wanted]
            return batches[0] if len(batches) == 1 else batches
        many = getattr(dataset, "__getitems__", None)
        return collate(many(wanted) if many else [dataset[position] for position in wanted])

    return read


class _ReadOnce:
    """A dataset whose records are read once; what is given out are copies, since a collate function may change them."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self._read = dataset, dict[int, Any]()

    def __getitem__(self, position: int) -> Any:
        if position not in self._read:
            many = getattr(self._dataset, "__getitems__", None)
            self._read[position] = many([position])[0] if many else self._dataset[position]
        return copy.deepcopy(self._read[position])


def offered(loader: DataLoader[Any]) -> _Ints | None:
    """Which records the sampler of a loader gives out in a pass; None if all.

    A sampler of an unknown kind is asked for one pass.

    Raises:
        PrivacyError: If it repeats records, weighs them, or gives no positions.

    Warns:
        MemguardWarning: If the sampler is of an unknown kind, whose order private draws replace.

    Example:
        >>> from torch.utils.data import SubsetRandomSampler
        >>> offered(DataLoader([5, 6, 7], sampler=SubsetRandomSampler([2, 0])))
        array([0, 2])
    """
    n = len(loader.dataset)  # type: ignore[arg-type]
    source = _innermost(loader.batch_sampler if loader.batch_sampler is not None else loader.sampler)
    if isinstance(source, PatientSampler):
        return None
    if isinstance(source, WeightedRandomSampler) or getattr(source, "replacement", False) is True:
        raise PrivacyError(
            f"the sampler is a {type(source).__name__}"
            + ("" if isinstance(source, WeightedRandomSampler) else " with replacement"),
            "some records are seen more often than others, and no rate is that of every patient",
            "leave sampler= out; a weight in the loss may depend on the record, not on the others of its batch",
        )
    if isinstance(source, SubsetRandomSampler) and _iterates_as(source, SubsetRandomSampler):
        return _which(np.asarray(list(source.indices), dtype=np.int64), n, type(source).__name__)
    if any(_iterates_as(source, kind) for kind in (SequentialSampler, RandomSampler, DistributedSampler)):
        # They give positions of what they were made for, which may be a part of the dataset.
        size = len(source.dataset if isinstance(source, DistributedSampler) else source.data_source)  # type: ignore[arg-type]
        return None if size == n else _which(np.arange(size), n, type(source).__name__)
    name = type(source).__name__
    warnings.warn(
        MemguardWarning(
            f"the sampler of the training loader is a {name}, and Poisson draws take its place",
            "its order, lengths and batch sizes are lost",
            "sort or pad inside collate_fn, where it depends on the records of one batch alone",
        ),
        stacklevel=3,
    )
    positions, largest = _one_pass(source, n)
    found = _which(positions, n, name)
    # A last batch that is dropped and the share of another process are not left out for a reason.
    share = _share(source)
    slack = share * largest if getattr(source, "drop_last", False) is True else share - 1
    return None if found is None or n - share * len(found) <= slack else found


def _innermost(source: Any) -> Any:
    """The sampler that chooses, inside of those that group and share out."""
    while True:
        inner = source.sampler if type(source) is BatchSampler else _wrapped(source)
        if inner is None:
            return source
        source = inner


def _wrapped(source: Any) -> Any:
    """The sampler that Lightning put into one for several processes; None in any other."""
    return getattr(source.dataset, "_sampler", None) if isinstance(source, DistributedSampler) else None


def _iterates_as(source: Any, kind: type) -> bool:
    return isinstance(source, kind) and type(source).__iter__ is kind.__iter__  # type: ignore[attr-defined]


def _share(source: Any) -> int:
    """Among how many processes a sampler, or the one inside of it, shares the records out."""
    inner = getattr(source, "sampler", None)
    counts = [getattr(each, "num_replicas", 1) for each in (source, inner)]
    return max(count if isinstance(count, int) else 1 for count in counts)


def _one_pass(source: Any, n: int) -> tuple[_Ints, int]:
    """What a sampler gives until it ends, or until it must have repeated itself; and the size of its largest batch."""
    found: list[_Ints] = []
    total = 0
    with forked_rng():
        for index in itertools.islice(iter(source), 2 * n + 2):
            positions = as_positions(index, n)
            if positions is None:
                raise PrivacyError(
                    f"the sampler gives {type(index).__name__}, not whole numbers",
                    "patients cannot be told before a batch is read",
                    "use a dataset whose __getitem__ takes positions 0 to len - 1",
                )
            found.append(positions)
            total += len(positions)
            if total > n:
                break
    return np.concatenate([*found, np.empty(0, np.int64)]), max(map(len, found), default=0)


def _which(positions: _Ints, n: int, name: str) -> _Ints | None:
    """The distinct positions, ascending; None if they are all."""
    found, times = np.unique(positions, return_counts=True)
    if len(found) and (found[0] < 0 or found[-1] >= n):
        raise PrivacyError(
            f"{name} gives position {found[0] if found[0] < 0 else found[-1]} in a dataset of {n} records",
            "patients cannot be told before a batch is read",
            "use a dataset whose __getitem__ takes positions 0 to len - 1",
        )
    if len(found) and times.max() > 1:
        raise PrivacyError(
            f"{name} gives record {found[times.argmax()]} more than once in a pass",
            "some records are seen more often than others, and no rate is that of every patient",
            "leave sampler= out",
        )
    return None if len(found) == n else found


def _layout(loader: DataLoader[Any]) -> _Layout:
    if loader.batch_sampler is not None:
        return "samples"
    source: Any = loader.sampler
    while (inner := _wrapped(source)) is not None:
        source = inner
    if isinstance(source, BatchSampler | PatientSampler):
        return "whole"
    if isinstance(source, SequentialSampler | RandomSampler | SubsetRandomSampler | DistributedSampler):
        return "alone"
    with forked_rng():
        first = next(iter(source), 0)
    many = isinstance(first, list | tuple) or (
        isinstance(first, np.ndarray | torch.Tensor) and first.ndim > 0
    )
    return "whole" if many else "alone"
