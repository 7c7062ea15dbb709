"""Canaries in the training loader of a datamodule, and nowhere else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.model_helpers import is_overridden
from numpy.typing import NDArray
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from memguard.callbacks.canary_items import CanaryItems, MakeItem, WithCanaries, contains_canaries, item_maker
from memguard.errors import DataError, MemguardWarning
from memguard.records.canaries import Canaries, FeatureCanaries
from memguard.records.patients import RecordToPatient, resolve_patients

__all__ = ["PlantedCanaries"]

_FORWARDED = (
    "prepare_data",
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
)
_FIRST_ID = -(1 << 40)  # canaries count down from here, far from the ids of any hospital
_HOW = "pass make_loader= with a function (dataset, loader) -> loader that reads the dataset as the loader read its own"


class PlantedCanaries(pl.LightningDataModule):
    """A datamodule whose training loader also gives the canaries that the coins included.

    Everything else is the user's: batch size, order, collate function, workers, hooks, the validation, test and
    prediction loaders. Neither the user's datamodule nor its data sets are changed; outside of this wrapper there are
    no canaries, and a loader for testing or prediction that holds some is refused. Each canary is a patient of its own,
    so `LeakageMonitor` and `DPSGD` count it as one. Which canaries were included is written to
    ``dirpath/canaries.npz``, for the owner alone, when a fit is set up.

    Args:
        datamodule: The user's.
        canaries: From `memguard.records.make_canaries` or `make_feature_canaries`, in the tokens or features of the
            items.
        make_item: From a canary (its codes ``(T,)``, or features and label) and its patient id to an item of the data
            set. Not needed where an item is a tensor of codes, a pair of features and label, or a dictionary or
            dataclass whose other entries are ids, masks or copies of the codes.
        field: The entry of an item that holds the codes, where its name does not tell; of a table, ``(features,
            label)``.
        pad: The token that fills short sequences, where all items have one length.
        record_to_patient: Patients of the user's records, as `LeakageMonitor` takes them; not the name of a batch
            entry.
        make_loader: From the data set with canaries and the user's loader to a loader, where that is not a plain one.
        dirpath: Directory of the file; ``memguard`` in the Trainer's root directory where not given.

    Attributes:
        memguard_canaries: True, the mark of data that must not be delivered.
        canaries: As given; ``canaries.included`` says which are trained on.
        path: The file, once it is written.

    Raises:
        DataError: Items, loaders or ids that canaries cannot be given; from `train_dataloader`.

    Guarantees:
        Training sees each included canary as often as any record of its loader, and no other canary. Its numbers are
        about this run: a model that is trained anew without canaries for delivery has other weights.

    Example:
        >>> from memguard.records import Ragged, make_canaries
        >>> import torch
        >>> codes = torch.randint(1, 30, (64, 12), generator=torch.Generator().manual_seed(0))
        >>> records = torch.utils.data.Subset(list(codes), range(64))
        >>> data = pl.LightningDataModule.from_datasets(train_dataset=records, batch_size=16)
        >>> canaries = make_canaries(Ragged.from_padded(codes.numpy()), 20)
        >>> planted = PlantedCanaries(data, canaries)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # outside of a fit it says that there are canaries inside
        ...     loader = planted.train_dataloader()
        >>> len(loader.dataset) - int(canaries.included.sum()), len(data.train_dataloader().dataset)
        (64, 64)
    """

    memguard_canaries = True

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        canaries: Canaries | FeatureCanaries,
        *,
        make_item: MakeItem | None = None,
        field: str | tuple[str, str] | None = None,
        pad: int | None = None,
        record_to_patient: RecordToPatient = "auto",
        make_loader: Callable[[Dataset[Any], Any], DataLoader[Any]] | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__()
        if contains_canaries(datamodule):
            raise DataError(
                "a datamodule that holds canaries already",
                "nobody could tell which were included",
                "wrap the user's own datamodule once",
            )
        self.datamodule, self.canaries = datamodule, canaries
        self.make_item, self.field, self.pad = make_item, field, pad
        self.record_to_patient, self.make_loader = record_to_patient, make_loader
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.path: Path | None = None
        self._ahead: tuple[Any] | None = None
        self._was: Any = datamodule.trainer
        self.prepare_data_per_node = datamodule.prepare_data_per_node
        self.allow_zero_length_dataloader_with_multiple_devices = (
            datamodule.allow_zero_length_dataloader_with_multiple_devices
        )
        if datamodule.hparams:
            self.save_hyperparameters(
                dict(datamodule.hparams), logger=getattr(datamodule, "_log_hyperparams", False)
            )
        for name in _FORWARDED:  # what the user does not have must not seem to be there
            if is_overridden(name, datamodule):
                setattr(self, name, partial(self._forward, name))

    # -- what Lightning calls ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Set up the user's datamodule, and write down which canaries are included.

        Raises:
            DataError: Items, loaders or ids that canaries cannot be given.
        """
        self._forward("setup", stage)
        if stage == "fit":
            # Refused here and not while the Trainer asks for loaders: Lightning changes torch's loader classes for that
            # time and leaves them changed after an error. The user's loader is asked for once, and used below.
            self._ahead = None
            self._ahead = (self._given(),)
            self._together(_alone(self._ahead[0]))
            home = self.dirpath
            if home is None:
                root = self.trainer.default_root_dir if self.trainer is not None else "."
                home = Path(root) / "memguard"
            self.path = home / "canaries.npz"
            if self.trainer is None or self.trainer.is_global_zero:
                self.canaries.save(self.path)

    def teardown(self, stage: str) -> None:
        """Leave the user's datamodule to its own Trainer."""
        self._forward("teardown", stage)
        self.datamodule.trainer = self._was

    def on_exception(self, exception: BaseException) -> None:
        """Pass it on."""
        self.datamodule.on_exception(exception)

    def state_dict(self) -> dict[str, Any]:
        """Of the user's datamodule."""
        return self.datamodule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the user's datamodule."""
        self.datamodule.load_state_dict(state_dict)

    def train_dataloader(self) -> Any:
        """The user's training loader with the included canaries.

        Raises:
            DataError: Items, loaders or ids that canaries cannot be given.
        """
        given = self._given()
        loader = _alone(given)
        together = self._together(loader)
        made = (self.make_loader or _like)(together, loader)
        if self.trainer is None or self.trainer.state.fn != "fit":
            warnings.warn(
                MemguardWarning(
                    f"{len(together.canary_rows)} canaries in the training loader of {type(self.datamodule).__name__}",
                    "outside of a fit they have no business",
                    "ask the user's own datamodule, which has none",
                ),
                stacklevel=2,
            )
        if isinstance(given, Mapping):
            return dict.fromkeys(given, made)
        return [made] if isinstance(given, list | tuple) else made

    # -- for an audit --------------------------------------------------------------------------------------

    def items(self) -> CanaryItems:
        """All m canaries, included or not, as items of the user's kind: what a model is asked about.

        They carry ids of their own and belong to no loader.
        """
        dataset = self._map_style(_alone(self._forward("train_dataloader")))
        return CanaryItems(
            self.canaries,
            np.arange(len(self.canaries)),
            self._maker(dataset),
            self._ids(dataset, len(self.canaries))[1],
        )

    # -- inside --------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "datamodule" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["datamodule"], name)

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.trainer is not None:
            self.datamodule.trainer = self.trainer
        found = getattr(self.datamodule, name)(*args, **kwargs)
        if name in ("val_dataloader", "test_dataloader", "predict_dataloader") and contains_canaries(found):
            raise DataError(
                f"canaries in {name}",
                "they belong in training alone and must not be delivered",
                "let it read the user's own data",
            )
        return found

    def _given(self) -> Any:
        """The user's training loader: the one that was looked at during setup, once, or a new one."""
        ahead, self._ahead = self._ahead, None
        return self._forward("train_dataloader") if ahead is None else ahead[0]

    def _together(self, loader: Any) -> WithCanaries:
        """The user's data set with the included canaries; checks all that can be refused."""
        if contains_canaries(loader):
            raise DataError(
                "a training loader that holds canaries already", "they would be counted twice", "wrap once"
            )
        dataset = self._map_style(loader)
        if self.make_loader is None:
            _refuse(loader)
        included = np.flatnonzero(self.canaries.included)
        ids, theirs = self._ids(dataset, len(included))
        items = CanaryItems(self.canaries, included, self._maker(dataset), theirs)
        return WithCanaries(dataset, items, ids)

    def _maker(self, dataset: Any) -> MakeItem:
        return self.make_item or item_maker(dataset, self.canaries, field=self.field, pad=self.pad)

    def _map_style(self, loader: Any) -> Any:
        if not isinstance(loader, DataLoader):
            raise DataError(
                f"training data of type {type(loader).__name__}, not one DataLoader",
                "it is not certain where canaries belong",
                "return one DataLoader, of a torch.utils.data.ConcatDataset for several data sets",
            )
        if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
            raise DataError(
                f"a {type(loader.dataset).__name__} without positions",
                "a canary could not be drawn as often as any other record",
                "use a map-style dataset",
            )
        return loader.dataset

    def _ids(self, dataset: Any, n: int) -> tuple[NDArray[Any] | None, list[Any]]:
        """Patient ids of all records, or None without ids, and those of the canaries."""
        if isinstance(self.record_to_patient, str) and self.record_to_patient != "auto":
            raise DataError(
                f"record_to_patient={self.record_to_patient!r}, an entry of the batch",
                "canaries need ids of their own before there is a batch",
                "pass one id for each record, or a function of the position",
            )
        patients = resolve_patients(dataset, len(dataset), self.record_to_patient)
        if patients.unit == "record":
            return None, [_FIRST_ID - i for i in range(n)]
        if patients.ids.dtype.kind in "iu":
            theirs: list[Any] = [_FIRST_ID - i for i in range(n)]
            joined = np.concatenate([patients.ids[patients.code], np.asarray(theirs, dtype=np.int64)])
        else:
            theirs = [f"memguard-canary-{i}" for i in range(n)]
            joined = np.empty(len(patients) + n, dtype=object)
            joined[:] = [*patients.ids[patients.code].tolist(), *theirs]
        if np.isin(patients.ids, np.array(theirs, dtype=patients.ids.dtype)).any():
            raise DataError(
                "a patient with the id of a canary",
                "a real patient's losses would go to a canary",
                "give the patients other ids",
            )
        return joined, theirs


def _alone(loaders: Any) -> Any:
    """The one loader of a collection of one."""
    if isinstance(loaders, Mapping | list | tuple) and len(loaders) == 1:
        return next(iter(loaders.values() if isinstance(loaders, Mapping) else loaders))
    return loaders


def _refuse(loader: DataLoader[Any]) -> None:
    """Refuse a loader whose draws a plain one cannot repeat."""
    sampler, batches = loader.sampler, loader.batch_sampler
    in_order = type(sampler) is SequentialSampler
    at_random = type(sampler) is RandomSampler and sampler._num_samples is None and not sampler.replacement
    plain = type(loader) is DataLoader and type(batches) in (BatchSampler, type(None))
    if not (plain and (in_order or at_random)):
        parts = " with a ".join(
            type(part).__name__ for part in (loader, sampler, batches) if part is not None
        )
        raise DataError(f"a {parts}", "it is not certain how canaries would be drawn", _HOW)


def _like(dataset: Dataset[Any], loader: DataLoader[Any]) -> DataLoader[Any]:
    """A plain loader of another data set, drawn, batched and worked on as the user's is."""
    sampler = loader.sampler
    drawn: Any = (
        RandomSampler(dataset, generator=sampler.generator)  # type: ignore[arg-type]
        if isinstance(sampler, RandomSampler)
        else SequentialSampler(dataset)  # type: ignore[arg-type]
    )
    names = (
        *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context"),
        *("generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
    )
    settings: dict[str, Any] = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    if loader.batch_sampler is not None:
        settings["drop_last"] = loader.drop_last
    return DataLoader(dataset, batch_size=loader.batch_size, sampler=drawn, **settings)
