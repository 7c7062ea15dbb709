"""What the monitor adds to an epoch: two Trainers take turns, one with it and one without.

    python -m benchmarks.monitor_overhead                 # the demo's model and data
    python -m benchmarks.monitor_overhead --width 192 --layers 4 --patients 1200 --epochs 8

The arms take turns at every batch, so that each of thousands of pairs is close together in time; a step counts from the
start of its batch to the start of the next one, all callbacks included, and the last step of an epoch holds validation
and the look. An epoch's cost is put together from the medians of the differences, and averaged over pairs of runs.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.turns import one_heap, paired_epochs
from memguard import LeakageMonitor
from recipes.nafld_next_code import NafldData, NextCode, Patients, pad


class SameBatches(NafldData):
    """Shuffles from a generator of its own, so that both arms see the same batches in the same order."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            Patients(self.sequences, "train"),
            batch_size=self.batch_size,
            shuffle=True,
            collate_fn=pad,
            generator=torch.Generator().manual_seed(0),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=3000)
    parser.add_argument("--held-out", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    one_heap()
    torch.set_num_threads(args.threads)
    clocks, probes, ends, wholes = [], [], [], []
    for repeat in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            plain, watched, monitor = pair(args, Path(folder), watched=repeat % 2)
        clocks.append((plain, watched))
        probes += [point.probe_seconds for point in monitor.curve[:-1]]
        ends.append(watched.wall[-1] - plain.wall[-1])  # the last step of the run holds its end too
        wholes.append(sum(watched.wall) / sum(plain.wall) - 1)
    n = sum(p.numel() for p in NextCode(vocabulary=100, width=args.width, layers=args.layers).parameters())
    print(
        f"{args.patients:,} patients, {n:,} parameters, {args.threads} thread(s), {args.repeats} pairs of runs"
    )
    for name in ("wall", "cpu"):
        both = [[np.array(getattr(clock, name)) for clock in clocks_] for clocks_ in clocks]
        print(f"{name} time of an epoch: {cost(both, args.epochs)}")
    print(f"of which the looks themselves: {1e3 * np.median(probes):.0f} ms an epoch")
    whole = 100 * np.median(wholes)
    print(f"end of the run (final evaluation, report) {np.median(ends):+.1f} s; whole run {whole:+.1f} %")


def pair(args, folder: Path, *, watched: int):
    """One plain and one watched run in turns; which of the two Trainers is made first alternates."""
    monitor = LeakageMonitor(dirpath=folder / "watch")

    def arm(number, turn):
        pl.seed_everything(0, verbose=False)
        data = SameBatches(folder / "meds", args.patients, args.held_out)
        model = NextCode(vocabulary=len(data.sequences.vocabulary), width=args.width, layers=args.layers)
        trainer = pl.Trainer(
            max_epochs=args.epochs,
            accelerator="cpu",
            callbacks=[turn, monitor] if number == watched else [turn],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return trainer, model, data

    clocks = paired_epochs(arm, steps=True)
    return clocks[1 - watched], clocks[watched], monitor


def cost(pairs: list[list[np.ndarray]], epochs: int) -> str:
    """What is added to an epoch, from the second on: the steps, and the last one with validation and look.

    How two models happen to lie in memory makes one a per cent or two faster; so the range over the pairs is shown.
    """
    shares, steps, ends, plain_epochs, plain_steps = [], [], [], [], []
    for plain, watched in pairs:
        a, b = (each.reshape(epochs, -1)[1:-1] for each in (plain, watched))
        step, end = float(np.median(b[:, :-1] - a[:, :-1])), float(np.median(b[:, -1] - a[:, -1]))
        epoch = float(np.median(a[:, :-1])) * (a.shape[1] - 1) + float(np.median(a[:, -1]))
        shares.append((step * (a.shape[1] - 1) + end) / epoch)
        steps.append(step), ends.append(end), plain_epochs.append(epoch)
        plain_steps.append(float(np.median(a[:, :-1])))
    return (
        f"{100 * np.mean(shares):+.1f} % (pairs {100 * min(shares):+.1f} to {100 * max(shares):+.1f}); "
        f"{1e3 * np.mean(steps):+.2f} ms on {1e3 * np.mean(plain_steps):.1f} ms a step, "
        f"{1e3 * np.mean(ends):+.0f} ms at the end of an epoch, {np.mean(plain_epochs):.2f} s plain"
    )


if __name__ == "__main__":
    main()
