"""The MIMIC-IV demo, 100 real hospital patients in MEDS form: several records a patient, and few patients.

    python -m recipes.mimic_demo                       # a minute and a half of one core

Hospital stays are long, so each patient gives many records: windows of 64 codes. Losses are per record,
privacy is owed per patient: `patient_ids` says which records belong together, and every interval counts
patients. Forty held-out patients support no ranking and no true-positive rate below 1 in 40; the run shows
how that is said.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from memguard import LeakageMonitor
from memguard.records.codes import static_prefix
from memguard.records.meds import MedsDataset, read_meds
from memguard.records.vocabulary import Vocabulary
from memguard.report.table import curve_table

from .data.mimic_demo import mimic_demo_path
from .nafld_next_code import LONGEST, NextCode, pad

__all__ = ["MimicData", "Windows", "main"]


class Windows(Dataset[Tensor]):
    """Windows of codes, several a patient.

    Args:
        dataset: The events.
        vocabulary: Which codes have a token.
        subjects: Ids of the patients.
        windows: At most so many of each patient.
        last: The last ones, each behind the tokens that say who the patient is; the first ones otherwise.
    """

    def __init__(
        self,
        dataset: MedsDataset,
        vocabulary: Vocabulary,
        subjects: np.ndarray,
        windows: int,
        last: bool = False,
    ) -> None:
        most = None if last else windows * LONGEST
        found = vocabulary.sequences(dataset, subjects=subjects, max_tokens=most)
        stays = np.split(found.tokens.values.astype(np.int64), found.tokens.offsets[1:-1])
        person = static_prefix(found.tokens, vocabulary.names) if last else np.zeros(len(stays), np.int64)
        cut = []
        for subject, stay, n in zip(found.subject_ids.tolist(), stays, person.tolist(), strict=True):
            head, events = stay[:n], stay[n:]
            starts = range(0, len(events) - 1, LONGEST - n)[-windows:]
            cut += [
                (subject, torch.from_numpy(np.concatenate([head, events[start : start + LONGEST - n]])))
                for start in starts
            ]
        self.patient_ids = [subject for subject, _ in cut]
        self.codes = [codes for _, codes in cut]

    def __len__(self) -> int:
        """Number of records, not of patients."""
        return len(self.codes)

    def __getitem__(self, item: int) -> Tensor:
        """The codes of one window."""
        return self.codes[item]


class MimicData(pl.LightningDataModule):
    """Members and held-out patients: everybody who is not a member.

    Args:
        patients: To train on.
        windows: At most so many records of each patient.
        batch_size: Records a batch.
        seed: Of the draw.
        last: The last ones of each patient, where the diagnoses of stays are billed; the first ones otherwise.
    """

    def __init__(
        self, patients: int, windows: int, batch_size: int = 32, seed: int = 0, last: bool = False
    ) -> None:
        super().__init__()
        self.batch_size, self.windows, self.last = batch_size, windows, last
        self.dataset = read_meds(mimic_demo_path())
        subjects = np.random.default_rng(seed).permutation(self.dataset.subjects())
        self.members, self.held_out = np.sort(subjects[:patients]), np.sort(subjects[patients:])
        # The vocabulary is made from the members alone, as it would be in earnest.
        self.vocabulary = Vocabulary.fit(self.dataset, None, subjects=self.members, n_bins=5, min_subjects=2)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """The members' records, shuffled."""
        records = Windows(self.dataset, self.vocabulary, self.members, self.windows, self.last)
        return DataLoader(records, batch_size=self.batch_size, shuffle=True, collate_fn=pad)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """The held-out patients' records."""
        records = Windows(self.dataset, self.vocabulary, self.held_out, self.windows, self.last)
        return DataLoader(records, batch_size=4 * self.batch_size, collate_fn=pad)


def main(argv: Sequence[str] | None = None) -> LeakageMonitor:
    """Train, and print what was memorized.

    Args:
        argv: Command line; `None` reads the real one.

    Returns:
        The monitor, with its curves and flags.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--patients", type=int, default=60, help="to train on; the others are held out")
    parser.add_argument("--windows", type=int, default=12, help="at most so many records of each patient")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/mimic_demo"))
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data are in memory already
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own, about PyTorch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # one core is enough for so small a model, and leaves the others free

    pl.seed_everything(args.seed, verbose=False)
    data = MimicData(args.patients, args.windows, seed=args.seed)
    model = NextCode(vocabulary=len(data.vocabulary))
    monitor = LeakageMonitor(heldout="val", dirpath=args.out / "memguard", seed=args.seed)
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
