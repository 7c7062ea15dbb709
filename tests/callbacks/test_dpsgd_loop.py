"""What a Trainer counts, logs and keeps is what it would without DPSGD, and afterwards everything is as it was."""

from __future__ import annotations

import copy
import itertools
import signal

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from _private import Data, Held, Mlp, Visits, private, trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from memguard.errors import MemguardWarning, PrivacyError

PARTS = {"physical_batch_size": 6}


class Counted(Mlp):
    """Counts what the Trainer calls."""

    def __init__(self, interval="step", scheduler=True, **kwargs):
        super().__init__(**kwargs)
        self.calls = {"validations": [], "epochs": 0, "estimated": None}
        self.interval, self.with_scheduler = interval, scheduler

    def on_validation_start(self):
        if not self.trainer.sanity_checking:
            self.calls["validations"].append(self.trainer.global_step)

    def on_train_epoch_end(self):
        self.calls["epochs"] += 1

    def configure_optimizers(self):
        self.calls["estimated"] = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        if not self.with_scheduler:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": self.interval}]


def fit(folder, dpsgd, module, data, *callbacks, **options):
    run = trainer(folder, *([dpsgd] if dpsgd else []), *callbacks, **options)
    run.fit(module, datamodule=data)
    return run


def outcome(run, module):
    return {
        "global_step": run.global_step,
        "epoch": run.current_epoch,
        "lr": run.optimizers[0].param_groups[0]["lr"],
        **module.calls,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2},
        {"max_steps": 7, "max_epochs": 50},
        {"max_epochs": -1, "max_steps": 8},
        {"max_epochs": 2, "accumulate_grad_batches": 2},
        {"max_epochs": 2, "limit_train_batches": 3},
        {"max_epochs": 2, "limit_train_batches": 0.5},
        {"max_epochs": 2, "limit_train_batches": 4, "accumulate_grad_batches": 2},
        {"max_epochs": 2, "val_check_interval": 2},
        {"max_epochs": 2, "val_check_interval": 0.5},
        {"max_epochs": 2, "val_check_interval": 4, "check_val_every_n_epoch": None},
        {"max_epochs": 3, "check_val_every_n_epoch": 2},
        {"fast_dev_run": 2},
        {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1},
        {"max_epochs": 2, "limit_val_batches": 0},
        {"max_epochs": 3, "overfit_batches": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.filterwarnings("ignore:.*overfit", "ignore:You requested to overfit", "ignore:overfit_batches")
def test_counts_are_those_of_a_training_without_privacy(tmp_path, options, interval):
    if interval == "epoch" and len(options) > 2:
        pytest.skip("the same")
    found = []
    for dpsgd in (None, private(**PARTS)):
        module = Counted(interval)
        run = fit(tmp_path, dpsgd, module, Data(batch_size=10), **options)
        found.append(outcome(run, module))
    if dpsgd._run is not None and not options.get("fast_dev_run"):
        assert dpsgd._run.plan.parts > 1
    assert found[0] == found[1]
    assert dpsgd._run.steps == found[1]["global_step"] == len(steps_written(dpsgd))


def steps_written(dpsgd):
    from memguard.privacy.ledger import Ledger

    ledger = Ledger.read(dpsgd.ledger_path.parent, dpsgd.ledger_path.stem)
    return [entry for entry in ledger.entries() if entry["kind"] == "step"]


def test_logs(tmp_path, unstated):
    logger = CSVLogger(tmp_path, name="csv", version="")
    dpsgd = private(noise_multiplier=3.0, **PARTS)
    run = fit(
        tmp_path, dpsgd, Mlp(), Data(batch_size=10), max_epochs=2, logger=logger, log_every_n_steps=2,
        check_val_every_n_epoch=1,
    )  # fmt: skip
    rows = pd.read_csv(tmp_path / "csv" / "metrics.csv")
    seen = rows.dropna(subset=["memguard/dp/epsilon"])
    assert seen["step"].tolist() == [1, 3, 5, 7, 9, 11]
    assert (seen["memguard/dp/epsilon"].diff().dropna() > 0).all()
    assert (seen["memguard/dp/noise_multiplier"] == 3).all()
    assert seen["memguard/dp/sample_rate"].iloc[0] == pytest.approx(1 / 6)
    assert seen["memguard/dp/clipped_share"].dropna().between(0, 1).all()
    assert rows["train_loss"].notna().sum() == 6
    assert rows["val_loss"].notna().sum() == 2
    assert "memguard/dp/epsilon" in run.progress_bar_metrics


@pytest.mark.filterwarnings("ignore:.*ReduceLROnPlateau")
@pytest.mark.parametrize("plateau", [False, True])
def test_a_learning_rate_is_private_only_where_it_follows_a_metric(tmp_path, plateau):
    class Scheduled(Mlp):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            steps = torch.optim.lr_scheduler
            scheduler = steps.ReduceLROnPlateau(optimizer) if plateau else steps.ExponentialLR(optimizer, 0.9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    dpsgd = private(**PARTS)
    logger = CSVLogger(tmp_path, name="csv", version="")
    fit(
        tmp_path,
        dpsgd,
        Scheduled(),
        Data(batch_size=10),
        LearningRateMonitor(),
        logger=logger,
        log_every_n_steps=1,
    )
    named = dpsgd.statement().text()
    assert "train_loss" in named
    assert ("lr-SGD" in named) is plateau


def test_early_stopping_and_checkpoints(tmp_path):
    stop = EarlyStopping("val_loss", patience=0, min_delta=100.0)
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True, monitor="val_loss")
    dpsgd = private(**PARTS)
    with pytest.warns(MemguardWarning, match="EarlyStopping|ModelCheckpoint") as heard:
        run = fit(
            tmp_path, dpsgd, Mlp(), Data(batch_size=10), stop, keep, max_epochs=9, enable_checkpointing=True
        )
    assert len([w for w in heard if issubclass(w.category, MemguardWarning)]) == 2
    assert run.current_epoch == 2
    assert run.global_step == 12
    text = dpsgd.statement().text()
    assert "EarlyStopping on 'val_loss'" in text
    assert "ModelCheckpoint on 'val_loss'" in text
    plain = ModelCheckpoint(tmp_path / "plain", save_last=True)
    fit(tmp_path, None, Mlp(), Data(batch_size=10), plain, max_epochs=1, enable_checkpointing=True)
    ours, theirs = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("kept", "plain")
    )
    assert list(ours["state_dict"]) == list(theirs["state_dict"])
    assert set(ours) == set(theirs)
    assert set(ours["callbacks"]) - {"EarlyStopping", *theirs["callbacks"]} >= {"DPSGD"}
    assert ours["hyper_parameters"] == theirs["hyper_parameters"]
    Mlp.load_from_checkpoint(tmp_path / "kept" / "last.ckpt")


def picture(run, module, data):
    """Everything that DPSGD touches."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "trainer": (run.accumulate_grad_batches, run.limit_train_batches, run.val_check_interval),
        "strategy": sorted(run.strategy.__dict__),
        "precision": sorted(run.precision_plugin.__dict__),
        "module": {
            name: (sorted(part.__dict__), part.training, [len(getattr(part, hook)) for hook in hooks])
            for name, part in module.named_modules()
        },
        "parameters": {name: (p.requires_grad, sorted(vars(p))) for name, p in module.named_parameters()},
        "data": sorted(data.__dict__),
    }


class Breaks(pl.Callback):
    def __init__(self, error, at=9):
        self.error, self.at = error, at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.at:
            raise self.error


@pytest.mark.parametrize("engine", ["opacus", "loop"])
@pytest.mark.parametrize("error", [None, RuntimeError("a batch that fails"), KeyboardInterrupt()], ids=repr)
def test_everything_is_given_back(tmp_path, error, engine):
    data, module, dpsgd = Data(batch_size=10), Mlp(), private(checks=True, engine=engine, **PARTS)
    options = {
        "max_epochs": 1, "accumulate_grad_batches": 2, "limit_train_batches": 6, "val_check_interval": 2,
    }  # fmt: skip
    other = Mlp()
    plain = trainer(tmp_path, **options)
    plain.fit(other, datamodule=Data(batch_size=10))
    wanted = picture(plain, other, data)
    loader = data.train_dataloader()
    data.train_dataloader = lambda: loader
    wanted["data"] = sorted(data.__dict__)
    before = copy.copy(loader.__dict__)
    run = trainer(tmp_path, dpsgd, Breaks(error, at=7 if error else 10**6), **options)
    if error is None:
        run.fit(module, datamodule=data)
    else:
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises((RuntimeError, SystemExit)):
                run.fit(module, datamodule=data)
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    module.train(), other.train()
    wanted["module"] = picture(plain, other, data)["module"]
    assert picture(run, module, data) == wanted
    assert loader.__dict__.keys() == before.keys()
    assert all(loader.__dict__[name] is value for name, value in before.items())
    assert run.train_dataloader in (loader, None)
    if error is not None:
        text = dpsgd.ledger_path.read_text()
        assert f"cut off by {type(error).__name__}" in text
    # and the same objects train on, with and without
    run.callbacks = [one for one in run.callbacks if not isinstance(one, Breaks)]
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    trainer(tmp_path, dpsgd, max_epochs=1).fit(module, datamodule=data)
    assert dpsgd._run.steps == 6


def test_a_second_fit_of_one_trainer_goes_on_with_the_ledger(tmp_path, unstated):
    dpsgd, data, module = private(noise_multiplier=2.0, **PARTS), Data(batch_size=10), Mlp()
    run = fit(tmp_path, dpsgd, module, data, max_epochs=1)
    first, path = dpsgd._run.epsilon_now(), dpsgd.ledger_path
    run.fit_loop.max_epochs = 3
    run.fit(module, datamodule=data)
    assert run.global_step == 18
    assert dpsgd.ledger_path == path
    assert dpsgd._run.steps == 18
    assert dpsgd._run.epsilon_now() > first
    assert dpsgd.statement().starts == 2
    # a new Trainer is a new run
    fit(tmp_path, dpsgd, Mlp(), data, max_epochs=1)
    assert dpsgd.ledger_path != path
    assert dpsgd._run.steps == 6
    assert "Another run trained on the same data (18 steps" in dpsgd.statement().text()


def test_a_second_fit_on_other_patients_is_refused(tmp_path):
    dpsgd, module = private(), Mlp()
    run = fit(tmp_path, dpsgd, module, Data(batch_size=10), max_epochs=1)
    run.fit_loop.max_epochs = 2
    with pytest.raises(PrivacyError, match="training data changed"):
        run.fit(module, datamodule=Data(train=Visits(30, 60, seed=3), batch_size=10))


def test_loaders_made_anew_are_read_anew(tmp_path):
    read = []

    class Told(Visits):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def __getitem__(self, i):
            read.append(self.number)
            return super().__getitem__(i)

    class Anew(Data):
        made = 0

        def train_dataloader(self):
            self.made += 1
            return DataLoader(Told(self.made), batch_size=20, shuffle=True)

    dpsgd = private(engine="loop")
    fit(tmp_path, dpsgd, Mlp(), Anew(val=Held()), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert dpsgd._run.steps == 9
    changes = [a for a, b in itertools.pairwise(read) if a != b]
    assert changes == [1, 2]  # each loader is read in its own epoch, by the loop too


def test_bare_trainers(tmp_path):
    dpsgd = private()
    run = pl.Trainer(
        barebones=True, callbacks=[dpsgd], accelerator="cpu", max_epochs=1, default_root_dir=tmp_path
    )
    run.fit(Quiet(), datamodule=Data(batch_size=20))
    assert dpsgd._run.steps == 3


class Quiet(Mlp):
    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        return self.loss(batch)


def test_what_a_step_returns_reaches_others_without_its_graph(tmp_path):
    seen = []

    class Returns(Mlp):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return {"loss": loss, "double": 2 * loss, "n": len(batch[1])}

    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(outputs)

    dpsgd = private(
        engine="opacus", checks=True
    )  # the loop runs a step for each record, and shows the mean of the losses
    fit(tmp_path, dpsgd, Returns(), Data(batch_size=20), Reads(), max_epochs=1)
    shown = [one for one in seen if "double" in one]
    assert shown
    for one in shown:
        assert one["double"].item() == pytest.approx(2 * one["loss"].item(), rel=1e-5)
        assert one["double"].grad_fn is None


def test_no_batches_no_training(tmp_path):
    dpsgd = private()
    run = fit(tmp_path, dpsgd, Mlp(), Data(batch_size=20), max_epochs=1, limit_train_batches=0)
    assert run.global_step == 0
    assert dpsgd.epsilon == 0.0
    with pytest.raises(PrivacyError, match=r"no training has begun.*after Trainer\.fit"):
        dpsgd.statement()


def test_validate_and_test_are_left_alone(tmp_path):
    data, module, dpsgd = Data(batch_size=20), Mlp(), private()
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True)
    run = fit(tmp_path, dpsgd, module, data, keep, max_epochs=1, enable_checkpointing=True)
    path, steps = dpsgd.ledger_path, dpsgd._run.steps
    run.validate(module, datamodule=data, verbose=False)
    run.validate(module, datamodule=data, ckpt_path=tmp_path / "kept" / "last.ckpt", verbose=False)
    assert dpsgd._state is None
    assert (dpsgd.ledger_path, dpsgd._run.steps) == (path, steps)
