"""What the monitor adds to an epoch: two Trainers take turns at every batch, one with it and one without it.

    python -m benchmarks.monitor_overhead                 # the demo's model and data
    python -m benchmarks.monitor_overhead --width 192 --layers 4 --patients 1200 --epochs 8

An epoch's cost is put together from the medians of the differences of thousands of close pairs of steps, the last step
of an epoch, with validation and the look, apart; and averaged over pairs of runs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.turns import measure, options, prepare, size, table
from memguard import LeakageMonitor
from recipes.nafld_next_code import NafldData, NextCode


class SameBatches(NafldData):
    """Shuffles from a generator of its own, so that both arms see the same batches in the same order."""

    def train_dataloader(self) -> DataLoader:
        loader = super().train_dataloader()
        loader.sampler.generator = torch.Generator().manual_seed(0)
        return loader


class Demo:
    """Makes the arms, and keeps the monitors."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.monitors: list[LeakageMonitor] = []

    def __call__(self, watched: bool) -> tuple[NextCode, SameBatches, list[LeakageMonitor]]:
        data = SameBatches(self.folder / "meds", self.args.patients, self.args.held_out)
        vocabulary = len(data.sequences.vocabulary)
        model = NextCode(vocabulary, width=self.args.width, layers=self.args.layers)
        if not watched:
            return model, data, []
        self.monitors.append(LeakageMonitor(dirpath=self.folder / f"watch-{len(self.monitors)}"))
        return model, data, self.monitors[-1:]


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=2400)
    parser.add_argument("--held-out", type=int, default=1200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args(argv)
    prepare(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(args, Path(folder))
        parameters = size(demo(False)[0])
        seconds = measure(demo, epochs=args.epochs, repeats=args.repeats)
    print(f"{args.patients:,} patients, {parameters:,} parameters, {args.threads} thread(s)")
    print(table(seconds))
    looks = [point.probe_seconds for monitor in demo.monitors for point in monitor.curve[:-1]]
    print(f"of which the looks themselves: {1e3 * np.median(looks):.0f} ms an epoch")
    plain, watched = seconds[0, :, 0], seconds[0, :, 1]
    end = np.median(watched[:, -1, -1] - plain[:, -1, -1])  # the last step of the run holds its end too
    whole = np.median(watched.sum((1, 2)) / plain.sum((1, 2)) - 1)
    print(f"end of the run (final evaluation, report) {end:+.1f} s; whole run {100 * whole:+.1f} %")


if __name__ == "__main__":
    main()
