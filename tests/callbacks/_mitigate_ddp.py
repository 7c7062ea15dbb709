"""Run by test_mitigate.py: python _mitigate_ddp.py FOLDER 2."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from _runs import Forecaster, trainer
from test_mitigate import Flagging, Without, numbered

from memguard.callbacks.mitigate import DropFlagged

GONE = (3, 17, 44, 45, 80, 119)


def fit(folder, devices, module, *callbacks):
    pl.seed_everything(0, verbose=False)
    more = {"strategy": "ddp", "logger": False, "precision": "64-true"}
    run = trainer(folder, *callbacks, epochs=3, devices=devices, **more)
    run.fit(module, *numbered())
    return run, [p.detach().clone() for p in module.parameters()]


def main(folder, devices):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = Path(folder)

    def made(kind):
        pl.seed_everything(3, verbose=False)
        return kind(dropout=0.0)

    drop, monitor = DropFlagged(), Flagging(dirpath=folder / "watch", final_evaluation=False)
    monitor.said = (list(GONE),)
    run, found = fit(folder, devices, made(Forecaster), drop, monitor)
    hand = made(Without)
    hand.gone = GONE
    right, plain = fit(folder, devices, hand)[1], fit(folder, devices, made(Forecaster))[1]

    def far(a, b):
        return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))

    torch.save(
        {
            "touched": torch.from_numpy(drop.touched),
            "patients": float(run.callback_metrics["memguard/drop_flagged/patients"]),
            "found": found,
            "difference": far(found, right),
            "from_plain": far(found, plain),
        },
        folder / f"{devices}_{run.global_rank}.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
