"""The NAFLD next-code model with differential privacy for patients (DP-SGD), beside the same model without.

    python -m recipes.nafld_dpsgd                      # three small models: under four minutes of one core
    python -m recipes.nafld_dpsgd --epsilon 8 --epochs 40 --patients 8000

Three trainings on the same patients: without privacy, at epsilon 50 and at epsilon 8. `DPSGD` stands beside
`LeakageMonitor` in the Trainer's callbacks, and nothing else is added: model, data and loss are those of
`nafld_next_code`. What differs is ordinary settings, since DP-SGD wants other ones: larger batches, because the noise
of a step is the same however many patients are in it; a larger learning rate, because the steps are fewer; and a small
model, because every parameter gets noise.

Here each patient owns one record, a sequence of codes. With several records a patient (windows, stays, images) the
same `unit="patient"` bounds what all of them together may contribute.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger

from memguard import DPSGD, LeakageMonitor

from .nafld_next_code import NafldData, NextCode

__all__ = ["Outcome", "main"]


@dataclass(frozen=True)
class Outcome:
    """One training.

    Attributes:
        name: What it is called in the table.
        val_loss: Mean over the predicted codes of patients who were held out, in nats.
        monitor: What was found about memorization.
        dpsgd: The private step; ``None`` without privacy.
        seconds: Of wall time.
    """

    name: str
    val_loss: float
    monitor: LeakageMonitor
    dpsgd: DPSGD | None
    seconds: float

    def row(self) -> str:
        """A line of the table."""
        report = self.monitor.report
        assert report is not None
        last, auc = report.curve[-1], report.curve[-1].auc
        found = "-" if auc is None else f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
        flagged = "-" if last.flagged_patients is None else str(last.flagged_patients)
        noise = "-" if self.dpsgd is None else f"{self.dpsgd.noise_multiplier:.3f}"
        return (
            f"{self.name:<16}{noise:>8}{self.val_loss:>10.3f}  {found:<24}{flagged:>8}{self.seconds:>8.0f} s"
        )


HEAD = f"{'':<16}{'noise':>8}{'val_loss':>10}  {'membership AUC (95 %)':<24}{'flagged':>8}{'time':>10}"


def train(args: argparse.Namespace, epsilon: float | None) -> Outcome:
    """One training; without privacy where epsilon is ``None``."""
    start = time.perf_counter()
    name = "no privacy" if epsilon is None else f"epsilon {epsilon:g}"
    out = args.out / name.replace(" ", "-")
    pl.seed_everything(
        args.seed, verbose=False
    )  # of weights and splits; not of the noise, which no seed repeats
    private = epsilon is not None
    data = NafldData(
        args.out / "meds", args.patients, args.held_out, seed=args.seed, batch_size=256 if private else 48
    )
    model = NextCode(
        vocabulary=len(data.sequences.vocabulary), width=32, layers=1, lr=1e-2 if private else 5e-3
    )
    monitor = LeakageMonitor(heldout="val", dirpath=out / "memguard", seed=args.seed)
    dpsgd = None
    if private:
        dpsgd = DPSGD(
            target_epsilon=epsilon,
            delta="1/n",
            max_grad_norm=args.clip,
            unit="patient",
            dirpath=args.out
            / "memguard-dp",  # one folder for all: each statement then names the other trainings
        )
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        callbacks=[monitor] if dpsgd is None else [dpsgd, monitor],
        logger=CSVLogger(out, name="csv", version=""),
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, data)
    val_loss = float(trainer.callback_metrics["val_loss"])
    return Outcome(name, val_loss, monitor, dpsgd, time.perf_counter() - start)


def main(argv: Sequence[str] | None = None) -> list[Outcome]:
    """Train without privacy and at each epsilon, and print what each promises and what was found.

    Args:
        argv: Command line; `None` reads the real one.

    Returns:
        The trainings, in the order of the table.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[50.0, 8.0], help="of each private model")
    parser.add_argument("--epochs", type=int, default=12, help="of each training")
    parser.add_argument("--patients", type=int, default=4000, help="to train on; up to 8,700")
    parser.add_argument("--held-out", type=int, default=1200, help="never trained on")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of a patient's gradient")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/nafld_dpsgd"))
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data are in memory already
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own, about PyTorch
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # one core is enough for so small a model, and leaves the others free

    outcomes = [train(args, epsilon) for epsilon in (None, *args.epsilon)]
    for outcome in outcomes:
        if outcome.dpsgd is not None:
            print(f"\n--- {outcome.name} ---\n{outcome.dpsgd.statement().text()}")
    print(f"\n{args.patients:,} members, {args.held_out:,} held-out patients, {args.epochs} epochs\n\n{HEAD}")
    for outcome in outcomes:
        print(outcome.row())
    print(
        "\nAn AUC near .5 shows that this attack failed; the statement bounds every attack, as far as epsilon goes."
        f"\nThe pages: {args.out}/*/memguard/watch.html. Ledgers and statements: {args.out}/memguard-dp"
    )
    return outcomes


if __name__ == "__main__":
    main()
