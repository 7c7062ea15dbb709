"""A small next-code transformer on real patients (NAFLD), watched while it trains.

    python -m recipes.nafld_next_code                  # about two minutes of one core
    python -m recipes.nafld_next_code --epochs 6       # stop near the best held-out epoch

The model, the data set and the loader know nothing of memguard: one callback is added to the Trainer, and
nothing else. The run is trained past its best held-out epoch on purpose, so that the leak can be seen.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from memguard import LeakageMonitor, LightProbes
from memguard.report.figures import save_png
from memguard.report.probed import probes_markdown
from memguard.report.table import curve_table

from .data.nafld import NafldSequences, nafld_sequences

__all__ = ["NafldData", "NextCode", "Patients", "main"]

PAD = 0
LONGEST = 64
SENSITIVE = Path(__file__).parent / "data" / "nafld_sensitive.toml"


class NextCode(pl.LightningModule):
    """A causal transformer that predicts each code from those before it.

    Args:
        vocabulary: Number of tokens, padding included.
        width: Of the embeddings; the feed-forward layers are four times as wide.
        layers: Transformer blocks.
        lr: Learning rate of AdamW.
        dropout: In the blocks.
        weight_decay: Of AdamW.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        layers: int = 2,
        lr: float = 3e-3,
        dropout: float = 0.0,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.codes = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(LONGEST, width)
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, vocabulary)
        self.lr, self.weight_decay = lr, weight_decay

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of the next code at each place: (B, T) tokens in, (B, T, vocabulary) out."""
        places = torch.arange(codes.shape[1], device=codes.device)
        mask = nn.Transformer.generate_square_subsequent_mask(codes.shape[1], device=codes.device)
        hidden = self.blocks(self.codes(codes) + self.places(places), mask=mask, is_causal=True)
        return self.out(hidden)

    def _loss(self, batch: Tensor) -> Tensor:
        logits = self(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=PAD)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Mean loss over the predicted codes of the batch."""
        loss = self._loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The same loss on patients who are held out."""
        loss = self._loss(batch)
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at a constant learning rate."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


class Patients(Dataset[Tensor]):
    """One sequence of codes a patient.

    Args:
        sequences: All patients.
        split: Which of them: "train" or "tuning".
    """

    def __init__(self, sequences: NafldSequences, split: str) -> None:
        rows = sequences.rows(split)
        tokens = torch.from_numpy(sequences.padded(rows, LONGEST))
        self.tokens = [row[row != PAD] for row in tokens]
        self.patient_ids = sequences.patient_ids[rows]

    def __len__(self) -> int:
        """Number of patients."""
        return len(self.tokens)

    def __getitem__(self, item: int) -> Tensor:
        """The codes of one patient."""
        return self.tokens[item]


def pad(patients: list[Tensor]) -> Tensor:
    """A batch as wide as its longest patient."""
    return pad_sequence(patients, batch_first=True, padding_value=PAD)


class NafldData(pl.LightningDataModule):
    """Members and held-out patients, drawn at random from those with enough events.

    Args:
        directory: Where the MEDS data set lies, or will lie.
        patients: To train on.
        held_out: Never trained on: the validation set.
        batch_size: Patients a batch.
        seed: Of the draw.
    """

    def __init__(
        self, directory: Path, patients: int, held_out: int, batch_size: int = 48, seed: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.sequences = nafld_sequences(
            directory, seed=seed, sizes=(patients, held_out, 0), drop_copies=True, tails=True
        )

    def train_dataloader(self) -> DataLoader[Tensor]:
        """The members, shuffled."""
        return DataLoader(
            Patients(self.sequences, "train"), batch_size=self.batch_size, shuffle=True, collate_fn=pad
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The held-out patients."""
        return DataLoader(Patients(self.sequences, "tuning"), batch_size=4 * self.batch_size, collate_fn=pad)


def main(argv: Sequence[str] | None = None) -> LeakageMonitor:
    """Train, and print what was memorized.

    Args:
        argv: Command line; `None` reads the real one.

    Returns:
        The monitor, with its curves and flags.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--patients", type=int, default=2400, help="to train on")
    parser.add_argument("--held-out", type=int, default=1200, help="never trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/nafld_next_code"))
    parser.add_argument(
        "--probes",
        nargs="*",
        metavar="NAME",
        help="of the audit, to ask while training: attribute, copies, ...",
    )
    parser.add_argument(
        "--share", type=float, default=0.02, help="of the training time, that --probes may cost"
    )
    parser.add_argument("--picture", type=Path, help="also draw the curves into this PNG")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data are in memory already
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own, about PyTorch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # one core is enough for so small a model, and leaves the others free

    pl.seed_everything(args.seed, verbose=False)
    data = NafldData(args.out / "meds", args.patients, args.held_out, seed=args.seed)
    model = NextCode(vocabulary=len(data.sequences.vocabulary))
    probes = None
    if args.probes:  # vocabulary and adapter are found; which codes are sensitive a person has to say
        probes = LightProbes(args.probes, share=args.share, sensitive=SENSITIVE)
    monitor = LeakageMonitor(heldout="val", dirpath=args.out / "memguard", seed=args.seed, probes=probes)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        callbacks=[monitor],
        logger=[
            CSVLogger(args.out, name="csv", version=""),
            TensorBoardLogger(args.out, name="tensorboard", version=""),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, data)

    seconds = time.perf_counter() - start
    print(f"\n{args.patients:,} members and {args.held_out:,} held-out patients in {seconds:.0f} s")
    if monitor.report is not None:
        print(f"\n{fill(monitor.report.verdict(), 80)}\n\n{curve_table(monitor.report, max_rows=24)}")
        if probes is not None:
            print(f"\n{probes_markdown(monitor.report)}")
            print("\n".join(note for note in monitor.report.notes if "probe" in note))
        if args.picture is not None:
            save_png(monitor.report, args.picture)
    print(f"\nThe page: {monitor.dirpath}/watch.html\nLogs: tensorboard --logdir {args.out}")
    return monitor


if __name__ == "__main__":
    main()
