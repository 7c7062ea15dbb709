"""A loader that is the user's in every visible way, and whose batches carry the positions of their records.

The user's loader object is never touched. Lightning receives a copy of the same class (a subclass made on
the fly), with the same dataset, sampler and collate function; only its iteration goes through a shadow copy
in which the dataset hands out ``(index, sample)`` and the collate function keeps the indices beside the
batch. The indices are taken off again before anybody sees the batch, so workers, prefetching and
``in_order=False`` cannot separate them.
"""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

__all__ = ["Tagged", "Track", "track_loader", "why_untrackable"]

_HELD = 8  # batches remembered while they are on their way to a step; Lightning prefetches one
_clock = itertools.count(1)


class Tagged:
    """A batch on its way through the worker queue, with the indices of its records.

    Example:
        >>> Tagged([3, 1], "the batch").batch
        'the batch'
    """

    __slots__ = ("batch", "index", "problem")

    def __init__(self, index: Any, batch: Any, problem: str = "") -> None:
        self.index, self.batch, self.problem = index, batch, problem

    def pin_memory(self) -> Tagged:
        """Pin the user's batch as the loader would have done."""
        from torch.utils.data._utils.pin_memory import pin_memory

        return Tagged(self.index, pin_memory(self.batch), self.problem)  # type: ignore[no-untyped-call]


class _IndexedDataset:
    """Hands out ``(index, sample)``; everything else is the user's dataset, read and written through."""

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_memguard_dataset", dataset)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return index, self._memguard_dataset[index]

    @property
    def __getitems__(self) -> Callable[[list[Any]], Any] | None:
        many = getattr(self._memguard_dataset, "__getitems__", None)
        if not many:
            return None
        return lambda indices: Tagged(list(indices), many(indices))

    def __len__(self) -> int:
        return len(self._memguard_dataset)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # worker_init_fn may ask isinstance(worker_info.dataset, TheirDataset).
        return type(self._memguard_dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "_memguard_dataset":  # asked for while being unpickled
            raise AttributeError(name)
        return getattr(self._memguard_dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._memguard_dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _IndexedDataset, (self._memguard_dataset,)


class _IndexedCollate:
    """Calls the user's collate function on the samples alone and keeps the indices beside its result."""

    def __init__(self, collate_fn: Callable[[Any], Any], auto_collation: bool) -> None:
        self.collate_fn, self.auto_collation = collate_fn, auto_collation

    def __call__(self, data: Any) -> Tagged:
        if isinstance(data, Tagged):  # from __getitems__
            index, samples = data.index, data.batch
            problem = ""
            if hasattr(samples, "__len__") and len(samples) != len(index):
                problem = f"__getitems__ was asked for {len(index)} records and gave {len(samples)}"
            return Tagged(index, self.collate_fn(samples), problem)
        if self.auto_collation:
            return Tagged([i for i, _ in data], self.collate_fn([sample for _, sample in data]))
        index, sample = data
        return Tagged(index, self.collate_fn(sample))


class Track:
    """What one tracked loader knows: its original, its shadow, and the batches that are under way.

    Attributes:
        original: The loader that was handed to Lightning.
        active: False after :meth:`stop`; the tracked copy is then an ordinary loader.
        whole_batches: Whether the sampler hands lists of positions to the dataset (``batch_size=None``).
    """

    def __init__(self, original: DataLoader[Any]) -> None:
        self.original = original
        self.active = True
        self.whole_batches = False
        self._shadow: Any = None
        self._under_way: deque[tuple[int, Any, Any, str]] = deque(maxlen=_HELD)

    def stop(self) -> None:
        """Forget everything; the tracked copy iterates like the original from now on."""
        self.active = False
        self._shadow = None
        self._under_way.clear()

    def shadow(self, visible: DataLoader[Any]) -> Any:
        """The loader that really iterates, kept in step with the visible one."""
        if self._shadow is None:
            self._shadow = copy.copy(self.original)
        inside = self._shadow.__dict__
        keep = {name: inside.get(name) for name in ("_iterator", "next_iter_state")}
        inside.update({k: v for k, v in visible.__dict__.items() if k != "_memguard_track"})
        inside.update({name: value for name, value in keep.items() if name in self.original.__dict__})
        inside["dataset"] = _IndexedDataset(visible.dataset)
        inside["collate_fn"] = _IndexedCollate(visible.collate_fn, visible.batch_sampler is not None)
        return self._shadow

    def arrived(self, number: int, tagged: Tagged) -> None:
        """A batch leaves the loader."""
        self.whole_batches = self.original.batch_sampler is None and isinstance(tagged.index, list | tuple)
        self._under_way.append((number, tagged.batch, tagged.index, tagged.problem))

    def claim(self, batch: Any) -> tuple[Any, str] | None:
        """The indices of exactly this batch object; what is older from the same iterator is forgotten."""
        # Newest first: a collate function may fill one object again and again, and then holds the newest records.
        entries = list(self._under_way)
        for at in reversed(range(len(entries))):
            number, seen, index, problem = entries[at]
            if seen is batch:
                if at:
                    kept = [entry for i, entry in enumerate(entries) if i >= at or entry[0] != number]
                    self._under_way.clear()
                    self._under_way.extend(kept)
                return index, problem
        return None


class _Unwrapping(Iterator[Any]):
    """Takes the indices off each batch as it leaves."""

    def __init__(self, inner: Any, track: Track) -> None:
        self._memguard_inner, self._memguard_track = inner, track
        self._memguard_number = next(_clock)

    def __iter__(self) -> _Unwrapping:
        return self

    def __next__(self) -> Any:
        tagged = next(self._memguard_inner)
        if not isinstance(tagged, Tagged):
            return tagged
        if self._memguard_track.active:
            self._memguard_track.arrived(self._memguard_number, tagged)
        return tagged.batch

    def __len__(self) -> int:
        return len(self._memguard_inner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_memguard"):
            raise AttributeError(name)
        return getattr(self._memguard_inner, name)


def _iter(self: Any) -> Iterator[Any]:
    track = self.__dict__.get("_memguard_track")
    if track is None or not track.active:
        return iter(super(type(self), self).__iter__())
    return _Unwrapping(iter(track.shadow(self)), track)


def _get_iterator(self: Any) -> Any:
    track = self.__dict__.get("_memguard_track")
    if track is None or track._shadow is None:
        return self.__dict__.get("_iterator")
    return track._shadow.__dict__.get("_iterator")


def _set_iterator(self: Any, value: Any) -> None:
    track = self.__dict__.get("_memguard_track")
    if track is not None and track._shadow is not None:
        track._shadow.__dict__["_iterator"] = value
    self.__dict__["_iterator"] = value


def _through_shadow(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        track = self.__dict__.get("_memguard_track")
        if track is None or not track.active:
            return getattr(super(type(self), self), name)(*args)
        return getattr(track.shadow(self), name)(*args)

    method.__name__ = name
    return method


def track_loader(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A copy of a loader that looks the same and remembers which records it puts into which batch.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(torch.arange(6), batch_size=2)
        >>> tracked = track_loader(loader)
        >>> isinstance(tracked, DataLoader), tracked.dataset is loader.dataset
        (True, True)
        >>> batch = next(iter(tracked))
        >>> batch, tracked._memguard_track.claim(batch)[0]
        (tensor([0, 1]), [0, 1])
    """
    kind = type(loader)
    members: dict[str, Any] = {
        "__iter__": _iter,
        "_iterator": property(_get_iterator, _set_iterator),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    for name in ("state_dict", "load_state_dict"):  # torchdata's StatefulDataLoader
        if callable(getattr(kind, name, None)):
            members[name] = _through_shadow(name)
    view: DataLoader[Any] = object.__new__(type(kind.__name__, (kind,), members))
    view.__dict__.update(loader.__dict__)
    view.__dict__["_memguard_track"] = Track(loader)
    return view


def why_untrackable(loader: object) -> str:
    """Why the records of this loader cannot be told, or an empty string.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> why_untrackable(DataLoader([1, 2]))
        ''
        >>> why_untrackable([1, 2])
        'list is not a torch DataLoader'
    """
    kind = type(loader)
    if not isinstance(loader, DataLoader):
        return f"{kind.__name__} is not a torch DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return f"{type(loader.dataset).__name__} is an IterableDataset, its records have no positions"
    home = getattr(getattr(kind, "__iter__", None), "__module__", "")
    if not home.startswith(("torch.utils.data", "torchdata.stateful_dataloader", __name__)):
        return f"{kind.__name__} overrides __iter__ and may change batches on the way"
    return ""


def as_positions(index: Any, length: int | None) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Sampler output as int64 positions ``(B,)``; None if it is not made of whole numbers."""
    if isinstance(index, torch.Tensor):
        index = index.detach().cpu().numpy()
    elif isinstance(index, list) and index and isinstance(index[0], torch.Tensor):
        index = [int(i) for i in index]
    array = np.atleast_1d(np.asarray(index))
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        return None
    array = array.astype(np.int64)
    if length is not None and (array < 0).any():
        array = np.where(array < 0, array + length, array)
    return array
