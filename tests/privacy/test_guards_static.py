"""The static scan on real Trainers: what it refuses, what goes into the ledger, and what it leaves alone."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from memguard.privacy.guards.static import scan
from memguard.privacy.guards.static_callbacks import scan_callbacks


class Net(pl.LightningModule):
    def __init__(self, make=None, body=None):
        super().__init__()
        self.body = body or nn.Linear(2, 1)
        self.make = make or (lambda p: torch.optim.SGD(p, lr=0.1))

    def training_step(self, batch, batch_idx):
        loss = self.body(batch[0]).square().mean()
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return self.make(list(self.parameters()))


def data(n=8):
    return TensorDataset(torch.randn(n, 2))


def trainer(tmp_path, **options):
    options = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": tmp_path, "num_sanity_val_steps": 0,
    } | options  # fmt: skip
    return pl.Trainer(**options)


class Scans(Callback):
    """Scans at both moments, as DPSGD does."""

    def __init__(self):
        self.at_setup = self.at_start = None

    def setup(self, trainer, pl_module, stage):
        self.at_setup = scan(trainer, pl_module)

    def on_train_start(self, trainer, pl_module):
        self.at_start = scan(trainer, pl_module)


def scanned(tmp_path, module=None, loaders=None, **options):
    """Findings at the start of a real fit, id to finding."""
    scans = Scans()
    callbacks = [scans, *options.pop("callbacks", [])]
    fit = trainer(tmp_path, callbacks=callbacks, **options)
    module = module or Net()
    fit.fit(module, loaders if loaders is not None else DataLoader(data(), batch_size=4))
    assert {f.id for f in scans.at_setup} <= {f.id for f in scans.at_start}
    return {f.id: f for f in scans.at_start}


def test_an_ordinary_training_has_no_finding(tmp_path):
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    callbacks = [
        Timer(), WeightAveraging(), StochasticWeightAveraging(swa_lrs=0.1),
        ModelCheckpoint(dirpath=tmp_path, save_top_k=1), LambdaCallback(on_train_start=lambda *a: None),
    ]  # fmt: skip
    loader = DataLoader(data(), batch_size=4, shuffle=True, drop_last=True)
    options = {"enable_checkpointing": True, "precision": "bf16-mixed", "limit_train_batches": 1}
    assert scanned(tmp_path, Scheduled(), loader, callbacks=callbacks, **options) == {}


def test_fast_dev_run_is_fine(tmp_path):
    assert scanned(tmp_path, fast_dev_run=True) == {}


@pytest.mark.parametrize(
    ("found", "callback"),
    [
        ("static/tuner", LearningRateFinder()),
        ("static/tuner", BatchSizeFinder()),
        ("static/accumulation", GradientAccumulationScheduler({0: 2})),
        ("static/finetuning", BackboneFinetuning()),
        ("static/spike", SpikeDetection()),
    ],
)
def test_callbacks_to_refuse(tmp_path, found, callback):
    result = scan(trainer(tmp_path, callbacks=[callback]), Net())
    assert [(f.id, f.severity) for f in result] == [(found, "refuse")]


def test_a_tuner_is_seen_before_it_trains(tmp_path):
    from lightning.pytorch.tuner import Tuner

    class Refuses(Callback):
        def setup(self, trainer, pl_module, stage):
            for finding in scan(trainer, pl_module):
                raise finding.error()

    class Counts(Net):
        steps = 0

        def training_step(self, batch, batch_idx):
            Counts.steps += 1
            return super().training_step(batch, batch_idx)

    fit = trainer(tmp_path, callbacks=[Refuses()], logger=False)
    with pytest.raises(Exception, match="LearningRateFinder"):
        Tuner(fit).lr_find(Counts(), DataLoader(data()), num_training=3)
    assert Counts.steps == 0


@pytest.mark.parametrize(
    ("found", "callback"),
    [
        ("static/early_stopping", EarlyStopping("train_loss")),
        ("static/checkpoint", ModelCheckpoint(monitor="train_loss")),
    ],
)
def test_monitored_metrics_go_into_the_ledger(tmp_path, found, callback):
    options = {"enable_checkpointing": True} if found == "static/checkpoint" else {}
    finding = scanned(tmp_path, callbacks=[callback], **options)[found]
    assert finding.severity == "ledger" and finding.warn
    assert "held-out patients" in finding.why and "train_loss" in finding.seen


def test_a_public_metric_is_no_finding(tmp_path):
    stops = EarlyStopping("memguard/dp/epsilon", stopping_threshold=8.0, mode="max")
    private = EarlyStopping("memguard/dp/clipped_share")
    assert scan(trainer(tmp_path, callbacks=[stops]), Net()) == []
    assert [f.id for f in scan(trainer(tmp_path, callbacks=[private]), Net())] == ["static/early_stopping"]


def test_plateau(tmp_path):
    class Plateau(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}

    finding = scanned(tmp_path, Plateau())["static/plateau"]
    assert finding.severity == "ledger" and "'train_loss'" in finding.seen


def test_lbfgs(tmp_path):
    assert scanned(tmp_path, Net(torch.optim.LBFGS))["static/lbfgs"].severity == "refuse"


def test_manual_optimization_and_several_optimizers(tmp_path):
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.body(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]

    found = scanned(tmp_path, Manual())
    assert {f.severity for f in found.values()} == {"refuse"}
    assert set(found) == {"static/manual", "static/optimizers"}
    assert "2 optimizers" in found["static/optimizers"].seen


def test_half_precision(tmp_path):
    assert scanned(tmp_path, precision="16-true")["static/float16"].severity == "refuse"
    mixed = trainer(tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))])
    assert [f.id for f in scan(mixed, Net())] == ["static/float16"]
    for precision in ("bf16-mixed", "bf16-true", "64-true", "32-true"):
        assert scan(trainer(tmp_path, precision=precision), Net()) == []


def test_gradient_clipping(tmp_path):
    finding = scanned(tmp_path, gradient_clip_val=0.5)["static/gradient_clip_val"]
    assert finding.severity == "ledger" and finding.warn and "utility" in finding.why


def test_hooks_that_see_gradients(tmp_path):
    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            pass

    found = scanned(tmp_path, callbacks=[Norms(), LearningRateMonitor()], logger=True)
    assert found["static/callback_hooks"].severity == "ledger" and len(found) == 1
    assert "on_before_optimizer_step" in found["static/callback_hooks"].seen
    assert "static/callback_hooks" in scanned(
        tmp_path, callbacks=[LambdaCallback(on_after_backward=lambda *a: None)]
    )

    class Warm(Net):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

        def configure_gradient_clipping(self, optimizer, **kwargs):
            pass

    finding = scanned(tmp_path, Warm())["static/module_hooks"]
    assert finding.severity == "ledger" and "optimizer_step, configure_gradient_clipping" in finding.seen

    class Backward(Net):
        def backward(self, loss):
            loss.backward()

    assert scanned(tmp_path, Backward())["static/backward"].severity == "refuse"


def test_batch_norm(tmp_path):
    body = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    found = scanned(tmp_path, Net(body=body), callbacks=[StochasticWeightAveraging(swa_lrs=0.1)])
    assert {(f.id, f.severity) for f in found.values()} == {
        ("batch_statistics/layer", "refuse"),
        ("static/swa_batch_norm", "refuse"),
    }


def test_strategies(tmp_path):
    assert scan(trainer(tmp_path, strategy=DDPStrategy(process_group_backend="gloo")), Net()) == []
    averaging = trainer(tmp_path, strategy=DDPStrategy(ddp_comm_hook=lambda state, bucket: None))
    assert [f.id for f in scan(averaging, Net())] == ["static/ddp_hook"]

    class Given:
        callbacks = ()
        precision = "32-true"

    for strategy in (ModelParallelStrategy(), FSDPStrategy()):
        given = Given()
        given.strategy = strategy
        (finding,) = scan(given, Net())
        assert finding.id == "static/strategy" and type(strategy).__name__ in finding.seen


def test_overfit_batches(tmp_path):
    found = scanned(tmp_path, overfit_batches=1)
    assert found["static/overfit_batches"].severity == "ledger"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data())


class Foreign:
    """A loader of some other library."""

    def __iter__(self):
        return iter([[torch.zeros(1, 2)]])

    def __len__(self):
        return 1


def test_loaders(tmp_path):
    assert (
        scanned(tmp_path, loaders=DataLoader(Stream(), batch_size=4))["static/iterable"].severity == "refuse"
    )
    weighted = DataLoader(data(), batch_size=4, sampler=WeightedRandomSampler([1.0] * 8, 8))
    assert scanned(tmp_path, loaders=weighted)["static/weighted_sampler"].severity == "refuse"
    assert "static/iterable" in scanned(tmp_path, loaders=Foreign())

    class Buckets(BatchSampler):
        pass

    buckets = DataLoader(data(), batch_sampler=Buckets(SequentialSampler(data()), 4, False))
    assert scanned(tmp_path, loaders=buckets)["static/batch_sampler"].severity == "ledger"

    class Both(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    two = {"a": DataLoader(data(), batch_size=4), "b": DataLoader(data(), batch_size=4)}
    for loaders in (two, CombinedLoader(two, "min_size")):
        assert scanned(tmp_path, Both(), loaders=loaders)["static/loaders"].severity == "refuse"
    one = {"a": DataLoader(data(), batch_size=4)}
    assert scanned(tmp_path, Both(), loaders=one) == {}


def test_loaders_of_a_datamodule_wait_for_the_start(tmp_path):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=4)

    scans = Scans()
    trainer(tmp_path, callbacks=[scans]).fit(Net(), datamodule=Data())
    assert scans.at_setup == [] and [f.id for f in scans.at_start] == ["static/iterable"]


def test_what_to_refuse_comes_first(tmp_path):
    found = scan(trainer(tmp_path, callbacks=[EarlyStopping("x"), LearningRateFinder()]), Net())
    assert [f.severity for f in found] == ["refuse", "ledger"]


def test_classes_of_the_other_package():
    old = pytest.importorskip("pytorch_lightning")
    found = scan_callbacks(
        [old.callbacks.LearningRateFinder(), old.callbacks.EarlyStopping("x")], nn.Linear(1, 1)
    )
    assert [f.id for f in found] == ["static/tuner", "static/early_stopping"]


@pytest.mark.parametrize(
    ("on", "severity"), [("record", "ledger"), ("data", "refuse"), ("unknown", "refuse")]
)
def test_callbacks_that_weigh_records_say_by_what(on, severity):
    class Weighs(Callback):
        weights_depend_on = on

        def said(self):
            return "Weighs(x=1): half of them."

    (found,) = scan_callbacks([Weighs(), Callback()], Net())
    assert (found.severity, found.seen) == (severity, "Weighs(x=1)")
