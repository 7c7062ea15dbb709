"""A small world of code sequences in which a model can learn the population and memorize patients."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from memguard import LeakageMonitor

VOCABULARY, LENGTH = 40, 14


def sequences(n, seed):
    """(n, LENGTH) codes: a noisy successor chain, learnable from others; PAD is 0."""
    rng = np.random.default_rng(seed)
    codes = np.zeros((n, LENGTH), np.int64)
    codes[:, 0] = rng.integers(1, VOCABULARY, n)
    step = rng.integers(1, 4, n)
    for t in range(1, LENGTH):
        follow = (codes[:, t - 1] - 1 + step) % (VOCABULARY - 1) + 1
        codes[:, t] = np.where(rng.random(n) < 0.6, follow, rng.integers(1, VOCABULARY, n))
    lengths = rng.integers(8, LENGTH + 1, n)
    return torch.from_numpy(np.where(np.arange(LENGTH) < lengths[:, None], codes, 0))


class Visits(Dataset):
    def __init__(self, n, seed, first_patient=0, per_patient=1):
        self.codes = sequences(n, seed)
        self.patient_ids = first_patient + np.arange(n) // per_patient

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, i):
        return {"codes": self.codes[i]}


class Forecaster(pl.LightningModule):
    def __init__(self, lr=5e-3, width=64, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, VOCABULARY)
        self.lr = lr

    def loss(self, batch):
        codes = batch["codes"]
        logits = self.out(self.drop(self.rnn(self.embed(codes[:, :-1]))[0]))
        return F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], ignore_index=0)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def loaders(n=240, held_out=160, *, per_patient=1, batch_size=32, **kwargs):
    train = Visits(n, 1, per_patient=per_patient)
    held = Visits(held_out, 2, first_patient=10_000, per_patient=per_patient)
    return (
        DataLoader(train, batch_size=batch_size, shuffle=True, **kwargs),
        DataLoader(held, batch_size=64),
    )


def trainer(tmp_path, *callbacks, epochs=3, **kwargs):
    options = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "callbacks": list(callbacks),
        "logger": CSVLogger(tmp_path, name="csv", version=""),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**{**options, **kwargs})


def watched(tmp_path, *, epochs=3, monitor=None, data=None, module=None, seed=0, **kwargs):
    """One fit; returns the monitor, the trainer and the module."""
    pl.seed_everything(seed, verbose=False)
    module = module or Forecaster()
    monitor = monitor or LeakageMonitor(dirpath=tmp_path / "watch")
    run = trainer(tmp_path, monitor, epochs=epochs, **kwargs)
    train, held = data or loaders()
    run.fit(module, train, held)
    return monitor, run, module
