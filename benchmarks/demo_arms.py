"""Arms of `benchmarks.turns` with the demo's model and data; what is measured is a callback beside the monitor."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule

from benchmarks import turns
from benchmarks.monitor_overhead import SameBatches
from recipes.nafld_next_code import NextCode

__all__ = ["Arms", "options", "take_turns"]


class Arms:
    """Makes both arms, alike but for their callbacks."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.made = args, folder, 0

    def __call__(self, measured: bool) -> tuple[LightningModule, SameBatches, list[Callback]]:
        args = self.args
        data = SameBatches(self.folder / "meds", args.patients, args.held_out)
        model = NextCode(len(data.sequences.vocabulary), width=args.width, layers=args.layers)
        self.made += 1
        return model, data, self.callbacks(measured, self.folder / f"watch-{self.made}")

    def callbacks(self, measured: bool, watch: Path) -> list[Callback]:
        """Those of one arm, the monitor among them; ``watch`` is a folder for it."""
        raise NotImplementedError


def options(description: str) -> argparse.ArgumentParser:
    """The arguments of `turns.options`, and those of the demo."""
    parser = turns.options(description)
    parser.add_argument("--patients", type=int, default=2400, help="to train on")
    parser.add_argument("--held-out", type=int, default=1200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    return parser


def take_turns(kind: type[Arms], args: argparse.Namespace) -> tuple[Any, int, np.ndarray]:
    """Fit both arms in turns.

    Returns:
        What made the arms, the number of parameters of the model, and the seconds of `turns.measure`.
    """
    turns.prepare(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        arms = kind(args, Path(folder))
        parameters = turns.size(arms(False)[0])
        return arms, parameters, turns.measure(arms, epochs=args.epochs, repeats=args.repeats)
