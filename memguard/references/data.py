"""What references are trained on: the records of both sides in one numbering, and how they become batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from memguard.errors import ReferenceModelError

__all__ = ["TrainingData", "one_loader", "prepared"]

Ints = NDArray[np.int64]
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """N + M records, members first, and the settings of the loader that the audited model was trained with.

    Attributes:
        dataset: Map-style, of N + M records.
        patient: ``(N + M,)`` codes of patients.
        batch_size: Records a batch; ``None`` where the data set hands out whole batches.
        shuffle: Whether each epoch has another order.
        drop_last: Whether a last batch that is not full is left out.
        collate_fn: Makes a batch from records; ``None`` for that of torch.
        num_workers: Processes that load.
        pin_memory: As in a `torch.utils.data.DataLoader`.
        worker_init_fn: As there.
        multiprocessing_context: As there.
        datamodule: Of the audited model; only its hooks on batches are used. ``None`` for none.

    Raises:
        ReferenceModelError: If the data set has no positions, or not one patient for each record.

    Example:
        >>> data = TrainingData(dataset=[1.0, 2.0, 3.0, 4.0], patient=np.array([0, 0, 1, 2]), batch_size=2)
        >>> [batch.tolist() for batch in data.loader(np.array([0, 1, 3]), seed=0)]
        [[4.0, 2.0], [1.0]]
    """

    dataset: Any
    patient: Ints
    batch_size: int | None = 1
    shuffle: bool = True
    drop_last: bool = False
    collate_fn: Callable[[Any], Any] | None = None
    num_workers: int = 0
    pin_memory: bool = False
    worker_init_fn: Callable[[int], None] | None = None
    multiprocessing_context: Any = None
    datamodule: pl.LightningDataModule | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__getitem__"):
            raise ReferenceModelError(
                f"a data set of type {type(self.dataset).__name__}",
                "records without positions cannot be divided into halves by patient",
                "pass a map-style data set",
            )
        if np.shape(self.patient) != (len(self.dataset),):
            raise ReferenceModelError(
                f"{np.size(self.patient)} patients for {len(self.dataset)} records",
                "records would be given to the wrong half",
                "pass patient= with one code for each record, members first",
            )

    def __len__(self) -> int:
        return len(self.dataset)

    @classmethod
    def from_loaders(
        cls,
        train: DataLoader[Any],
        held_out: DataLoader[Any],
        patient: Ints,
        *,
        datamodule: pl.LightningDataModule | None = None,
    ) -> TrainingData:
        """Members and held-out records of two loaders; batches are made as the first one makes them.

        Args:
            train: With which the audited model was trained.
            held_out: Of patients that it never saw; only its data set is used.
            patient: ``(N + M,)`` codes.
            datamodule: Where they come from, if its hooks change batches.

        Raises:
            ReferenceModelError: If the loader draws its records in a way that cannot be repeated on a half.
        """
        for loader in (train, held_out):
            if not isinstance(loader, DataLoader):
                raise ReferenceModelError(
                    f"a loader of type {type(loader).__name__}",
                    "which records it draws cannot be told, and a reference must be trained on a half",
                    "pass TrainingData with the data set and its batch size",
                )
        batches: Any = train.batch_sampler  # also one that a person gave: the loader has no batch size then
        sampler = train.sampler if batches is None else getattr(batches, "sampler", None)
        plain = batches is None or type(batches) is BatchSampler
        if not plain or not (_all_once(sampler) or isinstance(sampler, SequentialSampler)):
            raise ReferenceModelError(
                f"a loader that draws with {type(sampler or train.batch_sampler).__name__}",
                "a reference must draw from its half as the audited model drew from its patients",
                "pass TrainingData with shuffle= as it comes closest, and name the difference beside the numbers",
            )
        return cls(
            dataset=ConcatDataset([train.dataset, held_out.dataset]),
            patient=np.asarray(patient),
            batch_size=None if batches is None else batches.batch_size,
            shuffle=bool(getattr(sampler, "shuffle", not isinstance(sampler, SequentialSampler))),
            drop_last=train.drop_last if batches is None else batches.drop_last,
            collate_fn=train.collate_fn,
            num_workers=train.num_workers,
            pin_memory=train.pin_memory,
            worker_init_fn=train.worker_init_fn,
            multiprocessing_context=train.multiprocessing_context,
            datamodule=datamodule,
        )

    @classmethod
    def from_datamodule(cls, datamodule: pl.LightningDataModule, patient: Ints) -> TrainingData:
        """Members are the training set of a datamodule, held-out records its validation set.

        Args:
            datamodule: Set up or not; its loaders are asked for once.
            patient: ``(N + M,)`` codes.

        Raises:
            ReferenceModelError: If it has several loaders for a side, or one that cannot be repeated on a half.
        """
        datamodule.prepare_data()
        datamodule.setup("fit")
        sides = [one_loader(datamodule.train_dataloader()), one_loader(datamodule.val_dataloader())]
        return cls.from_loaders(sides[0], sides[1], patient, datamodule=datamodule)

    def loader(self, rows: Ints, *, seed: int, workers: int | None = None) -> DataLoader[Any]:
        """The user's loader on some of the records, shuffled from a seed of its own."""
        n = self.num_workers if workers is None else workers
        return DataLoader(
            Subset(self.dataset, np.asarray(rows).tolist()),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            collate_fn=self.collate_fn,
            num_workers=n,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context if n else None,
            generator=torch.Generator().manual_seed(seed),
        )

    def hooks(self) -> pl.LightningDataModule | None:
        """A copy of the datamodule that has its hooks on batches and nothing else, ``None`` where it has none."""
        owner = type(self.datamodule)
        if self.datamodule is None or not any(
            getattr(owner, name) is not getattr(pl.LightningDataModule, name) for name in _HOOKS
        ):
            return None
        only = prepared(self.datamodule)
        # As if it had none: a reference is not validated, and Lightning would warn.
        object.__setattr__(only, "val_dataloader", MethodType(pl.LightningDataModule.val_dataloader, only))
        return only


def prepared(datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
    """A copy of a datamodule whose data are prepared and set up already; it keeps its hooks on batches."""
    only = copy.copy(datamodule)
    only.trainer = None
    for name in ("prepare_data", "setup", "teardown"):
        object.__setattr__(only, name, _nothing)
    return only


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Data are prepared and set up already."""


def _all_once(sampler: Any) -> bool:
    """Whether it draws every record once an epoch, as `shuffle=True` does."""
    return (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler._num_samples is None
    ) or type(sampler).__name__ == "DistributedSampler"


def one_loader(loaders: Any) -> DataLoader[Any]:
    """The loader of a side, which may stand in a list or a dict.

    Raises:
        ReferenceModelError: If there is not exactly one.
    """
    found = list(loaders.values()) if isinstance(loaders, dict) else loaders
    found = list(found) if isinstance(found, list | tuple) else [found]
    if len(found) != 1:
        raise ReferenceModelError(
            f"{len(found)} loaders for one side",
            "records of several loaders have no common numbering",
            "pass TrainingData with one data set",
        )
    loader: DataLoader[Any] = found[0]
    return loader
