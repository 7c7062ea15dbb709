"""Mitigations compared on real patients (NAFLD): a next-code transformer, each record a part of a patient's history.

    python -m recipes.compare_nafld                                  # the whole study: about an hour of one core
    python -m recipes.compare_nafld --arms flood "DP-SGD by patient, epsilon 50"     # these beside the baseline
    python -m recipes.compare_nafld --out runs/compare_nafld         # goes on where it was stopped

The study itself is `compare_nafld.yaml`, beside this file; ``memguard compare recipes/compare_nafld.yaml`` runs it too.
A history is cut into several records, so that noise for a record and noise for a patient are not the same promise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from memguard import compare
from memguard.comparing.written import read_study
from memguard.report.comparison import Comparison

from .data.nafld import NafldSequences, nafld_sequences
from .nafld_next_code import PAD, pad

__all__ = ["Histories", "NafldHistories", "main", "run"]

STATIC = 2  # age band and sex stand before every part


class Histories(Dataset[Tensor]):
    """Histories in parts: age band, sex, then at most ``length`` codes of one patient.

    Args:
        sequences: All patients.
        split: Which of them: "train" or "tuning".
        length: Codes of a record, without age and sex.
    """

    def __init__(self, sequences: NafldSequences, split: str, length: int) -> None:
        self.records: list[Tensor] = []
        patients: list[int] = []
        rows = sequences.rows(split)
        for row, patient in zip(sequences.padded(rows), sequences.patient_ids[rows], strict=True):
            codes = row[row != PAD]
            for start in range(STATIC, len(codes), length):
                part = codes[start : start + length]
                if start == STATIC or len(part) >= length // 2:  # a short rest is no record of its own
                    self.records.append(torch.from_numpy(np.concatenate([codes[:STATIC], part])))
                    patients.append(int(patient))
        self.patient_ids = np.array(patients)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    def __getitem__(self, item: int) -> Tensor:
        """The codes of one record."""
        return self.records[item]


class NafldHistories(pl.LightningDataModule):
    """Patients to train on and patients who are held out, with one to three records each.

    Args:
        directory: Where the MEDS data set lies, or will lie.
        patients: To train on; each model of the study sees half of them.
        held_out: Never trained on.
        length: Codes of a record.
        batch_size: Records a batch.
        seed: Of the draw.
    """

    def __init__(
        self,
        directory: str = "runs/compare_nafld/meds",
        patients: int = 1200,
        held_out: int = 800,
        length: int = 24,
        batch_size: int = 48,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.length, self.batch_size = length, batch_size
        self.sequences = nafld_sequences(
            directory, seed=seed, sizes=(patients, held_out, 0), drop_copies=True, tails=True
        )

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Records to train on, shuffled."""
        records = Histories(self.sequences, "train", self.length)
        return DataLoader(records, batch_size=self.batch_size, shuffle=True, collate_fn=pad)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Records of held-out patients."""
        records = Histories(self.sequences, "tuning", self.length)
        return DataLoader(records, batch_size=4 * self.batch_size, collate_fn=pad)


def run(study: Path, out: str, argv: Sequence[str] | None) -> Comparison:
    """Run a study and say what it found.

    Args:
        study: Its YAML file.
        out: Where its trainings and its page go.
        argv: Command line; `None` reads the real one.
    """
    parser = argparse.ArgumentParser(description=f"Compare mitigations as {study.name} says.")
    parser.add_argument("--arms", nargs="+", help="some of them, beside the baseline")
    parser.add_argument("--backend", choices=("sequential", "ray"), default="sequential")
    parser.add_argument("--workers", type=int, help="trainings at a time, with --backend ray")
    parser.add_argument("--out", type=Path, default=Path(out))
    args = parser.parse_args(argv)
    # An installed memguard brings the recipes under another name than the one that stands in the study.
    sys.modules.setdefault("recipes", sys.modules[__package__])
    torch.set_num_threads(1)  # one core is enough for so small a model, and leaves the others free
    found = compare(
        read_study(study), folder=args.out, arms=args.arms, backend=args.backend, ray_workers=args.workers
    )
    written = found.save(args.out)
    print(f"\n{found}\n\nThe page: {written['page']}")
    return found


def main(argv: Sequence[str] | None = None) -> Comparison:
    """Run the study.

    Args:
        argv: Command line; `None` reads the real one.
    """
    return run(Path(__file__).with_suffix(".yaml"), "runs/compare_nafld", argv)


if __name__ == "__main__":
    main()
