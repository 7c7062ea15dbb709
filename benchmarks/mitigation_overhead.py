"""What a mitigation adds to a watched training: two Trainers take turns, both with the monitor, one with it too.

    python -m benchmarks.mitigation_overhead                          # the demo's model and data, FloorFlagged
    python -m benchmarks.mitigation_overhead --callback flood         # drop, reweight, stopping
    python -m benchmarks.mitigation_overhead --share 0.5 --epochs 6

Who is flagged is given and not found, so that the cost is that of a run in which a tenth of the patients is held back
in every epoch after the first: nearly every batch then has some of them, and its gradient is weighed. ``stopping`` has
a limit that is never passed, so that its weights are kept at every look that is better than those before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback

from benchmarks.demo_arms import Arms, options, take_turns
from benchmarks.turns import table
from memguard import DropFlagged, FloodFlagged, FloorFlagged, LeakageMonitor, LeakageStopping, Reweight


def given(kind: type, share: float) -> Callback:
    """A mitigation by which a random share of the patients is concerned at every look."""

    class Given(kind):
        def _judge(self, watch, found, before):
            code = watch.members.patients.code
            chosen = (np.random.default_rng(0).random(watch.members.patients.n_patients) < share)[code]
            if kind is Reweight:
                return chosen, np.where(chosen, 0.5, 1.0).astype(np.float32)
            if kind is FloodFlagged:  # always below its floor, it would be trained away without end
                return chosen, watch.expected
            return chosen, np.full(code.size, np.inf, np.float32)

    return Given()


KINDS = {"floor": FloorFlagged, "flood": FloodFlagged, "drop": DropFlagged, "reweight": Reweight}


class Mitigated(Arms):
    """Both arms have the monitor, one the mitigation too; keeps what its steps were."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        super().__init__(args, folder)
        self.steps: list[Steps] = []

    def callbacks(self, measured: bool, watch: Path) -> list[Callback]:
        monitor = LeakageMonitor(dirpath=watch)
        if not measured:
            return [monitor]
        if self.args.callback == "stopping":
            return [monitor, LeakageStopping(0.999)]
        self.steps.append(Steps(monitor))
        return [monitor, given(KINDS[self.args.callback], self.args.share), self.steps[-1]]


class Steps(Callback):
    """Counts the steps that were weighed."""

    def __init__(self, monitor: LeakageMonitor) -> None:
        self.monitor, self.weighed, self.missed = monitor, 0, 0

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        weigher = self.monitor.capture.steps.weigher
        self.weighed, self.missed = weigher.weighed, weigher.missed


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--callback", choices=(*KINDS, "stopping"), default="floor")
    parser.add_argument("--share", type=float, default=0.1, help="of the patients flagged")
    args = parser.parse_args(argv)
    arms, parameters, seconds = take_turns(Mitigated, args)
    print(
        f"{args.callback}: {args.patients:,} patients, {100 * args.share:g} % of them concerned, "
        f"{parameters:,} parameters, {args.threads} thread(s)"
    )
    print(table(seconds))
    total = seconds.shape[-1] * args.epochs
    for one in arms.steps:
        print(f"{one.weighed} of {total} steps weighed, {one.missed} missed")


if __name__ == "__main__":
    main()
