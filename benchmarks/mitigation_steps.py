"""What GoldfishLoss and Deduplicate add to a plain training: two Trainers take turns, one with the callback.

    python -m benchmarks.mitigation_steps                              # the demo's model and data, both callbacks
    python -m benchmarks.mitigation_steps --only goldfish --width 128 --layers 3
    python -m benchmarks.mitigation_steps --contexts                   # how far h codes in a row tell patients apart

No arm has a monitor, so that listening to the steps is part of what is added. Deduplicate reads the records before the
first step, in the epoch that does not count; its seconds are told apart, beside those of a plain epoch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback

from benchmarks.demo_arms import Arms, options, take_turns
from benchmarks.monitor_overhead import SameBatches
from benchmarks.turns import table
from memguard.callbacks.deduplicate import Deduplicate
from memguard.callbacks.goldfish import GoldfishLoss


class Timed(Deduplicate):
    """Keeps what its reading took, and weighs most records, so that nearly every step is weighed.

    Attributes:
        seconds: Of the start.
    """

    def __init__(self) -> None:
        super().__init__(threshold=0.5)
        self.seconds = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        start = time.perf_counter()
        super().on_train_start(trainer, pl_module)
        self.seconds = time.perf_counter() - start


KINDS = {"goldfish": GoldfishLoss, "deduplicate": Timed}


class Weighed(Arms):
    """One arm has the callback, none has a monitor; keeps the callbacks and what their steps were."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        super().__init__(args, folder)
        self.steps: list[Steps] = []

    def callbacks(self, measured: bool, watch: Path) -> list[Callback]:
        if not measured:
            return []
        self.steps.append(Steps(KINDS[self.args.kind]()))
        return [self.steps[-1].callback, self.steps[-1]]


class Steps(Callback):
    """Counts the steps that were weighed."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.weighed, self.missed = callback, 0, 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        weigher = self.callback._weigher
        self.weighed, self.missed = weigher.weighed, weigher.missed


def contexts(args: argparse.Namespace, most: int = 13) -> list[tuple[int, float, float]]:
    """For h from 1 on: share of the targets with h before them, and of contexts of h that one patient alone has."""
    with tempfile.TemporaryDirectory() as folder:
        data = SameBatches(Path(folder) / "meds", args.patients, args.held_out)
        records = data.train_dataloader().dataset
        rows = [np.asarray(records[i]) for i in range(len(records))]
    found = []
    for h in range(1, most + 1):
        windows = [np.lib.stride_tricks.sliding_window_view(row[:-1], h) for row in rows if len(row) > h]
        owner = np.repeat(np.arange(len(windows)), [len(one) for one in windows])
        _, context = np.unique(np.concatenate(windows), axis=0, return_inverse=True)
        pairs = np.unique(np.stack([context.reshape(-1), owner]), axis=1)[0]
        single = np.bincount(pairs)[context.reshape(-1)] == 1
        found.append((h, len(owner) / sum(len(row) - 1 for row in rows), float(single.mean())))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(KINDS), help="one of the two")
    parser.add_argument("--contexts", action="store_true", help="train nothing; compare contexts of codes")
    args = parser.parse_args(argv)
    if args.contexts:
        for h, reached, single in contexts(args):
            print(
                f"h={h}: {reached:.0%} of the targets have as many before them; {single:.0%} of one patient alone"
            )
        return
    for kind in [args.only] if args.only else sorted(KINDS):
        args.kind = kind
        arms, parameters, seconds = take_turns(Weighed, args)
        print(f"{kind}: {args.patients:,} patients, {parameters:,} parameters, {args.threads} thread(s)")
        print(table(seconds))
        total = seconds.shape[-1] * args.epochs
        for one in arms.steps:
            before = f"; {one.callback.seconds:.2f} s before the first step" if kind == "deduplicate" else ""
            print(f"{one.weighed} of {total} steps weighed, {one.missed} missed{before}")


if __name__ == "__main__":
    main()
