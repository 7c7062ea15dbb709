"""What a mitigation adds to a watched training: two Trainers take turns, both with the monitor, one with it too.

    python -m benchmarks.mitigation_overhead                          # the demo's model and data, FloorFlagged
    python -m benchmarks.mitigation_overhead --share 0.5 --epochs 6

Who is flagged is given and not found, so that the cost is that of a run in which a tenth of the patients is held back
in every epoch after the first: nearly every batch then has some of them, and its gradient is weighed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback

from benchmarks.demo_arms import Arms, options, take_turns
from benchmarks.turns import table
from memguard import LeakageMonitor
from memguard.callbacks.mitigate import FloorFlagged


class Given(FloorFlagged):
    """A random share of the patients is flagged at every look, and is always below its floor."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def _judge(self, watch, found, before):
        code = watch.members.patients.code
        chosen = np.random.default_rng(0).random(watch.members.patients.n_patients) < self.share
        return chosen[code], np.full(code.size, np.inf, np.float32)


class Mitigated(Arms):
    """Both arms have the monitor, one the mitigation too; keeps what its steps were."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        super().__init__(args, folder)
        self.steps: list[Steps] = []

    def callbacks(self, measured: bool, watch: Path) -> list[Callback]:
        monitor = LeakageMonitor(dirpath=watch)
        if not measured:
            return [monitor]
        self.steps.append(Steps(monitor))
        return [monitor, Given(self.args.share), self.steps[-1]]


class Steps(Callback):
    """Counts the steps that were weighed."""

    def __init__(self, monitor: LeakageMonitor) -> None:
        self.monitor, self.weighed, self.missed = monitor, 0, 0

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        weigher = self.monitor.capture.steps.weigher
        self.weighed, self.missed = weigher.weighed, weigher.missed


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.1, help="of the patients flagged")
    args = parser.parse_args(argv)
    arms, parameters, seconds = take_turns(Mitigated, args)
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
