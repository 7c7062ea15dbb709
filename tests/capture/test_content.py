from collections import namedtuple
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset

from memguard.capture.content import batch_content
from memguard.capture.heldout import HeldOutSource
from memguard.capture.losses import CapturedLoss
from memguard.records.content import ContentStore, in_common
from tests.capture._modules import CLASSES, WIDTH, Driver, trainer


def captured(targets, mask=None):
    size = len(targets)
    return CapturedLoss(
        loss=torch.zeros(size),
        tokens=torch.ones(size),
        targets=targets,
        mask=mask,
        unit="nats/token",
        route="",
    )


def test_the_first_code_comes_from_the_entry_that_the_targets_were_cut_from():
    codes = torch.tensor([[7, 1, 2, 0], [8, 3, 0, 0]])
    targets = codes[:, 1:]
    found = batch_content({"other": codes + 1, "codes": codes}, captured(targets, targets != 0))
    assert found["codes"].tolist() == [[7, 1, 2, 0], [8, 3, 0, 0]]
    assert found["mask"].tolist() == [[True, True, True, False], [True, True, False, False]]


def test_without_such_an_entry_the_targets_are_the_codes():
    targets = torch.tensor([[1, 2, -100], [3, -100, -100]])
    found = batch_content({"codes": torch.zeros(2, 5, dtype=torch.long)}, captured(targets, targets != -100))
    assert found["codes"].tolist() == [[1, 2, 0], [3, 0, 0]]
    assert found["mask"].sum() == 3


# -- what names a record is no feature of it ---

Named = namedtuple("Named", ["who", "age"])


@pytest.mark.parametrize(
    ("batch", "paths"),
    [
        ({"who": torch.arange(3), "age": torch.ones(3), "x": {"who": torch.ones(3)}}, ["age", "x.who"]),
        (SimpleNamespace(who=torch.arange(3), age=torch.ones(3)), ["age"]),
        (Named(torch.arange(3), torch.ones(3)), ["1"]),
        ((torch.arange(3), torch.ones(3)), ["0", "1"]),
    ],
)
def test_entries_that_name_records_are_no_features(batch, paths):
    nothing = CapturedLoss(loss=torch.zeros(3), tokens=torch.ones(3), route="")
    found = batch_content(batch, nothing, names={"who"})
    assert [path for path, _ in found["columns"]] == paths
    assert found["x"].shape == (3, len(paths))


def test_columns_say_what_the_features_are():
    nothing = CapturedLoss(loss=torch.zeros(3), tokens=torch.ones(3), route="")
    batch = {"x": torch.zeros(3, 4, 2), "age": torch.ones(3)}
    assert batch_content(batch, nothing)["columns"] == (("x", (4, 2)), ("age", ()))
    assert batch_content(batch, nothing, widest=5)["columns"] == (("x", (5,)),)


class Visits(Dataset):
    def __init__(self, n, first=0):
        rng = torch.Generator().manual_seed(first)
        self.x, self.first = torch.randn(n, WIDTH, generator=rng), first
        self.y = torch.randint(0, CLASSES, (n,), generator=rng)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i], "row": i, "who": self.first + i}


class Net(pl.LightningModule):
    def __init__(self, contrastive=False):
        super().__init__()
        self.net, self.contrastive = nn.Linear(WIDTH, CLASSES), contrastive

    def training_step(self, batch, batch_idx):
        batch = batch.get("a", batch)
        z = self.net(batch["x"])
        return (
            F.cross_entropy(z @ z.T, torch.arange(len(z)))
            if self.contrastive
            else F.cross_entropy(z, batch["y"])
        )

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Reading(Driver):
    """Keeps contents, as a monitor does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stores, self.patients = (ContentStore(22), ContentStore(20)), []

    def on_train_batch_end(self, *args):
        seen = self.capture.last_train
        self.stores[0].add(seen.positions, **seen.content())
        self.patients.append((seen.positions, seen.patient))

    def on_train_end(self, *args):
        source = HeldOutSource(Visits(5), self.capture)
        self.other = source.evaluate(source.windows(), contents=True)[3]

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        seen = self.capture.last_val()
        self.stores[1].add(seen.positions, **seen.content())


def contents(loader, module=None, **kwargs):
    driver = Reading(**kwargs)
    trainer([driver], max_epochs=1).fit(
        module or Net(), loader, DataLoader(Visits(20, first=1000), batch_size=8)
    )
    return driver, in_common(driver.stores[0].content(), driver.stores[1].content())


def test_a_run_names_them():
    data = Visits(22)
    driver, sides = contents(DataLoader(data, batch_size=8), record_ids="row", record_to_patient="who")
    assert [side.columns for side in sides] == [(("x", (WIDTH,)),)] * 2
    assert torch.equal(torch.from_numpy(sides[0].x), data.x)
    assert [part["columns"] for part in driver.other] == [(("x", (WIDTH,)),)]


def test_a_target_that_equals_an_entry_by_chance():
    data = Visits(22)  # the held-out rows of the first batch are the targets of a contrastive loss
    _, sides = contents(DataLoader(data, batch_size=8, shuffle=True), Net(contrastive=True))
    assert [side.columns for side in sides] == [(("x", (WIDTH,)), ("y", ()), ("who", ()))] * 2
    assert torch.equal(torch.from_numpy(sides[0].x[:, :WIDTH]), data.x)
    assert sides[0].x[:, -1].tolist() == list(range(22))


@pytest.mark.parametrize("other", [22, 13])
def test_features_of_a_record_are_those_of_its_own_loader(other):
    data = Visits(22)
    loader = CombinedLoader(
        {"a": DataLoader(data, batch_size=8), "b": DataLoader(Visits(other, first=500), batch_size=8)},
        "max_size_cycle",
    )
    driver, sides = contents(loader, train_loader="a", record_to_patient="who")
    assert [side.columns for side in sides] == [(("x", (WIDTH,)), ("row", ()))] * 2
    assert torch.equal(torch.from_numpy(sides[0].x[:, :WIDTH]), data.x)
    assert all(who.tolist() == at.tolist() for at, who in driver.patients)
