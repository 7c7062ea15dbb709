"""What the monitor adds to an epoch: two Trainers take turns, one with it and one without.

    python -m benchmarks.monitor_overhead                 # the demo's model and data
    python -m benchmarks.monitor_overhead --width 192 --layers 4 --patients 1200 --epochs 8

Validation runs in both arms; what counts is an epoch from its start to the start of the next, all callbacks included.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from benchmarks.turns import describe, paired_epochs
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

        plain, watched = paired_epochs(arm)
        n = sum(
            p.numel() for p in NextCode(vocabulary=100, width=args.width, layers=args.layers).parameters()
        )
        # The last epoch of the watched arm also holds the end of the run: it is reported by itself.
        print(f"{args.patients:,} patients, {n:,} parameters, {args.threads} thread(s)")
        print(describe("per epoch, wall time", plain.wall[1:-1], watched.wall[1:-1]))
        print(describe("per epoch, CPU time", plain.cpu[1:-1], watched.cpu[1:-1]))
        probes = [point.probe_seconds for point in monitor.curve[:-1]]
        print(f"of which the looks themselves: {sum(probes) / len(probes):.2f} s an epoch")
        first, last = watched.wall[0] / plain.wall[0] - 1, watched.wall[-1] - plain.wall[-1]
        whole = sum(watched.wall) / sum(plain.wall) - 1
        print(
            f"first epoch (contents are gathered) {100 * first:+.1f} %; end of the run (final evaluation, report) "
            f"{last:+.1f} s; whole run {100 * whole:+.1f} %"
        )


if __name__ == "__main__":
    main()
