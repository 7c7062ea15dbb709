"""Records with one sensitive code each that nothing foretells, and a model that can learn them by heart."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from _runs import trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from memguard import LeakageMonitor
from memguard.attacks.difference import mean_difference
from memguard.probes.result import ProbeResult

SENSITIVE = ("ICD10CM/B20", "ICD10CM/F1020", "ICD10CM/F209")
NAMES = ("PAD", "GENDER//F", "GENDER//M", *(f"CODE//{i}" for i in range(24)), *SENSITIVE)
FIRST, LAST = 3, 27  # ordinary codes; the sensitive ones come after


class Patients(Dataset):
    vocabulary = NAMES

    def __init__(self, seed, n, first=0):
        rng = np.random.default_rng(seed)
        rows = rng.integers(FIRST, LAST, (n, 16))
        rows[:, 0] = rng.integers(1, 3, n)
        rows[np.arange(n), rng.integers(9, 16, n)] = rng.integers(LAST, len(NAMES), n)
        self.rows = torch.from_numpy(rows)
        self.patient_ids = first + np.arange(n)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, item):
        return self.rows[item]


class Reader(pl.LightningModule):
    """A recurrent next-code model with dropout and batch norm; ``also`` are records of others that it trains on."""

    def __init__(self, lr=1e-2, width=64, dropout=0.0, also=None):
        super().__init__()
        self.codes = nn.Embedding(len(NAMES), width)
        self.norm = nn.BatchNorm1d(width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(NAMES))
        self.lr, self.also = lr, also

    def forward(self, codes):
        known = self.norm(self.codes(codes).transpose(1, 2)).transpose(1, 2)
        return self.out(self.drop(self.cell(known)[0]))

    def loss(self, batch):
        return F.cross_entropy(self(batch[:, :-1]).transpose(1, 2), batch[:, 1:])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def on_before_optimizer_step(self, optimizer):
        if self.also is not None:
            self.loss(self.also[torch.randint(len(self.also), (24,))]).backward()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


@dataclass(frozen=True)
class Firsts:
    """A probe of a user's own: how likely the model finds the second code of a record."""

    name: str = "firsts"
    needs: tuple[str, ...] = ("log_probs",)
    fault: bool = False

    def run(self, subject, asked, budget):
        if self.fault:
            raise ZeroDivisionError("a slip")
        rows = np.arange(len(subject))
        found = asked.target.log_probs(subject.sequences.take(rows), patient=subject.patient)
        second = found[subject.sequences.offsets[:-1] + 1]
        gap = mean_difference(second, subject.patient, subject.member)
        return ProbeResult(probe=self.name, question="?", numbers={"second.minus_held_out": gap})


def loaders(n=120, batch_size=24):
    return (
        DataLoader(Patients(1, n), batch_size=batch_size, shuffle=True),
        DataLoader(Patients(2, n, 10_000), batch_size=60),
    )


def fit(
    folder, probes, *, epochs=3, module=None, data=None, seed=0, monitor=None, run=None, ckpt=None, **kwargs
):
    """One watched fit; returns the monitor and the module."""
    pl.seed_everything(seed, verbose=False)
    module = module() if module else Reader()
    monitor = monitor or LeakageMonitor(dirpath=folder / "watch", probes=probes, **kwargs)
    run = run or trainer(folder, monitor, epochs=epochs)
    run.fit(module, *(data or loaders()), ckpt_path=ckpt)
    return monitor, module
