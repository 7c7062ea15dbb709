"""The smallest run with a monitor: a made-up cohort, a logistic regression, one callback."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from memguard import LeakageMonitor


class Risk(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.net(x).squeeze(-1), y)

    def validation_step(self, batch, batch_idx):
        loss = self.training_step(batch, batch_idx)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def cohort(patients, first_id, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(patients, 10, generator=random)
    y = torch.bernoulli(torch.sigmoid(x[:, 0]), generator=random)
    data = TensorDataset(x, y)
    data.patient_ids = list(range(first_id, first_id + patients))
    return data


def main(folder="runs/minimal", epochs=20):
    monitor = LeakageMonitor(dirpath=folder)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Risk(),
        DataLoader(cohort(400, 0, seed=1), batch_size=32, shuffle=True),
        DataLoader(cohort(400, 400, seed=2), batch_size=128),
    )
    return monitor


if __name__ == "__main__":
    print(main().report.verdict())
