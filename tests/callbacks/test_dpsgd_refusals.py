"""What would make epsilon false is refused before the first step, with the cause and the fix."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _private import Data, Held, Mlp, Visits, private, trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from memguard.callbacks.dpsgd import DPSGD
from memguard.errors import MemguardError, MemguardWarning, PrivacyError


def refused(
    folder, match, *, module=None, data=None, dpsgd=None, callbacks=(), error=PrivacyError, **options
):
    """A fit that is refused without a change of the weights; the Trainer is as before."""
    module = module or Mlp()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run = trainer(folder, dpsgd or private(), *callbacks, **options)
    loaders = {"datamodule": data or Data(batch_size=20)}
    if isinstance(data, list):
        loaders = {"train_dataloaders": data[0], "val_dataloaders": data[1:] or None}
    with pytest.raises(error, match=match) as problem:
        run.fit(module, **loaders)
    assert problem.value.fix
    assert problem.value.why
    assert run.global_step == 0
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert "training_step" not in vars(run.strategy)
    assert "process_dataloader" not in vars(run.strategy)
    assert not list(folder.rglob("*.ckpt"))
    return problem.value


# -- the Trainer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuner", ["lr_find", "scale_batch_size"])
def test_tuners(tmp_path, tuner):
    run = trainer(tmp_path, private())
    with pytest.raises(PrivacyError, match="no accountant sees"):
        getattr(pl.tuner.Tuner(run), tuner)(Mlp(), datamodule=Data(batch_size=20))


class Thaws(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (LearningRateFinder(), "no accountant sees"),
        (BatchSizeFinder(), "no accountant sees"),
        (GradientAccumulationScheduler({0: 2}), "merges or tears draws"),
        (Thaws(), "unknown to the clipping"),
    ],
)
def test_callbacks(tmp_path, callback, match):
    refused(tmp_path, match, callbacks=[callback])


def test_two_of_a_kind(tmp_path):
    run = trainer(tmp_path, private())
    run.callbacks.append(private())
    with pytest.raises(PrivacyError, match=r"2 DPSGD callbacks.*keep one"):
        run.fit(Mlp(), datamodule=Data(batch_size=20))
    assert run.global_step == 0


def test_clipping_after_the_noise_is_warned_of(tmp_path):
    dpsgd = private()
    with pytest.warns(MemguardWarning, match="gradient_clip_val"):
        trainer(tmp_path, dpsgd, gradient_clip_val=0.01).fit(Mlp(), datamodule=Data(batch_size=20))
    assert "Gradient_clip_val = 0.01" in dpsgd.statement().text()


def test_a_training_without_an_end(tmp_path):
    refused(
        tmp_path, r"without a planned end.*max_steps=", dpsgd=private(target_epsilon=8.0), max_epochs=-1,
        max_time="00:00:01:00",
    )  # fmt: skip


# -- the module -----------------------------------------------------------------------------------------------


class Lbfgs(Mlp):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Two(Mlp):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[2])]


class Manual(Mlp):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Normed(Mlp):
    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(8))


class Silent(Mlp):
    def training_step(self, batch, batch_idx):
        return None


class Detached(Mlp):
    def training_step(self, batch, batch_idx):
        return self.loss(batch).detach()


class Elsewhere(Mlp):
    """Its loss has a gradient, of other parameters than those that are optimized."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.unused.parameters(), lr=0.1)


class Iterates(Mlp):
    def training_step(self, dataloader_iter):
        batch, *_ = next(dataloader_iter)
        return self.loss(batch)


class OwnBackward(Mlp):
    def backward(self, loss):
        loss.backward()


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Lbfgs, "several times for one step"),
        (Two, "2 optimizers|automatic_optimization = False"),
        (Manual, "automatic_optimization = False"),
        (Normed, r"BatchNorm1d at net\.1"),
        (Silent, "no parameter of the optimizer a gradient"),
        (Detached, "has no gradient"),
        (Elsewhere, "no parameter of the optimizer a gradient"),
        (Iterates, "dataloader_iter"),
        (OwnBackward, "overrides backward"),
    ],
)
def test_modules(tmp_path, make, match):
    refused(tmp_path, match, module=make(), dpsgd=private(checks=True, engine="auto"))


class Cox(Mlp):
    """A partial likelihood: each patient's risk over those of the others."""

    def loss(self, batch):
        x, y = batch
        risk = self(x)[:, 0]
        order = torch.argsort(x[:, 0], descending=True)
        rest = torch.logcumsumexp(risk[order], 0)
        return -((risk[order] - rest) * y[order]).sum() / len(y)


class Contrastive(Mlp):
    def loss(self, batch):
        x, _ = batch
        seen = F.normalize(self(x), dim=1)
        moved = F.normalize(self(x + 0.1), dim=1)
        return F.cross_entropy(seen @ moved.T / 0.1, torch.arange(len(x)))


class Standardized(Mlp):
    def forward(self, x):
        return self.net((x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-3))


@pytest.mark.parametrize("make", [Cox, Contrastive, Standardized])
def test_losses_over_a_batch(tmp_path, make):
    refused(
        tmp_path, r"not a sum over its records.*cannot be clipped from a batch.*engine=\"loop\"",
        module=make(), dpsgd=private(checks=True, engine="opacus"),
    )  # fmt: skip


class Counting(Mlp):
    """Keeps an average of the data in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def loss(self, batch):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * batch[0].mean(0))
        return super().loss(batch)


def test_buffers_that_learn(tmp_path):
    refused(tmp_path, "buffer", module=Counting(), dpsgd=private(checks=True))


def test_thawing_during_training(tmp_path):
    class Later(Mlp):
        def configure_optimizers(self):
            self.net[0].requires_grad_(False)
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_train_epoch_start(self):
            self.net[0].requires_grad_(self.current_epoch > 0)

    dpsgd = private()
    run = trainer(tmp_path, dpsgd, max_epochs=2)
    with pytest.raises(PrivacyError, match="trains 2 parameters that were not clipped"):
        run.fit(Later(), datamodule=Data(batch_size=20))
    assert run.global_step == dpsgd._run.steps == 3


def test_a_step_that_is_left_out_tears_a_draw(tmp_path):
    class Skips(Mlp):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx == 1:
                optimizer_closure()
            else:
                optimizer.step(closure=optimizer_closure)

    dpsgd = private(physical_batch_size=100)
    with pytest.raises(PrivacyError, match=r"sums the parts 1/1 of draw 1, 1/1 of draw 2"):
        trainer(tmp_path, dpsgd).fit(Skips(), datamodule=Data(batch_size=20))


def test_an_own_optimizer_step_that_warms_up(tmp_path):
    class Warms(Mlp):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 5)
            optimizer.step(closure=optimizer_closure)

    dpsgd = private()
    trainer(tmp_path, dpsgd).fit(Warms(), datamodule=Data(batch_size=20))
    assert dpsgd._run.steps == 3


# -- the data -------------------------------------------------------------------------------------------------


class Anonymous(Visits):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        del self.patient_ids


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(6), 1)] * 10)

    def __len__(self):
        return 10


class Batches:
    def __iter__(self):
        return iter([(torch.zeros(2, 6), torch.zeros(2).long())])

    def __len__(self):
        return 1


def loader(data=None, **options):
    return DataLoader(Visits() if data is None else data, **{"batch_size": 20, **options})


@pytest.mark.parametrize(
    ("loaders", "match"),
    [
        (lambda: loader(Stream()), "cannot be indexed"),
        (lambda: CombinedLoader({"a": loader(), "b": loader(Visits(seed=3))}), "2 training loaders"),
        (lambda: [loader(), loader()], "2 training loaders"),
        (lambda: {"a": loader()}, r"collection of training loaders \(1 loader\)"),
        (lambda: loader(Anonymous()), r"no patient ids.*record_to_patient=, or unit=\"record\""),
        (lambda: loader(sampler=WeightedRandomSampler([1.0] * 60, 60)), "WeightedRandomSampler"),
        (Batches, "cannot be indexed"),
    ],
)
def test_loaders(tmp_path, loaders, match):
    refused(tmp_path, match, data=[loaders()])


def test_patients_named_in_the_batch(tmp_path):
    refused(
        tmp_path, r"record_to_patient='subject_id'.*before there is a batch.*position",
        dpsgd=private(record_to_patient="subject_id"),
    )  # fmt: skip


@pytest.mark.parametrize("given", [list(range(59)), lambda i: None])
def test_ids_that_do_not_fit(tmp_path, given):
    run = trainer(tmp_path, private(record_to_patient=given))
    with pytest.raises(MemguardError):
        run.fit(Mlp(), datamodule=Data(batch_size=20))
    assert run.global_step == 0


def test_ways_to_give_ids(tmp_path):
    ids = Visits().patient_ids
    for given in (ids.tolist(), lambda i: f"p{ids[i]}", {"train": ids, "held_out": None}):
        dpsgd = private(record_to_patient=given)
        trainer(tmp_path, dpsgd).fit(Mlp(), datamodule=Data(Anonymous(), Held(), batch_size=20))
        assert dpsgd._run.plan.n_owners == 24


def test_batches_that_are_not_those_of_the_loader(tmp_path):
    class Changes(pl.LightningDataModule):
        def train_dataloader(self):
            return loader()

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [part[: len(part) // 2] for part in batch]

    refused(tmp_path, r"pass engine=\"loop\"", data=Changes(), dpsgd=private(engine="opacus", checks=True))
    refused(tmp_path, "no parameter of the optimizer a gradient", data=Changes(), dpsgd=private(checks=True))


# -- the arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "none of target_epsilon, noise_multiplier and budgets"),
        ({"target_epsilon": 8, "noise_multiplier": 1}, "target_epsilon and noise_multiplier given"),
        ({"target_epsilon": 0}, "target_epsilon=0"),
        ({"target_epsilon": float("nan")}, "target_epsilon=nan"),
        ({"target_epsilon": 8, "max_grad_norm": -1}, "max_grad_norm=-1"),
        ({"noise_multiplier": -1}, "noise_multiplier=-1"),
        ({"noise_multiplier": 1, "engine": "ghost"}, "engine='ghost'"),
        ({"noise_multiplier": 1, "average": "median"}, "average='median'"),
        ({"budgets": {"a": 1}}, "budgets= without strata="),
        ({"noise_multiplier": 1, "strata": ["a"]}, "strata= without budgets="),
    ],
)
def test_arguments_at_once(arguments, match):
    with pytest.raises(PrivacyError, match=match):
        DPSGD(**arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"delta": 1.0}, "delta"),
        ({"delta": "1/m"}, "delta"),
        ({"sample_rate": 1.5}, "sample_rate=1.5"),
        ({"sample_rate": 0.5, "expected_batch_size": 3}, "one follows from the other"),
        ({"max_records_per_patient": 0}, "max_records_per_patient=0"),
        ({"physical_batch_size": 0}, "physical_batch_size=0"),
        ({"unit": "visit"}, "unit='visit'"),
    ],
)
def test_arguments_before_training(tmp_path, arguments, match):
    refused(tmp_path, match, dpsgd=private(**arguments))


def test_a_delta_above_one_over_n_is_warned_of(tmp_path):
    with pytest.warns(MemguardWarning, match="delta"):
        trainer(tmp_path, private(delta=0.2)).fit(Mlp(), datamodule=Data(batch_size=20))


@pytest.mark.parametrize("make", [Cox, Contrastive])
def test_losses_that_a_record_alone_does_not_have(tmp_path, make):
    refused(
        tmp_path, r"no parameter of the optimizer a gradient.*opacus: the loss",
        module=make(), dpsgd=private(checks=True, engine="auto"),
    )  # fmt: skip


def test_an_engine_that_does_not_fit_gives_way_to_the_loop(tmp_path):
    dpsgd = private(engine="auto", checks=True)
    with pytest.warns(MemguardWarning, match=r"does not fit this module.*one record at a time"):
        trainer(tmp_path, dpsgd, max_steps=1).fit(Standardized(), datamodule=Data(batch_size=20))
    assert dpsgd.statement().to_json().count('"loop"') == 1


def test_records_as_the_unit_promise_patients_less(tmp_path, unstated):
    dpsgd = private(unit="record", noise_multiplier=2.0)
    trainer(tmp_path, dpsgd, max_steps=1).fit(Mlp(), datamodule=Data(batch_size=20))
    found = dpsgd.statement()
    most = int(np.bincount(Visits().patient_ids).max())
    assert found.record_epsilons[most].value > 2 * dpsgd.epsilon
    assert f"{most} is the most that one patient has" in found.text()


def test_a_step_past_the_ledger(tmp_path):
    class Again(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if trainer.global_step == 1:
                optimizer.step()

    dpsgd = private(physical_batch_size=100)
    run = trainer(tmp_path, dpsgd, Again())
    with pytest.raises(PrivacyError, match="steps of the optimizer, 2 of them accounted"):
        run.fit(Mlp(), datamodule=Data(batch_size=20))
    assert not run.optimizers[0]._optimizer_step_post_hooks
