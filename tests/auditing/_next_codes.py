"""A small next-code model, its patients and its training, for the tests of the audit."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from memguard.probes.asked import Budget

NAMES = (
    "PAD",
    "BOS",
    "AGE//30-40",
    "AGE//80-90",
    "GENDER//F",
    "GENDER//M",
    *(f"CODE//{i}" for i in range(24)),
)
QUICK = {"progress": False, "budget": Budget(patients=12, samples=2)}


class Codes(Dataset):
    """Records ``(n, 12)``: who the patient is in three tokens, then nine codes; so many records of each patient."""

    def __init__(self, seed, n, first, each=2):
        rng = np.random.default_rng(seed)
        heads = np.stack([np.ones(n, int), rng.integers(2, 4, n), rng.integers(4, 6, n)], 1)
        self.rows = torch.from_numpy(np.concatenate([heads, rng.integers(6, 30, (n, 9))], 1))
        self.patient_ids = [f"p{first + i // each}" for i in range(n)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, item):
        return self.rows[item]


class Data(pl.LightningDataModule):
    """As many records on both sides, or ``held`` held out."""

    def __init__(self, n=80, held=None, *, each=2, overlap=False, vocabulary=NAMES):
        super().__init__()
        self.vocabulary = vocabulary
        self.train = Codes(0, n, 0, each)
        self.held = Codes(1, n if held is None else held, 0 if overlap else n, each)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.held, batch_size=32)


class Next(pl.LightningModule):
    def __init__(self, width=48, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.codes = nn.Embedding(len(NAMES), width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, len(NAMES))

    def forward(self, codes):
        return self.out(self.cell(self.codes(codes))[0])

    def loss(self, batch):
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), ignore_index=0)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


def fitted(data, folder, epochs=25, callbacks=()):
    pl.seed_everything(0, verbose=False)
    module = Next()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data)
    return module
