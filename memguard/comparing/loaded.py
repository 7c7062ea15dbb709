"""The data of a study: both sides, and the loaders on part of them with which each model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from memguard.errors import DataError
from memguard.references.data import TrainingData, one_loader, prepared

__all__ = ["Loaded"]

Ints = NDArray[np.int64]


class Loaded:
    """Loaders of both sides, asked for once.

    Args:
        data: A LightningDataModule, or a pair of loaders ``(train, held out)``.

    Raises:
        DataError: If it is neither.
        ReferenceModelError: If a side has not exactly one loader.

    Example:
        >>> train, held_out = DataLoader([1.0, 2.0, 3.0]), DataLoader([4.0, 5.0])
        >>> loaded = Loaded((train, held_out))
        >>> loaded.train.dataset, loaded.held_out.dataset
        ([1.0, 2.0, 3.0], [4.0, 5.0])
    """

    def __init__(self, data: Any) -> None:
        self.datamodule = data if isinstance(data, pl.LightningDataModule) else None
        if self.datamodule is not None:
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
            sides: Sequence[Any] = (self.datamodule.train_dataloader(), self.datamodule.val_dataloader())
        else:
            sides = data if isinstance(data, tuple | list) else ()
        found = [one_loader(side) for side in sides]
        if len(found) != 2 or not all(isinstance(one, DataLoader) for one in found):
            raise DataError(
                f"data of type {type(data).__name__} without one training and one validation loader",
                "arms are trained on part of the one side and judged on part of the other",
                "pass a LightningDataModule with one loader for each side, or a pair of loaders (train, held out)",
            )
        self.train, self.held_out = found

    def whole(self) -> Any:
        """Both sides in full, as `in_a_run` takes them."""
        return self._as_given(self.train, self.held_out)

    def part(self, patient: Ints, rows: Ints, held_out_rows: Ints, *, seed: int, named: bool = False) -> Any:
        """Loaders on some of the records.

        Args:
            patient: ``(N + M,)`` codes.
            rows: Training records to train on.
            held_out_rows: Held-out records to validate on.
            seed: Of the order of the training records.
            named: Whether callbacks find the patients of the study at the data sets, which do not tell them alone.
        """
        train = self.training_data(patient).loader(rows, seed=seed)
        held_out = self.held_out_part(held_out_rows)
        if named:
            n_training = len(self.train.dataset)  # type: ignore[arg-type]
            for loader, whose in ((train, patient[rows]), (held_out, patient[n_training + held_out_rows])):
                loader.dataset.patient_ids = whose  # type: ignore[attr-defined]
        return self._as_given(train, held_out)

    def held_out_part(self, rows: Ints) -> DataLoader[Any]:
        """The user's validation loader on some of its records, in order."""
        loader = self.held_out
        return DataLoader(
            Subset(loader.dataset, np.asarray(rows).tolist()),
            batch_size=loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1),
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
        )

    def training_data(self, patient: Ints) -> TrainingData:
        """For a fingerprint of what is trained on."""
        return TrainingData.from_loaders(self.train, self.held_out, patient)

    def _as_given(self, train: DataLoader[Any], held_out: DataLoader[Any]) -> Any:
        if self.datamodule is None:
            return train, held_out
        only = prepared(self.datamodule)
        object.__setattr__(only, "train_dataloader", lambda: train)
        object.__setattr__(only, "val_dataloader", lambda: held_out)
        return only
