"""A tabular classifier of death in hospital (SUPPORT2), watched while it trains.

    python -m recipes.support2_mortality               # half a minute of one core

9,105 real, seriously ill patients; one row a patient, so each loss is in nats per record. In a table this wide
nearly every row is the only one of its kind: `quasi_identifiers=` names what somebody else may know of a patient, and
who is alone with that counts as identifiable. The run is trained past its best
held-out epoch on purpose, so that the leak can be seen.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from memguard import LeakageMonitor
from memguard.report.table import curve_table

from .data.support2 import Support2, support2

__all__ = ["Mortality", "Patients", "Support2Data", "main"]

# What somebody who knows a patient may know of the table too. Age is counted in bands.
KNOWN = ("age", "sex", "race", "dzgroup")

Batch = tuple[Tensor, Tensor]


class Mortality(pl.LightningModule):
    """A multilayer perceptron with one logit: died in hospital, or not.

    Args:
        features: Columns of the table.
        width: Of the two hidden layers.
        lr: Learning rate.
        dropout: After each hidden layer.
        weight_decay: Of the optimizer.
        optimizer: "adamw" or "sgd". Noise for privacy wants the second: AdamW makes steps of one size of it.
    """

    def __init__(
        self,
        features: int,
        width: int = 64,
        lr: float = 1e-3,
        dropout: float = 0.0,
        weight_decay: float = 0.0,
        optimizer: Literal["adamw", "sgd"] = "adamw",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        drop = [nn.Dropout(dropout)] if dropout else []
        first, second = nn.Linear(features, width), nn.Linear(width, width)
        self.net = nn.Sequential(first, nn.ReLU(), *drop, second, nn.ReLU(), *drop, nn.Linear(width, 1))
        self.lr, self.weight_decay, self.optimizer = lr, weight_decay, optimizer

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (B, features) in, (B,) out."""
        return self.net(x).squeeze(-1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy of the batch."""
        x, died = batch
        loss = F.binary_cross_entropy_with_logits(self(x), died)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The same loss on patients who are held out."""
        x, died = batch
        loss = F.binary_cross_entropy_with_logits(self(x), died)
        self.log("val_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """At a constant learning rate."""
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.AdamW
        return kind(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


class Patients(TensorDataset):
    """Features and outcome of the patients of one split.

    Args:
        table: All patients.
        split: Which of them: "train" or "tuning".
    """

    def __init__(self, table: Support2, split: str) -> None:
        rows = table.rows(split)
        super().__init__(torch.from_numpy(table.x[rows]), torch.from_numpy(table.y[rows]).float())
        self.patient_ids = table.patient_ids[rows]


class Support2Data(pl.LightningDataModule):
    """Members and held-out patients, drawn at random.

    Args:
        patients: To train on.
        held_out: Never trained on: the validation set.
        batch_size: Patients a batch.
        seed: Of the draw.
    """

    def __init__(self, patients: int, held_out: int, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.table = support2(seed=seed, sizes=(patients, held_out, 0))

    def train_dataloader(self) -> DataLoader[Batch]:
        """The members, shuffled."""
        return DataLoader(Patients(self.table, "train"), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The held-out patients."""
        return DataLoader(Patients(self.table, "tuning"), batch_size=8 * self.batch_size)


def main(argv: Sequence[str] | None = None) -> LeakageMonitor:
    """Train, and print what was memorized.

    Args:
        argv: Command line; `None` reads the real one.

    Returns:
        The monitor, with its curves and flags.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--patients", type=int, default=4000, help="to train on")
    parser.add_argument("--held-out", type=int, default=2000, help="never trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/support2_mortality"))
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data are in memory already
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own, about PyTorch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # one core is enough for so small a model, and leaves the others free

    pl.seed_everything(args.seed, verbose=False)
    data = Support2Data(args.patients, args.held_out, seed=args.seed)
    model = Mortality(features=len(data.table.features))
    monitor = LeakageMonitor(
        heldout="val",
        quasi_identifiers=data.table.columns(*KNOWN),
        dirpath=args.out / "memguard",
        seed=args.seed,
    )
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        callbacks=[monitor],
        logger=CSVLogger(args.out, name="csv", version=""),
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, data)

    if monitor.report is not None:
        print(f"\n{fill(monitor.report.verdict(), 80)}\n\n{curve_table(monitor.report)}")
    print(f"\nThe page: {monitor.dirpath}/watch.html")
    return monitor


if __name__ == "__main__":
    main()
