"""Small modules and data that references are trained from."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from memguard.references.data import TrainingData

SETTINGS = {"max_epochs": 2, "accelerator": "cpu"}


class Net(pl.LightningModule):
    """A classifier with everything a stack can take."""

    def __init__(
        self, lr: float = 1e-2, width: int = 8, schedule: str = "", optimizer: str = "adamw"
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        rate = self.hparams.lr
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        extra = {"momentum": 0.9} if self.hparams.optimizer == "sgd" else {}
        optimizer = kind[self.hparams.optimizer](self.parameters(), lr=rate, weight_decay=0.01, **extra)
        if self.hparams.schedule == "cosine":
            total = self.trainer.estimated_stepping_batches
            plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}
        if self.hparams.schedule == "epoch":
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]
        return optimizer


class Tied(Net):
    """Two layers with one weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
        self.net[2].weight = self.net[0].weight
        self.register_buffer("scale", torch.full((4,), 0.5))

    def forward(self, x):
        return self.net(x * self.scale)


class Broken(Net):
    """Fails in its first step."""

    def training_step(self, batch, batch_idx):
        raise ValueError("no such column")


def records(n: int = 40, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, 4)).astype(np.float32))
    return TensorDataset(x, (x[:, 0] + 0.5 * x[:, 1] > 0).long())


def data(n: int = 40, seed: int = 0, **changed) -> TrainingData:
    settings = {"batch_size": 8, "patient": np.arange(n), **changed}
    return TrainingData(dataset=records(n, seed), **settings)


def sides(n: int = 40, members: int = 28):
    return np.arange(n), np.arange(n) < members


def same(one, two, **tolerance) -> bool:
    """Whether all weights of two modules are the same."""
    first, second = one.state_dict(), two.state_dict()
    if tolerance:
        return all(torch.allclose(first[n], second[n], **tolerance) for n in first)
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)
