"""Which records are in this batch: the positions travel with the batch from the loader to the step.

Installed in ``setup("fit")`` on two public methods of the run, on the instances only:
``trainer.strategy.process_dataloader`` (each loader is replaced by its tracked copy, see
:mod:`memguard.capture.loaders`) and ``trainer.precision_plugin.convert_input`` (the first thing that
Lightning does with a batch that goes into a step; here the batch *object* is looked up, so prefetched,
skipped or privately iterated batches cannot be mistaken for it).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from memguard.capture.loaders import Tagged, Track, as_positions, track_loader, why_untrackable
from memguard.capture.shadow import Shadows
from memguard.errors import IndexTrackingError

__all__ = ["IndexTracker", "Positions", "Stage"]

Positions = np.ndarray[Any, np.dtype[np.int64]]
Stage = Literal["train", "val"]
_NESTED, _MOST = 3, 64
RecordIds = str | Callable[[Any], Any] | None

_FIX = "pass record_ids=, a function (batch) -> positions, or the name of such an entry of the batch"


class IndexTracker:
    """Tells the positions of the records of each batch, in the dataset of its loader.

    Args:
        record_ids: None to track the loaders; or a function ``(batch) -> ids``; or the name (key or
            attribute) of an entry of the batch that holds one id per record. Whole numbers below the length
            of the dataset are positions; other ids are numbered in the order in which they are seen.
        train_loader: Which training loader to follow where there are several: a key or a number.

    Example:
        >>> tracker = IndexTracker(record_ids="row")
        >>> import torch
        >>> tracker.positions({"row": torch.tensor([4, 2])}, stage="train")
        array([4, 2])
    """

    def __init__(self, record_ids: RecordIds = None, *, train_loader: str | int | None = None) -> None:
        self.record_ids = record_ids
        self.train_loader = train_loader
        self._trainer: Any = None
        self._shadows = Shadows()
        self._tracks: weakref.WeakSet[Track] = weakref.WeakSet()
        self._reasons: dict[int, tuple[Any, str]] = {}
        self._current: dict[int, tuple[Any, str, tuple[Any, ...]]] = {}
        self._seen_ids: dict[str, dict[Any, int]] = {}
        self.arrivals = 0

    # -- install and restore ---

    def install(self, trainer: Any) -> None:
        """Begin to follow the loaders of a fit; call in ``setup("fit")``. A second call starts afresh."""
        self.restore()
        self._trainer = trainer
        strategy, precision = trainer.strategy, trainer.precision_plugin
        process, convert = strategy.process_dataloader, precision.convert_input

        def process_dataloader(dataloader: object) -> object:
            return self._follow(process(dataloader))

        def convert_input(data: Any) -> Any:
            self._arrive(data)
            return convert(data)

        self._shadows.put(strategy, "process_dataloader", process_dataloader)
        self._shadows.put(precision, "convert_input", convert_input)

    def restore(self) -> None:
        """Give the trainer back as it was: idempotent, for ``teardown`` and ``on_exception``."""
        self._shadows.restore()
        trainer, self._trainer = self._trainer, None
        for track in list(self._tracks):
            track.stop()
        if trainer is not None:
            for combined in _combined_loaders(trainer):
                flat = [_original(loader) for loader in combined.flattened]
                if any(a is not b for a, b in zip(flat, combined.flattened, strict=True)):
                    combined.flattened = flat
        self._tracks.clear()
        self._reasons.clear()
        self._current.clear()

    def _follow(self, loader: Any) -> Any:
        if self.record_ids is not None or self._trainer is None:
            return loader
        track = getattr(loader, "__dict__", {}).get("_memguard_track")
        if track is not None and track.active:  # another owner of a tracker follows it already
            self._tracks.add(track)
            return loader
        loader = _original(loader)
        reason = why_untrackable(loader)
        if reason:
            self._reasons[id(loader)] = (loader, reason)
            return loader
        tracked = track_loader(loader)
        self._tracks.add(tracked.__dict__["_memguard_track"])
        return tracked

    # -- per batch ---

    def announce(self, batch: Any, positions: Sequence[int]) -> None:
        """Say which training records a batch holds that did not come out of the loader, before it goes into a step.

        Every tracker that follows the same loader will know it, once the batch passes ``convert_input``.

        Raises:
            IndexTrackingError: If no training loader is followed.
        """
        name, loader = self._loader("train", 0)
        track = loader.__dict__.get("_memguard_track") if hasattr(loader, "__dict__") else None
        if track is None or not track.active:
            raise IndexTrackingError(
                f"train loader{name} is not followed", "records cannot be told apart", _FIX
            )
        track.arrived(0, Tagged(list(positions), batch))

    def _arrive(self, data: Any) -> None:
        self.arrivals += 1
        self._current.clear()
        if self.record_ids is not None:
            return
        self._claim(data, list(self._tracks), ())

    def _claim(self, part: Any, tracks: list[Track], path: tuple[Any, ...]) -> None:
        """Find the loader of a batch, or of the batches in what a CombinedLoader hands out."""
        for track in tracks:
            claimed = track.claim(part)
            if claimed is not None:
                self._current[id(track)] = (*claimed, path)
                return
        for key, inner in _parts(part) if len(path) < _NESTED else ():
            self._claim(inner, tracks, (*path, key))

    def part(self, batch: Any, *, stage: Stage, dataloader_idx: int = 0) -> Any:
        """What came out of the followed loader, in a batch that a CombinedLoader put together of several.

        Args:
            batch: The batch that is now in its step.
            stage: ``"train"`` or ``"val"``.
            dataloader_idx: Which validation loader.
        """
        loader = None if self.record_ids is not None else self._loader(stage, dataloader_idx)[1]
        track = getattr(loader, "__dict__", {}).get("_memguard_track")
        for key in self._current[id(track)][2] if id(track) in self._current else ():
            inner = dict(_parts(batch)).get(key)
            if inner is None:  # a hook of the user's made another batch of it
                return batch
            batch = inner
        return batch

    def positions(self, batch: Any, *, stage: Stage, dataloader_idx: int = 0) -> Positions:
        """Positions of the records of the batch that is now in its step.

        Args:
            batch: The batch as the step receives it; read only for ``record_ids``.
            stage: ``"train"`` or ``"val"``.
            dataloader_idx: Which validation loader.

        Returns:
            ``(B,)`` int64.

        Raises:
            IndexTrackingError: If the records are uncertain for any reason.
        """
        if self.record_ids is not None:
            return self._given(batch, stage)
        name, loader = self._loader(stage, dataloader_idx)
        track = loader.__dict__.get("_memguard_track") if hasattr(loader, "__dict__") else None
        if track is None or not track.active:
            reason = self._reasons.get(id(loader), (None, "the loader was made before memguard was set up"))[
                1
            ]
            raise IndexTrackingError(f"{stage} loader{name}: {reason}", "records cannot be told apart", _FIX)
        if id(track) not in self._current:
            raise IndexTrackingError(
                f"the {stage} step ran on a batch that did not come out of loader{name}",
                "a loss would be given to the wrong record",
                _FIX,
            )
        index, problem, _ = self._current[id(track)]
        if problem:
            raise IndexTrackingError(problem, "a loss would be given to the wrong record", _FIX)
        length = _length(loader.dataset)
        positions = as_positions(index, length)
        if positions is None:
            raise IndexTrackingError(
                f"the sampler of {stage} loader{name} gives {type(index).__name__}, not whole numbers",
                "they are not positions in the dataset",
                _FIX,
            )
        if length is not None and positions.size and int(positions.max()) >= length:
            raise IndexTrackingError(
                f"position {int(positions.max())} in a dataset of {length} records",
                "the dataset changed its length while it was read",
                _FIX,
            )
        return positions

    def _given(self, batch: Any, stage: Stage) -> Positions:
        source = self.record_ids
        if callable(source):
            try:
                ids = source(batch)
            except Exception as error:
                raise IndexTrackingError(
                    f"the function record_ids failed with {error!r}", "records cannot be told apart", _FIX
                ) from error
        else:
            assert source is not None
            ids = entry_of(batch, source)
            if ids is None:
                raise IndexTrackingError(
                    f"the batch has no entry {source!r}", "records cannot be told apart", _FIX
                )
        length = self._known_length(stage)
        positions = as_positions(ids, length)
        if positions is not None and stage not in self._seen_ids and _within(positions, length):
            return positions
        if (
            length is not None
        ):  # such an id cannot be read again, and would be taken for another record's position
            raise IndexTrackingError(
                f"record_ids gives ids that are not positions in the {stage} dataset of {length} records",
                "the losses that a look measures would belong to other records",
                "give for each record of the batch the index that the dataset's __getitem__ takes; "
                "patients are told by record_to_patient=",
            )
        known = self._seen_ids.setdefault(stage, {})
        values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return np.asarray([known.setdefault(value, len(known)) for value in values], dtype=np.int64)

    # -- loaders ---

    def verify(self, stage: Stage = "train") -> None:
        """Refuse now, not at the first step, where a loader cannot be followed.

        Raises:
            IndexTrackingError: With the reason.
        """
        if self.record_ids is None and self._trainer is not None:
            for at in range(1 if stage == "train" else len(self._loaders(stage))):
                name, loader = self._loader(stage, at)
                if "_memguard_track" not in getattr(loader, "__dict__", {}):
                    reason = self._reasons.get(id(loader), (None, "the loader is not a torch DataLoader"))[1]
                    stream = "IterableDataset" in reason
                    raise IndexTrackingError(
                        f"{stage} loader{name}: {reason}",
                        "records cannot be told apart",
                        "use a map-style dataset, with __getitem__ and __len__" if stream else _FIX,
                    )

    def dataset(self, stage: Stage, dataloader_idx: int = 0) -> Any:
        """The dataset of the followed loader."""
        return getattr(self._loader(stage, dataloader_idx)[1], "dataset", None)

    def loader(self, stage: Stage, dataloader_idx: int = 0) -> Any:
        """The followed loader, as the user gave it (Lightning's own changes included)."""
        return _original(self._loader(stage, dataloader_idx)[1])

    def whole_batches(self, stage: Stage, dataloader_idx: int = 0) -> bool:
        """Whether the followed dataset is asked for lists of positions and gives batches."""
        track = self._loader(stage, dataloader_idx)[1].__dict__.get("_memguard_track")
        return track is not None and track.whole_batches

    def n_records(self, stage: Stage, dataloader_idx: int = 0) -> int:
        """How many records the followed dataset has; with ids of another kind, how many were seen so far."""
        if stage in self._seen_ids:
            return len(self._seen_ids[stage])
        length = _length(self.dataset(stage, dataloader_idx))
        if length is None:
            raise IndexTrackingError(f"the {stage} dataset has no length", "coverage cannot be told", _FIX)
        return length

    def n_loaders(self, stage: Stage) -> int:
        """How many loaders the stage has."""
        return len(self._loaders(stage))

    @property
    def route(self) -> str:
        """How records are told apart, for the report."""
        if self.record_ids is None:
            return "dataset positions"
        return (
            f"batch entry {self.record_ids!r}" if isinstance(self.record_ids, str) else "record_ids function"
        )

    def _known_length(self, stage: Stage) -> int | None:
        try:
            return _length(self.dataset(stage))
        except IndexTrackingError:
            return None

    def _loaders(self, stage: Stage) -> list[tuple[str, Any]]:
        trainer = self._trainer
        loaders = None
        if trainer is not None:
            loaders = trainer.train_dataloader if stage == "train" else trainer.val_dataloaders
        return _named(loaders)

    def _loader(self, stage: Stage, dataloader_idx: int) -> tuple[str, Any]:
        loaders = self._loaders(stage)
        if not loaders:
            raise IndexTrackingError(f"there is no {stage} loader", "no record is known", "fit with one")
        if stage == "val":
            at = dataloader_idx if dataloader_idx < len(loaders) else 0
            return ("" if len(loaders) == 1 else f" {at}"), loaders[at][1]
        if len(loaders) == 1:
            return "", loaders[0][1]
        for at, (name, loader) in enumerate(loaders):
            if self.train_loader is not None and self.train_loader in (name, at):
                return f" {name}", loader
        raise IndexTrackingError(
            f"there are {len(loaders)} training loaders ({', '.join(name for name, _ in loaders)})",
            "which of them holds the records that the loss belongs to cannot be told",
            "pass train_loader= with the name or number of one",
        )


def _within(positions: Positions, length: int | None) -> bool:
    return not positions.size or (positions.min() >= 0 and (length is None or bool(positions.max() < length)))


def _original(loader: Any) -> Any:
    track = getattr(loader, "__dict__", {}).get("_memguard_track")
    return loader if track is None else track.original


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _parts(data: Any) -> Sequence[tuple[Any, Any]]:
    if isinstance(data, Mapping):
        return list(data.items())[:_MOST]
    return list(enumerate(data[:_MOST])) if isinstance(data, list | tuple) else ()


def _named(loaders: Any, path: str = "") -> list[tuple[str, Any]]:
    """Single loaders with their path in what the user gave: ``a``, ``0``, ``a.1``."""
    if loaders is None:
        return []
    if type(loaders).__name__ == "CombinedLoader":
        return _named(loaders.iterables, path)
    items: list[tuple[Any, Any]]
    if isinstance(loaders, Mapping):
        items = list(loaders.items())
    elif isinstance(loaders, list | tuple):
        items = list(enumerate(loaders))
    else:
        return [(path or "0", loaders)]
    return [found for key, part in items for found in _named(part, f"{path}.{key}" if path else str(key))]


def _combined_loaders(trainer: Any) -> list[Any]:
    loop = trainer.fit_loop
    found = [
        getattr(loop, "_combined_loader", None),
        getattr(loop.epoch_loop.val_loop, "_combined_loader", None),
    ]
    return [combined for combined in found if combined is not None]


def entry_of(batch: Any, name: str) -> Any:
    """An entry of a batch by key or attribute; None if there is none.

    Example:
        >>> entry_of({"subject_id": [7, 8]}, "subject_id")
        [7, 8]
    """
    value = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
