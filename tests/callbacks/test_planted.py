"""Canaries reach training and nothing else, each as a patient of its own; the user's data stay as they were."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from memguard import LeakageMonitor
from memguard.attacks import auc, epsilon_one_run, exposure
from memguard.callbacks.canary_items import contains_canaries
from memguard.callbacks.planted import PlantedCanaries
from memguard.errors import DataError, MemguardWarning
from memguard.records import (
    Canaries,
    FeatureCanaries,
    Ragged,
    make_canaries,
    make_feature_canaries,
    resolve_patients,
)
from tests.callbacks._runs import VOCABULARY, Forecaster, Visits, trainer


class Data(pl.LightningDataModule):
    """The user's: items of fixed width, hooks of its own, nothing of canaries."""

    def __init__(self, n=120, held_out=120, **kwargs: Any) -> None:
        super().__init__()
        self.train, self.held = Visits(n, 1), Visits(held_out, 2, first_patient=10_000)
        self.kwargs = kwargs
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append("setup " + stage)

    def teardown(self, stage: str) -> None:
        self.calls.append("teardown " + stage)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, **{"batch_size": 32, "shuffle": True, **self.kwargs})

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held, batch_size=64)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append("after transfer")
        return batch


def _ragged(data: Data) -> Ragged:
    codes = data.train.codes.numpy()
    return Ragged.from_padded(codes, codes != 0)


def _planted(
    data: Data, m: int = 40, n_alternatives: int = 15, seed: int = 0, **kwargs: Any
) -> PlantedCanaries:
    canaries = make_canaries(_ragged(data), m, n_alternatives=n_alternatives, seed=seed)
    return PlantedCanaries(data, canaries, pad=0, **kwargs)


def _loader(planted: PlantedCanaries) -> Any:
    with pytest.warns(MemguardWarning, match="outside of a fit"):
        return planted.train_dataloader()


def _losses(module: Forecaster, codes: Ragged) -> np.ndarray:
    module.eval()
    with torch.no_grad():
        out = []
        for i in range(len(codes)):
            row = torch.from_numpy(codes[i].astype(np.int64))[None]
            logits = module.out(module.rnn(module.embed(row[:, :-1]))[0])
            out.append(float(F.cross_entropy(logits.transpose(1, 2), row[:, 1:], reduction="sum")))
    return np.array(out)


def test_a_fit_with_a_monitor_and_the_audit_after_it(tmp_path):
    pl.seed_everything(0, verbose=False)
    data = Data()
    before = copy.deepcopy(data.train.codes), data.train.patient_ids.copy()
    planted = _planted(data, dirpath=tmp_path / "owner")
    k = int(planted.canaries.included.sum())
    monitor, module = LeakageMonitor(dirpath=tmp_path / "watch"), Forecaster(dropout=0.0, lr=1e-2)
    run = trainer(tmp_path, monitor, epochs=30)
    run.fit(module, datamodule=planted)

    # The monitor saw each included canary as one more patient
    assert monitor.report is not None
    assert len(run.train_dataloader.dataset) == 120 + k
    assert len(resolve_patients(run.train_dataloader.dataset, 120 + k).ids) == 120 + k
    assert len(run.val_dataloaders.dataset) == 120
    # The user's own is as it was
    assert torch.equal(data.train.codes, before[0]) and np.array_equal(data.train.patient_ids, before[1])
    assert data.trainer is None and not contains_canaries(data.train_dataloader())
    assert {"prepare", "setup fit", "teardown fit", "after transfer"} <= set(data.calls)
    # What an audit reads: the file alone
    assert (
        planted.path == tmp_path / "owner" / "canaries.npz" and planted.path.stat().st_mode & 0o777 == 0o600
    )
    kept = Canaries.load(planted.path)
    loss, other = _losses(module, kept.sequences), _losses(module, kept.alternatives())
    scores = kept.scores(loss, other)
    assert auc(scores, kept.included).value > 0.9
    bits = exposure(loss, other.reshape(40, 15), space=kept.space).value
    assert bits[kept.included].mean() > 3 and bits[~kept.included].mean() < 2
    assert epsilon_one_run(scores, kept.included, delta=1e-5).epsilon > 0.5


def test_training_and_canaries_alone():
    planted = _planted(Data())
    loader = _loader(planted)
    k = int(planted.canaries.included.sum())
    assert loader.dataset.canary_rows.tolist() == list(range(120, 120 + k))
    rows = np.flatnonzero(planted.canaries.included)
    for place, i in zip(loader.dataset.canary_rows, rows, strict=True):
        item, sequence = loader.dataset[int(place)]["codes"], planted.canaries.sequences[i]
        assert item.dtype == torch.int64 and item.shape == (14,)
        assert item[: len(sequence)].tolist() == sequence.tolist() and not item[len(sequence) :].any()
    drawn = torch.cat([batch["codes"] for batch in loader])
    assert len(drawn) == 120 + k and len(loader) == -(-(120 + k) // 32)
    assert (
        contains_canaries(loader)
        and contains_canaries([Subset(loader.dataset, [0])])
        and contains_canaries(planted)
    )
    assert not contains_canaries(planted.val_dataloader())
    left_out = {planted.canaries.sequences[i].tobytes() for i in np.flatnonzero(~planted.canaries.included)}
    assert not any(row[row > 0].numpy().astype(np.int32).tobytes() in left_out for row in drawn)


def test_the_loader_keeps_its_ways():
    def collate(items):
        return torch.stack([item["codes"] for item in items])

    def worker(number):
        return None

    generator = torch.Generator().manual_seed(5)
    own = Data(batch_size=7, collate_fn=collate, drop_last=True, worker_init_fn=worker, generator=generator)
    made = _loader(_planted(own))
    assert (made.batch_size, made.drop_last, made.collate_fn, made.worker_init_fn) == (
        7,
        True,
        collate,
        worker,
    )
    assert isinstance(made.sampler, RandomSampler) and made.sampler.generator is generator
    assert made.generator is generator
    ordered = _loader(_planted(Data(shuffle=False)))
    assert isinstance(ordered.sampler, SequentialSampler)
    torch.testing.assert_close(next(iter(ordered))["codes"], ordered.dataset.datasets[0].codes[:32])


def test_what_the_user_does_not_have_does_not_appear(tmp_path):
    class Bare(Data):
        val_dataloader = pl.LightningDataModule.val_dataloader

    planted = PlantedCanaries(
        Bare(), make_canaries(_ragged(Data()), 10, n_alternatives=3), pad=0, dirpath=tmp_path
    )
    run = trainer(tmp_path, epochs=1)
    run.fit(Forecaster(), datamodule=planted)
    assert run.val_dataloaders is None and planted.held is planted.datamodule.held
    with pytest.raises(AttributeError, match="nothing"):
        _ = planted.nothing


def test_testing_and_prediction_are_refused_where_there_are_canaries(tmp_path):
    class Careless(Data):
        def test_dataloader(self):
            return [DataLoader(Subset(self.kept.dataset, range(4)))]

        predict_dataloader = test_dataloader
        val_dataloader = test_dataloader

    planted = _planted(Careless(), dirpath=tmp_path)
    planted.datamodule.kept = _loader(planted)
    for name in ("test_dataloader", "predict_dataloader", "val_dataloader"):
        with pytest.raises(DataError, match=f"canaries in {name}"):
            getattr(planted, name)()
    with pytest.raises(DataError, match="holds canaries already"):
        PlantedCanaries(planted, planted.canaries)


def test_the_file_of_another_run_is_not_lost(tmp_path):
    planted = _planted(Data(), dirpath=tmp_path)
    planted.setup("fit")
    planted.setup("fit")
    with pytest.raises(DataError, match="other canaries"):
        _planted(Data(), dirpath=tmp_path, seed=1).setup("fit")
    _planted(Data(), dirpath=tmp_path, seed=1).setup("validate")


class Sample(NamedTuple):
    tokens: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    subject_id: int


@dataclasses.dataclass(frozen=True)
class Visit:
    code: np.ndarray
    note: None
    patient_id: torch.Tensor


class Items(Dataset):
    def __init__(self, make):
        codes = Data().train.codes
        self.items = [make(row[row > 0], i) for i, row in enumerate(codes)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Other(pl.LightningDataModule):
    def __init__(self, dataset, **kwargs):
        super().__init__()
        self.dataset_of_mine, self.kwargs = dataset, kwargs

    def train_dataloader(self):
        return DataLoader(self.dataset_of_mine, **self.kwargs)


CANARIES = make_canaries(_ragged(Data()), 10, n_alternatives=3, seed=4)


def _items(make, canaries=CANARIES, **kwargs):
    planted = PlantedCanaries(Other(Items(make)), canaries, **kwargs)
    return planted.items()


def test_items_of_many_forms():
    tensor = _items(lambda row, i: row.to(torch.int32))
    assert tensor[3].dtype == torch.int32 and tensor[3].tolist() == CANARIES.sequences[3].tolist()
    assert len(tensor) == 10  # the left-out ones too, for asking the model
    array = _items(lambda row, i: row.numpy())
    assert isinstance(array[0], np.ndarray)
    entry = _items(
        lambda row, i: {"events": row, "labels": row.clone(), "mask": torch.ones_like(row)}, field="events"
    )
    assert entry[1]["labels"].tolist() == entry[1]["events"].tolist() == CANARIES.sequences[1].tolist()
    assert entry[1]["mask"].tolist() == [1] * len(CANARIES.sequences[1])
    named = _items(lambda row, i: Sample(row, torch.ones_like(row, dtype=torch.bool), row, i))
    assert isinstance(named[2], Sample) and named[2].attention_mask.all() and named[2].subject_id < -(1 << 39)
    data = _items(lambda row, i: Visit(row.numpy(), None, torch.tensor(i)))
    assert isinstance(data[2], Visit) and data[2].patient_id.item() < -(1 << 39) and data[2].note is None
    own = _items(lambda row, i: (row, "x"), make_item=lambda codes, who: (torch.from_numpy(codes), str(who)))
    assert own[0][0].tolist() == CANARIES.sequences[0].tolist()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda row, i: (row, 1), "items of type tuple"),
        (lambda row, i: {"events": row}, "holds the codes"),
        (lambda row, i: {"codes": row, "tokens": row}, "holds the codes"),
        (lambda row, i: {"codes": row.float()}, "codes of type Tensor"),
        (lambda row, i: {"codes": row, "age": 3.0}, "entry 'age'"),
        (lambda row, i: {"codes": row, "times": row.float() + 1}, "entry 'times'"),
        (lambda row, i: torch.cat([row, torch.zeros(14 - len(row), dtype=torch.int64)]), "pass pad="),
        (lambda row, i: row[:8], "no longer than the items"),
        (lambda row, i: "text", "items of type str"),
    ],
)
def test_forms_that_no_canary_can_be_given(make, said):
    with pytest.raises(DataError, match=said) as caught:
        _items(make)
    assert "=" in caught.value.fix


X = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def test_rows_of_a_table():
    canaries = make_feature_canaries(X, Y, m=12, n_alternatives=5)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    pair = _items(lambda row, i: (x[i % 90], y[i % 90]), canaries)
    assert isinstance(pair[3], tuple) and pair[3][0].tolist() == canaries.x[3].tolist()
    assert pair[3][1].dtype == torch.int64 and int(pair[3][1]) == canaries.y[3]
    entry = _items(lambda row, i: {"x": X[i % 90], "y": int(Y[i % 90]), "patient_id": i}, canaries)
    assert isinstance(entry[3]["y"], int) and entry[3]["patient_id"] < 0
    alone = make_feature_canaries(X, m=12, kind="shuffled", n_alternatives=5)
    assert _items(lambda row, i: x[i % 90].double(), alone)[3].dtype == torch.float64
    for make, said in (
        (lambda row, i: (x[i % 90], y[i % 90], 1), "3 parts"),
        (lambda row, i: {"x": x[i % 90], "y": y[i % 90], "w": 1}, "the entries x, y, w"),
        (lambda row, i: (x[i % 90, :2], y[i % 90]), r"shape \(2,\)"),
    ):
        with pytest.raises(DataError, match=said):
            _items(make, canaries)


def test_a_table_in_the_trainer_and_its_file(tmp_path):
    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 2)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = Other(
        torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=16, shuffle=True
    )
    canaries = make_feature_canaries(X, Y, m=12, n_alternatives=5)
    planted = PlantedCanaries(data, canaries)
    run = trainer(tmp_path, epochs=1, default_root_dir=tmp_path)
    run.fit(Classifier(), datamodule=planted)
    assert planted.path == tmp_path / "memguard" / "canaries.npz"
    np.testing.assert_array_equal(FeatureCanaries.load(planted.path).included, canaries.included)
    assert len(run.train_dataloader.dataset) == 90 + canaries.included.sum()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(3))


class AnotherLoader(DataLoader):
    pass


class OwnBatches(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (lambda d: [DataLoader(d), DataLoader(d)], "training data of type list"),
        (lambda d: DataLoader(Stream()), "Stream without positions"),
        (
            lambda d: DataLoader(d, sampler=WeightedRandomSampler([1.0] * len(d), len(d))),
            "WeightedRandomSampler",
        ),
        (lambda d: DataLoader(d, sampler=RandomSampler(d, replacement=True)), "RandomSampler"),
        (lambda d: DataLoader(d, batch_sampler=OwnBatches(SequentialSampler(d), 4, False)), "OwnBatches"),
        (lambda d: AnotherLoader(d), "AnotherLoader"),
    ],
)
def test_loaders_that_are_not_plain(loader, said):
    data = Data()
    data.train_dataloader = lambda: loader(data.train)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=said):
        _planted(data).train_dataloader()
    if isinstance(loader(data.train), DataLoader) and not isinstance(loader(data.train).dataset, Stream):
        made = _loader(_planted(data, make_loader=lambda dataset, old: DataLoader(dataset, batch_size=3)))
        assert made.batch_size == 3 and contains_canaries(made)


def test_a_loader_alone_in_a_collection():
    data = Data()
    plain = data.train_dataloader
    data.train_dataloader = lambda: {"ward": plain()}  # type: ignore[method-assign]
    assert set(_loader(_planted(data))) == {"ward"}


def test_ids():
    data = Data()
    ids = [f"p{i}" for i in range(120)]
    made = _loader(_planted(data, record_to_patient=ids)).dataset
    found = resolve_patients(made, len(made))
    assert found.n_patients == len(made) and "memguard-canary-0" in found.ids.tolist()
    several = _loader(_planted(data, record_to_patient=lambda i: i // 2)).dataset
    assert resolve_patients(several, len(several)).n_patients == 60 + len(several.canary_rows)
    del data.train.patient_ids
    none = _loader(_planted(data)).dataset
    assert resolve_patients(none, len(none)).unit == "record"
    with pytest.raises(DataError, match="entry of the batch"):
        _planted(data, record_to_patient="subject_id").items()
    taken = _planted(data, record_to_patient=-(1 << 40) - np.arange(120))
    with pytest.raises(DataError, match="id of a canary"):
        taken.items()


def test_dp_counts_a_canary_as_a_patient():
    made = _loader(_planted(Data())).dataset
    owner = resolve_patients(ConcatDataset([made]), len(made))
    assert owner.n_patients == len(made) and owner.records_per_patient().max() == 1
    assert VOCABULARY > 0


def test_what_is_refused_is_refused_before_the_trainer_asks_for_loaders(tmp_path):
    """Lightning leaves torch's loader classes changed where a loader fails (tests/conftest.py looks at them)."""
    data = Data(sampler=WeightedRandomSampler([1.0] * 120, 120), shuffle=None)
    planted = _planted(data, dirpath=tmp_path / "owner")
    with pytest.raises(DataError, match="WeightedRandomSampler"):
        trainer(tmp_path).fit(Forecaster(), datamodule=planted)
    assert not (tmp_path / "owner").exists()


def test_the_users_loader_is_asked_for_once(tmp_path):
    data = Data()
    plain, asked = data.train_dataloader, []
    data.train_dataloader = lambda: asked.append(1) or plain()  # type: ignore[method-assign]
    run = trainer(tmp_path, epochs=1)
    run.fit(Forecaster(), datamodule=_planted(data, dirpath=tmp_path))
    assert len(asked) == 1
