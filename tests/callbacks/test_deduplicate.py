"""Deduplicate in a Trainer: who counts for less, that training is on exactly that, and that reading leaves no trace."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _processes import launch, saved
from _runs import Forecaster, Visits, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler

from memguard import DPSGD, LeakageMonitor
from memguard.callbacks.deduplicate import Deduplicate
from memguard.callbacks.goldfish import GoldfishLoss
from memguard.errors import AmbiguousLossError, DataError, MemguardError, PrivacyError

pytestmark = pytest.mark.filterwarnings("ignore")


class Copied(Visits):
    """Records 0 to 4 are copies, of which 3 and 4 differ in their last code; patient 7 has the records 60 to 69."""

    def __init__(self, n=80):
        super().__init__(n, 1)
        self.codes[1:5] = self.codes[0]
        last = int((self.codes[0] != 0).sum()) - 1
        self.codes[3:5, last] = torch.tensor([38, 39])
        self.patient_ids = np.arange(n)
        self.patient_ids[60:70] = 7

    def __getitem__(self, i):
        return {"codes": self.codes[i], "at": i, "who": int(self.patient_ids[i])}


def wanted(patients=True, n=80):
    weights = np.ones(n)
    weights[:5] = 1 / 5
    if patients:
        weights[[7, *range(60, 70)]] = 1 / 11
    return weights


class ByHand(Forecaster):
    """``of_record`` are weights to train with."""

    of_record = None

    def training_step(self, batch, batch_idx):
        codes = batch["codes"]
        logits = self.out(self.drop(self.rnn(self.embed(codes[:, :-1]))[0]))
        each = F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], ignore_index=0, reduction="none")
        each = each * torch.as_tensor(self.of_record)[batch["at"]][:, None]
        return each.sum() / (codes[:, 1:] != 0).sum()


def data(train=None, **options):
    train = train or Copied()
    held = Visits(40, 2, first_patient=10_000)
    return DataLoader(train, **{"batch_size": 16, "shuffle": True, **options}), DataLoader(
        held, batch_size=40
    )


def fitted(tmp_path, module, *callbacks, epochs=2, loaders=None, **options):
    pl.seed_everything(0, verbose=False)
    run = trainer(tmp_path, *callbacks, epochs=epochs, **{"logger": False, **options})
    run.fit(module, *(loaders or data()))
    return run, [p.detach().clone() for p in module.parameters()]


def seeded(make, **kwargs):
    pl.seed_everything(1, verbose=False)
    return make(**kwargs)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}], ids=str)
@pytest.mark.parametrize("patients", [True, False])
def test_training_is_that_with_the_weights_by_hand(tmp_path, patients, options):
    once = Deduplicate(patients=patients)
    run, found = fitted(tmp_path, seeded(Forecaster, dropout=0.0), once, precision="64-true", **options)
    np.testing.assert_allclose(once.weights, wanted(patients), rtol=1e-6)
    assert np.array_equal(once.touched, wanted(patients) < 1)
    module = seeded(ByHand, dropout=0.0)
    module.of_record = once.weights.astype(np.float64)
    _, right = fitted(tmp_path, module, precision="64-true", **options)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert run.callback_metrics["memguard/deduplicate/patients"] == 5 + patients
    mean = float(run.callback_metrics["memguard/deduplicate/mean_weight"])
    assert mean == pytest.approx(wanted(patients).mean(), rel=1e-5)


@pytest.mark.parametrize("monitored", [False, True])
def test_where_nobody_counts_for_less_no_bit_changes(tmp_path, monitored):
    """Random crops and dropout: reading the contents moves neither."""

    class Cropped(Visits):
        def __getitem__(self, i):
            start = int(torch.randint(0, 3, (1,)))
            return {"codes": self.codes[i][start : start + 11]}

    def go(*callbacks):
        monitors = [LeakageMonitor(dirpath=tmp_path / "watch")] if monitored else []
        train = Cropped(64, 1)
        return fitted(
            tmp_path, seeded(Forecaster, dropout=0.3), *callbacks, *monitors, loaders=data(train), epochs=2
        )

    once = Deduplicate()
    run, found = go(once)
    _, plain = go()
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert not once.touched.any()
    assert run.callback_metrics["memguard/deduplicate/patients"] == 0


def test_small_cells_are_not_told_and_the_report_says_it(tmp_path):
    class Three(Copied):
        def __init__(self):
            super().__init__()
            self.codes[3:5] = Visits(2, 77).codes
            self.patient_ids = np.arange(80)

    monitor, once = LeakageMonitor(dirpath=tmp_path / "watch", final_evaluation=False), Deduplicate()
    run, _ = fitted(tmp_path, Forecaster(), once, monitor, loaders=data(Three()))
    assert once.touched.sum() == 3
    assert run.callback_metrics["memguard/deduplicate/patients"] == 4
    assert run.callback_metrics["memguard/deduplicate/mean_weight"] == 1
    (said,) = [note for note in monitor.report.notes if "Deduplicate" in note]
    assert "fewer than 5 patients" in said and "no guarantee" in said


def test_a_resumed_run_has_the_same_weights_and_does_not_read_again(tmp_path, monkeypatch):
    def go(folder, epochs, once, **kwargs):
        pl.seed_everything(0, verbose=False)
        keep = ModelCheckpoint(tmp_path / folder, filename="last", save_on_train_epoch_end=True)
        run = trainer(tmp_path, once, keep, epochs=epochs, logger=False, enable_checkpointing=True)
        module = Forecaster(dropout=0.0)
        run.fit(module, *data(shuffle=False), **kwargs)
        return [p.detach().clone() for p in module.parameters()], keep.best_model_path

    whole, _ = go("whole", 3, Deduplicate())
    _, path = go("half", 1, Deduplicate())
    with monkeypatch.context() as patch:
        patch.setattr("memguard.callbacks.deduplicate.read_contents", None)
        once = Deduplicate()
        again, _ = go("half2", 3, once, ckpt_path=path)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    np.testing.assert_allclose(once.weights, wanted(), rtol=1e-6)
    with pytest.raises(DataError, match="other arguments"):
        go("other", 3, Deduplicate(power=0.5), ckpt_path=path)


def test_records_that_the_sampler_leaves_out_are_nobodys_copies(tmp_path):
    rows = [0, 3, *range(10, 65)]
    once = Deduplicate()
    loaders = data(shuffle=False, sampler=SubsetRandomSampler(rows))
    fitted(tmp_path, Forecaster(), once, loaders=loaders, epochs=1)
    right = np.ones(80)
    right[[0, 3]], right[60:65] = 1 / 2, 1 / 5
    np.testing.assert_allclose(once.weights, right, rtol=1e-6)


@pytest.mark.parametrize("given", ["who", "ids", "function", "monitor"])
def test_ways_to_name_patients(tmp_path, given):
    train = Copied()
    ids = train.patient_ids
    del train.patient_ids
    train.__class__ = type(
        "Unnamed", (Copied,), {"__getitem__": lambda self, i: {"codes": self.codes[i], "who": int(ids[i])}}
    )
    way = {"who": "who", "ids": ids, "function": lambda i: ids[i], "monitor": "auto"}[given]
    monitors = []
    if given == "monitor":
        both = {"train": ids, "held_out": "auto"}
        monitors = [LeakageMonitor(record_to_patient=both, dirpath=tmp_path / "watch")]
    once = Deduplicate(record_to_patient=way)
    # whoever comes first listens, for all
    fitted(tmp_path, Forecaster(), GoldfishLoss(), once, *monitors, loaders=data(train), epochs=1)
    np.testing.assert_allclose(once.weights, wanted(), rtol=1e-6)


class Table(torch.utils.data.Dataset):
    def __init__(self, n=60):
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = (
            torch.randn(n, 12, generator=generator),
            torch.randint(0, 2, (n,), generator=generator),
        )
        self.x[10:14] = self.x[10]
        self.y[10:14] = 1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_feature_vectors(tmp_path):
    once = Deduplicate()
    held = DataLoader(Table(30), batch_size=30)
    fitted(tmp_path, Classifier(), once, loaders=(DataLoader(Table(), batch_size=20, shuffle=True), held))
    right = np.ones(60)
    right[10:14] = 1 / 4
    np.testing.assert_allclose(once.weights, right)


class Named(Table):
    """A batch that names its records and patients: no copy is one in these."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return {"x": x, "y": y, "at": i, "who": 1000 + 7 * i}


class OfNamed(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)

    def validation_step(self, batch, batch_idx):
        super().validation_step((batch["x"], batch["y"]), batch_idx)


def test_what_names_a_record_or_a_patient_is_no_feature_of_it(tmp_path):
    once = Deduplicate(threshold=1.0, record_ids="at", record_to_patient="who")
    held = DataLoader(Named(30), batch_size=30)
    fitted(tmp_path, OfNamed(), once, loaders=(DataLoader(Named(), batch_size=20, shuffle=True), held))
    right = np.ones(60)
    right[10:14] = 1 / 4
    np.testing.assert_allclose(once.weights, right)


def test_two_processes(tmp_path):
    launch("_weighing_ddp.py", tmp_path, 2)
    first, second = saved(tmp_path, 2)
    for one in (first, second):
        np.testing.assert_allclose(one["weights"].numpy(), wanted(), rtol=1e-6)
        assert one["patients"] == 6
        assert one["difference"] < 1e-9 < one["from_plain"]
    assert all(torch.equal(a, b) for a, b in zip(first["found"], second["found"], strict=True))


class NoValidation(Forecaster):
    validation_step = pl.LightningModule.validation_step


class Manual(Forecaster):
    automatic_optimization = False


class Own(Forecaster):
    """A loss that is written by hand."""

    def loss(self, batch):
        codes = batch["codes"]
        log_p = self.out(self.rnn(self.embed(codes[:, :-1]))[0]).log_softmax(-1)
        return -log_p.gather(-1, codes[:, 1:, None]).mean()


class Lbfgs(Forecaster):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


def test_refusals(tmp_path):
    for order in ((Deduplicate(), DPSGD(noise_multiplier=1.0)), (DPSGD(noise_multiplier=1.0), Deduplicate())):
        with pytest.raises(PrivacyError, match="Deduplicate or DPSGD out of"):
            fitted(tmp_path, Forecaster(), *order)
    with pytest.raises(AmbiguousLossError, match="validation_step"):
        trainer(tmp_path, Deduplicate(), logger=False).fit(NoValidation(), data()[0])
    with pytest.raises(MemguardError, match="manual optimization"):
        fitted(tmp_path, Manual(), Deduplicate())
    with pytest.raises(MemguardError, match="LBFGS"):
        fitted(tmp_path, Lbfgs(), Deduplicate())
    with pytest.raises(
        AmbiguousLossError, match=r"a method per_record_loss\(batch\), or put a LeakageMonitor"
    ):
        fitted(tmp_path, Own(), Deduplicate())
    wrongs = [{"threshold": wrong} for wrong in (0, 1.1, "0.8", None)] + [{"power": 2}, {"power": None}]
    for wrong in (*wrongs, {"min_codes": -3}, {"min_codes": "8"}, {"seed": 0.5}):
        with pytest.raises(MemguardError, match=next(iter(wrong))):
            Deduplicate(**wrong)
