"""What the audit's probes add to a watched training: two Trainers take turns, both with the monitor, one with probes.

    python -m benchmarks.light_probes                          # the demo's model and data, 2 % of the training time
    python -m benchmarks.light_probes --share 0.1 --epochs 12

A probe is asked at the end of some epochs and not of others, so that a median would not see it: what is added is the
sum of the differences at the ends of all epochs, the end of the run included, as a share of the run without probes.
The books of the monitor (what its probes spent, by its own clock) stand beside it. That clock also runs while the other
arm takes its turn, so that the monitor is given half of the share here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback

from benchmarks.demo_arms import Arms, options, take_turns
from benchmarks.turns import CLOCKS
from memguard import LeakageMonitor, LightProbes

SENSITIVE = Path(__file__).resolve().parents[1] / "recipes" / "data" / "nafld_sensitive.toml"


class Probed(Arms):
    """Both arms have the monitor, one with probes; keeps the monitors with probes."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        super().__init__(args, folder)
        self.monitors: list[LeakageMonitor] = []

    def callbacks(self, measured: bool, watch: Path) -> list[Callback]:
        if not measured:
            return [LeakageMonitor(dirpath=watch)]
        light = LightProbes(
            self.args.probes.split(","),
            share=self.args.share / 2,  # its clock runs while the other arm takes its turn
            patients=self.args.asked,
            sensitive=SENSITIVE,
        )
        self.monitors.append(LeakageMonitor(dirpath=watch, probes=light))
        return self.monitors[-1:]


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__.splitlines()[0])
    parser.set_defaults(epochs=20, repeats=2)
    parser.add_argument("--asked", type=int, default=50, help="patients of each side")
    parser.add_argument("--probes", default="attribute,membership,copies")
    parser.add_argument("--share", type=float, default=0.02)
    args = parser.parse_args(argv)
    arms, parameters, seconds = take_turns(Probed, args)
    print(
        f"{args.patients:,} patients, {parameters:,} parameters, {args.epochs} epochs, {args.threads} thread(s); "
        f"{args.probes} of {args.asked} patients of each side, share {100 * args.share:g} %"
    )
    for clock, each in zip(CLOCKS, seconds, strict=True):
        plain, probed = each[:, 0], each[:, 1]
        ends = (probed - plain)[..., -1].sum(1) / plain.sum((1, 2))
        print(
            f"{clock} time added at the ends of epochs: {100 * ends.mean():+.1f} % of the run "
            f"({len(ends)} pairs: {100 * ends.min():+.1f} to {100 * ends.max():+.1f} %); "
            f"a step {1e3 * np.median((probed - plain)[..., :-1]):+.2f} ms"
        )
    for monitor in arms.monitors:
        trained = sum(point.train_seconds or 0.0 for point in monitor.curve)
        allowance = monitor._probing.allowance
        looks = {
            name: sum(name in point.probes for point in monitor.curve) for name in args.probes.split(",")
        }
        prices = ", ".join(f"{name} {allowance.price(name)}" for name in (*looks, "(preparation)"))
        print(
            f"books: {allowance.spent:.1f} s of {trained:.0f} s trained, {100 * allowance.spent / trained:.1f} %; "
            f"looks with a number: {', '.join(f'{name} {n}' for name, n in looks.items())}; prices: {prices}"
        )


if __name__ == "__main__":
    main()
