"""What a mitigation adds to a watched training: two Trainers take turns, both with the monitor, one with it too.

    python -m benchmarks.mitigation_overhead                          # the demo's model and data, FloorFlagged
    python -m benchmarks.mitigation_overhead --share 0.5 --epochs 6

Who is flagged is given and not found, so that the cost is that of a run in which a tenth of the patients is held back
in every epoch after the first: nearly every batch then has some of them, and its gradient is weighed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule

from benchmarks.monitor_overhead import SameBatches
from benchmarks.turns import measure, options, prepare, size, table
from memguard import LeakageMonitor
from memguard.callbacks.mitigate import FloorFlagged
from recipes.nafld_next_code import NextCode


class Given(FloorFlagged):
    """A random share of the patients is flagged at every look, and is always below its floor."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def _judge(self, watch, found, before):
        code = watch.members.patients.code
        chosen = np.random.default_rng(0).random(watch.members.patients.n_patients) < self.share
        return chosen[code], np.full(code.size, np.inf, np.float32)


class Arms:
    """Makes both arms, and keeps the mitigations."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.made = args, folder, 0
        self.steps: list[Steps] = []

    def __call__(self, mitigated: bool) -> tuple[LightningModule, SameBatches, list[Callback]]:
        args = self.args
        data = SameBatches(self.folder / "meds", args.patients, args.held_out)
        model = NextCode(len(data.sequences.vocabulary), width=args.width, layers=args.layers)
        self.made += 1
        monitor = LeakageMonitor(dirpath=self.folder / f"watch-{self.made}")
        if not mitigated:
            return model, data, [monitor]
        self.steps.append(Steps(monitor))
        return model, data, [monitor, Given(args.share), self.steps[-1]]


class Steps(Callback):
    """Counts the steps that were weighed."""

    def __init__(self, monitor: LeakageMonitor) -> None:
        self.monitor, self.weighed, self.missed = monitor, 0, 0

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        weigher = self.monitor.capture.steps.weigher
        self.weighed, self.missed = weigher.weighed, weigher.missed


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=2400, help="to train on")
    parser.add_argument("--held-out", type=int, default=1200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.1, help="of the patients flagged")
    args = parser.parse_args(argv)
    prepare(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        arms = Arms(args, Path(folder))
        parameters = size(arms(False)[0])
        seconds = measure(arms, epochs=args.epochs, repeats=args.repeats)
    print(
        f"{args.patients:,} patients, {100 * args.share:g} % of them held back, {parameters:,} parameters, "
        f"{args.threads} thread(s)"
    )
    print(table(seconds))
    total = seconds.shape[-1] * args.epochs
    for one in arms.steps:
        print(f"{one.weighed} of {total} steps weighed, {one.missed} missed")


if __name__ == "__main__":
    main()
