"""Small modules, data and a driver callback shared by the capture tests."""

from __future__ import annotations

import random

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from memguard.capture import Capture

N, WIDTH, CLASSES = 44, 5, 3


class Rows(Dataset):
    """Record i has x[0] == i, so that a batch tells by its content which records it holds."""

    def __init__(self, n=N, seed=0):
        rng = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, WIDTH, generator=rng)
        self.x[:, 0] = torch.arange(n)
        self.y = torch.randint(0, CLASSES, (n,), generator=rng)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Codes(Dataset):
    """Code sequences (B, T); the first code of record i is i."""

    def __init__(self, n=N, length=7, vocabulary=64, seed=0):
        rng = torch.Generator().manual_seed(seed)
        self.codes = torch.randint(1, vocabulary, (n, length), generator=rng)
        self.codes[:, 0] = torch.arange(n)
        keep = torch.randint(3, length + 1, (n,), generator=rng)
        self.keep = torch.arange(length)[None] < keep[:, None]

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, i):
        return {"codes": self.codes[i], "keep": self.keep[i]}


class Notes:
    """Out of reach of whatever restores the attributes of a module."""

    __slots__ = ("train", "val")

    def __init__(self):
        self.train, self.val = [], []

    def __getitem__(self, stage):
        return getattr(self, stage)

    def __deepcopy__(self, memo):
        return self


class Noted:
    """Notes, beside each step, the records by content and the losses by hand."""

    def note(self, stage, ids, by_hand):
        if not hasattr(self, "noted"):
            object.__setattr__(self, "noted", Notes())
        with torch.inference_mode(False):
            self.noted[stage].append((ids.detach().long().clone(), by_hand.detach().float().clone()))


class Classifier(Noted, pl.LightningModule):
    def __init__(self, dropout=0.2, log=True, batch_size=8):
        super().__init__()
        self.batch_size = batch_size
        self.net = nn.Sequential(
            nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, CLASSES)
        )
        self.do_log = log
        self.losses = []

    def scale(self, x):
        return torch.cat([x[:, :1] / N, x[:, 1:]], 1)

    def loss(self, batch, stage):
        x, y = batch
        logits = self.net(self.scale(x).to(self.net[0].weight.dtype))
        self.note(stage, x[:, 0], by_hand(logits, y))
        return F.cross_entropy(logits, y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch, "train")
        if self.do_log:
            self.log("loss", loss)
        self.losses.append(loss.detach().clone())
        return loss

    def validation_step(self, batch, batch_idx):
        return self.loss(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class NextCode(Noted, pl.LightningModule):
    """Next-code model with flattened targets and padded positions."""

    def __init__(self, vocabulary=64, width=16, batch_size=8):
        super().__init__()
        self.batch_size = batch_size
        self.embed, self.rnn = nn.Embedding(vocabulary, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)
        self.losses = []

    def loss(self, batch, stage):
        codes, keep = batch["codes"], batch["keep"]
        logits = self.head(self.rnn(self.embed(codes[:, :-1]))[0])
        target = codes[:, 1:].masked_fill(~keep[:, 1:], -100)
        hand = by_hand(logits.reshape(-1, logits.shape[-1]), target.reshape(-1).clamp(min=0)).view_as(target)
        hand = (hand * (target != -100)).sum(1) / (target != -100).sum(1)
        self.note(stage, codes[:, 0], hand)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch, "train")
        self.losses.append(loss.detach().clone())
        return loss

    def validation_step(self, batch, batch_idx):
        return self.loss(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def by_hand(logits, y):
    return -torch.log_softmax(logits.float(), -1).gather(1, y[:, None]).squeeze(1)


class Driver(pl.Callback):
    """The smallest user of Capture."""

    def __init__(self, **kwargs):
        self.capture = Capture(**kwargs)
        self.train, self.val = [], []

    def setup(self, trainer, pl_module, stage):
        if stage == "fit":
            self.capture.install(trainer, pl_module)

    def teardown(self, trainer, pl_module, stage):
        self.capture.restore()

    def on_exception(self, trainer, pl_module, exception):
        self.capture.restore()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        seen = self.capture.last_train
        self.train.append(None if seen is None else (seen.positions, seen.loss.copy(), seen.tokens.copy()))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            seen = self.capture.last_val(dataloader_idx)
            self.val.append(None if seen is None else (seen.positions, seen.loss.copy(), seen.tokens.copy()))


def trainer(callbacks=(), **kwargs):
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**{**settings, **kwargs}, callbacks=list(callbacks))


def seed_everything(seed=11):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def same_rng(a, b):
    return torch.equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and a[2] == b[2]


def fit(make, make_loaders, *, watched, driver=None, loaders_kw=None, **kwargs):
    """One fit from a fixed seed; returns (module, driver, RNG state after, trainer)."""
    seed_everything()
    module = make()
    driver = driver or (Driver() if watched else None)
    run = trainer([driver] if watched else [], **kwargs)
    run.fit(module, *make_loaders())
    return module, driver, rng_state(), run


def assert_same_run(a, b):
    """Weights, losses and randomness bitwise equal."""
    for (name, p), (_, q) in zip(a[0].state_dict().items(), b[0].state_dict().items(), strict=True):
        assert torch.equal(p, q), name
    assert len(a[0].losses) == len(b[0].losses)
    assert all(torch.equal(p, q) for p, q in zip(a[0].losses, b[0].losses, strict=True))
    assert same_rng(a[2], b[2])


def assert_exact(module, driver, *, stage="train", rtol=2e-5, atol=2e-6):
    """Every step captured, ids by content, losses by hand."""
    seen, noted = getattr(driver, stage), module.noted[stage]
    assert len(seen) == len(noted) > 0
    for got, (ids, loss) in zip(seen, noted, strict=True):
        assert got is not None
        np.testing.assert_array_equal(got[0], ids.numpy())
        np.testing.assert_allclose(got[1], loss.numpy(), rtol=rtol, atol=atol)


def loaders(n=N, batch_size=8, data=Rows, val=True, **kwargs):
    def make():
        train = DataLoader(data(n), batch_size=batch_size, **{"shuffle": True, **kwargs})
        return (train, DataLoader(data(24, seed=1), batch_size=8)) if val else (train,)

    return make
