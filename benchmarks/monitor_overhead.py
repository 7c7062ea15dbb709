"""What the monitor adds to an epoch: two Trainers take turns, one with it and one without.

    python -m benchmarks.monitor_overhead                 # the demo's model and data
    python -m benchmarks.monitor_overhead --width 192 --layers 4 --patients 1200 --epochs 8

The arms take turns at every batch, so that each of thousands of pairs is close together in time; a step counts from the
start of its batch to the start of the next one, all callbacks included, and the last step of an epoch holds validation
and the look. An epoch's cost is put together from the medians of the differences.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch

from benchmarks.turns import paired_epochs
from memguard import LeakageMonitor
from recipes.nafld_next_code import NafldData, NextCode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=3000)
    parser.add_argument("--held-out", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        monitor = LeakageMonitor(dirpath=Path(folder) / "watch")

        def arm(number, turn):
            pl.seed_everything(number, verbose=False)
            data = NafldData(Path(folder) / "meds", args.patients, args.held_out)
            model = NextCode(vocabulary=len(data.sequences.vocabulary), width=args.width, layers=args.layers)
            trainer = pl.Trainer(
                max_epochs=args.epochs,
                accelerator="cpu",
                callbacks=[turn, monitor] if number else [turn],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            return trainer, model, data

        plain, watched = paired_epochs(arm, steps=True)
        n = sum(
            p.numel() for p in NextCode(vocabulary=100, width=args.width, layers=args.layers).parameters()
        )
        print(f"{args.patients:,} patients, {n:,} parameters, {args.threads} thread(s)")
        for name, a, b in (("wall", plain.wall, watched.wall), ("CPU", plain.cpu, watched.cpu)):
            print(f"{name} time of an epoch: {cost(np.array(a), np.array(b), args.epochs)}")
        probes = [point.probe_seconds for point in monitor.curve[:-1]]
        print(f"of which the looks themselves: {1e3 * np.median(probes):.0f} ms an epoch")
        last = watched.wall[-1] - plain.wall[-1]  # the last step of the run holds its end too
        whole = sum(watched.wall) / sum(plain.wall) - 1
        print(f"end of the run (final evaluation, report) {last:+.1f} s; whole run {100 * whole:+.1f} %")


def cost(plain: np.ndarray, watched: np.ndarray, epochs: int) -> str:
    """What is added to an epoch, from the second on: the steps, and the last one with validation and look."""
    plain, watched = (each.reshape(epochs, -1)[1:-1] for each in (plain, watched))
    steps, ends = (watched - plain)[:, :-1], (watched - plain)[:, -1]
    epoch = np.median(plain[:, :-1]) * steps.shape[1] + np.median(plain[:, -1])
    added = np.median(steps) * steps.shape[1] + np.median(ends)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(1000):
        some = rng.integers(0, len(steps), len(steps))
        draws.append(np.median(steps[some]) * steps.shape[1] + np.median(ends[some]))
    low, high = np.quantile(draws, [0.025, 0.975]) / epoch
    return (
        f"{100 * added / epoch:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f}, bootstrap of {len(steps)} epochs); "
        f"{1e3 * np.median(steps):+.2f} ms on {1e3 * np.median(plain[:, :-1]):.1f} ms a step, "
        f"{1e3 * np.median(ends):+.0f} ms at the end of an epoch, {epoch:.2f} s plain"
    )


if __name__ == "__main__":
    main()
