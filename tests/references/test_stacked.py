"""A stack gives the models that a Trainer gives, or is not used."""

from __future__ import annotations

import logging
import re
from functools import partial

import numpy as np
import pytest
import torch
from _reference_models import SETTINGS, Net, Tied, data, same, sides
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryAccuracy

from memguard.references.halves import halves
from memguard.references.job import Job
from memguard.references.pool import train_pool
from memguard.references.settings import Settings
from memguard.references.stacked import Stack
from memguard.references.together import together
from memguard.references.trial import Trial, trial


def pools(factory, *, n=40, k=4, records=None, patient=None, **settings):
    masks = halves(np.arange(n) if patient is None else patient, np.arange(n) < 28, k)
    records = data(n) if records is None else records
    options = {"in_mask": masks, "trainer": {**SETTINGS, **settings}, "progress": False}
    return [train_pool(factory, records, backend=name, **options) for name in ("sequential", "stacked")]


def losses(module):
    x, y = data().dataset.tensors
    with torch.no_grad():
        return F.cross_entropy(module(x), y, reduction="none").numpy()


@pytest.mark.parametrize(
    "factory",
    [
        Net,
        Tied,
        partial(Net, optimizer="sgd"),
        partial(Net, optimizer="adam"),
        partial(Net, schedule="cosine"),
        partial(Net, schedule="epoch"),
    ],
    ids=["adamw", "tied", "sgd", "adam", "cosine", "epoch"],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_clip_val": 0.05}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}],
    ids=["", "norm", "value"],
)
def test_same_models_as_one_after_another(factory, settings):
    plain, stack = pools(factory, **settings)
    assert (plain.steps, plain.epochs) == (stack.steps, stack.epochs) == ((6,) * 4, (2,) * 4)
    for k, (one, two) in enumerate(zip(plain.modules(), stack.modules(), strict=True)):
        assert same(one, two, atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(losses(one), losses(two), atol=1e-4)
        assert not same(
            two, Job(k=k, factory=factory, data=data(), rows=np.arange(2), settings=SETTINGS, seed=0).module()
        )


@pytest.mark.parametrize("drop_last", [False, True])
def test_halves_of_other_lengths_and_last_batches_of_other_sizes(drop_last):
    # 8 records of one patient: a half has 17 to 24 of them, in 2 to 4 batches an epoch.
    patient = np.concatenate([np.zeros(8, int), 1 + np.arange(32)])
    records = data(patient=patient, batch_size=7, drop_last=drop_last)
    plain, stack = pools(Net, records=records, patient=patient, max_epochs=3)
    assert plain.steps == stack.steps and len(set(plain.steps)) == 2
    assert plain.epochs == stack.epochs
    assert all(
        same(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(plain.modules(), stack.modules(), strict=True)
    )


def test_steps_and_batches_may_be_limited():
    for limit in ({"max_steps": 4, "max_epochs": -1}, {"limit_train_batches": 2}, {"epochs": 1}):
        plain, stack = pools(Net, **limit)
        assert plain.steps == stack.steps
        assert all(
            same(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(plain.modules(), stack.modules(), strict=True)
        )


def jobs(factory, k=4, **settings):
    masks = halves(*sides(), k)
    settings = Settings.of({**SETTINGS, **settings})
    return [
        Job(k=i, factory=factory, data=data(), rows=np.flatnonzero(mask), settings=settings, seed=0)
        for i, mask in enumerate(masks)
    ]


def test_dropout_draws_for_each_model_by_itself():
    class Dropped(Net):
        def training_step(self, batch, batch_idx):
            return F.dropout(torch.ones(64), 0.5).sum() * self.net[0].bias.sum()

    stack = Stack(jobs(Dropped))
    with torch.no_grad():
        stack.tensors["net.0.bias"].fill_(1.0)
    (group,) = together([(k, 0, [torch.zeros(1)]) for k in range(4)], torch.device("cpu"))
    found = stack.losses(group)
    assert len(set(found.tolist())) > 1


class BatchNorm(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Metric(Net):
    def __init__(self):
        super().__init__()
        self.accuracy = BinaryAccuracy()


class ByHand(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Hook(Net):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


class Reads(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss.item() < 9 else None


class Asks(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.current_epoch)


class Counts(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.n += 1
        return super().training_step(batch, batch_idx)


class Replaces(Counts):
    def training_step(self, batch, batch_idx):
        self.n = self.n + 1
        return Net.training_step(self, batch, batch_idx)


class Remembers(Net):
    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch_idx)
        return super().training_step(batch, batch_idx)


class Plateau(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters())
        plan = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "monitor": "train_loss"}}


class Other(Net):
    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters())


@pytest.mark.parametrize(
    ("factory", "settings", "why"),
    [
        (BatchNorm, {}, "BatchNorm1d keeps running statistics"),
        (Metric, {}, "BinaryAccuracy"),
        (ByHand, {}, "optimizes by hand"),
        (Hook, {}, "on_train_batch_end of its own"),
        (Reads, {}, "item"),
        (Asks, {}, "asks its trainer for current_epoch"),
        (Counts, {}, "writes to n|not vmapped|in-place|inplace"),
        (Replaces, {}, "replaces n"),
        (Remembers, {}, "changes attributes"),
        (Plateau, {}, "ReduceLROnPlateau"),
        (Other, {}, "RMSprop"),
        (Net, {"precision": "bf16-mixed"}, "bf16-mixed"),
        (Net, {"accumulate_grad_batches": 2}, "accumulated"),
    ],
)
def test_what_cannot_be_stacked_is_trained_one_after_another_and_the_note_says_why(factory, settings, why):
    found = trial(jobs(factory, **settings))
    assert not found.faster
    assert re.search(why, found.why_not), found.why_not
    assert str(found).startswith("References are trained one after another: they cannot be stacked, ")
    if factory is not Plateau:
        masks = halves(*sides(), 2)
        pool = train_pool(factory, data(), in_mask=masks, trainer={**SETTINGS, **settings}, progress=False)
        assert pool.backend == "sequential" and len(pool.notes) == 1


def test_one_reference_is_no_stack():
    assert trial(jobs(Net, k=1)).why_not == "there is one reference or none"


def test_the_faster_way_is_chosen_and_both_times_are_told(monkeypatch):
    found = trial(jobs(Net))
    assert found.sequential > 0 and found.stacked > 0
    assert found.faster == (found.stacked < found.sequential)
    for stacked, name in ((0.5, "stacked"), (2.0, "sequential")):
        told = Trial(models=2, sequential=1.0, stacked=stacked)
        monkeypatch.setattr("memguard.references.pool.trial", lambda jobs, told=told: told)
        pool = train_pool(Net, data(), in_mask=halves(*sides(), 2), trainer=SETTINGS, progress=False)
        assert pool.backend == name and pool.notes == (str(told),)
        assert "1000.0 ms one after another" in pool.notes[0]


def test_a_trial_leaves_no_trace():
    torch.manual_seed(3)
    before = torch.rand(2)
    torch.manual_seed(3)
    level = logging.getLogger("lightning.pytorch").level
    trial(jobs(Net))
    assert torch.equal(torch.rand(2), before) and logging.getLogger("lightning.pytorch").level == level
