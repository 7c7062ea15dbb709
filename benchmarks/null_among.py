"""Members that are not memorized, among others that are: are their p-values held, and how many flags are false?

    python -m benchmarks.null_among --learned 0.5

The demo's model and data. All members go through the Trainer, but only the gradients of a random share of them
reach the weights. Nothing is memorized of the others, so that every flag on one of them is false. Printed for each
look while training, from train-time losses: all flags, the share of false ones, and the share of the p-values of
those others that lie at or below some levels.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.nn import functional as F

from memguard import LeakageMonitor
from recipes.nafld_next_code import PAD, NafldData, NextCode, Patients, pad

LEVELS = (0.002, 0.01, 0.1, 0.5)


class Selective(NextCode):
    """Learns from those rows of a batch that are in ``learned``; the Trainer's own optimizer has rate 0."""

    def __init__(self, learned: set[tuple[int, ...]], dropout: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.learned = learned
        for part in self.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = dropout
        self.inner = torch.optim.AdamW(self.parameters(), lr=self.lr)

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        rows = [i for i, row in enumerate(batch) if tuple(row[row != PAD].tolist()) in self.learned]
        kept = batch[rows]
        with torch.enable_grad():
            loss = F.cross_entropy(self(kept[:, :-1]).flatten(0, 1), kept[:, 1:].flatten(), ignore_index=PAD)
            self.inner.zero_grad()
            loss.backward()
            self.inner.step()
            self.inner.zero_grad()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Looks(pl.Callback):
    """Prints each look that ranked the members by train-time losses."""

    def __init__(self, monitor: LeakageMonitor, learned: np.ndarray) -> None:
        self.monitor, self.learned, self.last = monitor, learned, None
        self.null: list[np.ndarray] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        look = self.monitor._results.last_look
        if look is None or look is self.last or look.memorization is None:
            return
        self.last, found = look, look.memorization
        flags, others = found.flagged(0.1), ~self.learned[found.patient]
        p = found.p[others]
        self.null.append(p)
        shares = ", ".join(f"{np.mean(p <= level):.4f}" for level in LEVELS)
        false = (flags & others).sum() / max(flags.sum(), 1)
        print(f"epoch {look.epoch:g}: {flags.sum()} flags, {false:.3f} of them false; {shares}", flush=True)

    on_train_end = on_train_epoch_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--learned", type=float, default=0.5, help="share of the members that is learned")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pl.seed_everything(args.seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        data = NafldData(Path(folder) / "meds", 2400, 1200, seed=args.seed)
        members = Patients(data.sequences, "train")
        learned = np.random.default_rng(args.seed).random(len(members)) < args.learned
        model = Selective(
            {tuple(members[i].tolist()) for i in np.flatnonzero(learned)},
            args.dropout,
            vocabulary=len(data.sequences.vocabulary),
        )
        monitor = LeakageMonitor(dirpath=Path(folder) / "out", seed=args.seed, final_evaluation=False)
        looks = Looks(monitor, learned)
        trainer = pl.Trainer(
            max_epochs=args.epochs, accelerator="cpu", callbacks=[monitor, looks], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader(members, batch_size=48, shuffle=True, collate_fn=pad),
                    data.val_dataloader())  # fmt: skip
    for name, part in (("all looks", looks.null), ("the last six", looks.null[-6:])):
        p = np.concatenate(part)
        print(f"{name}: share of p at most {LEVELS}: {', '.join(f'{np.mean(p <= a):.4f}' for a in LEVELS)}")


if __name__ == "__main__":
    main()
