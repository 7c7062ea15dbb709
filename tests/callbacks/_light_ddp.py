"""Run by test_light_ddp.py: python _light_ddp.py FOLDER DEVICES [FAULT]."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from _light import Firsts, Patients, Reader
from _runs import trainer
from torch.utils.data import DataLoader

from memguard import LeakageMonitor
from memguard.probes.allowance import Allowance


def main(folder, devices, fault):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    Allowance.saved = property(lambda _: 1e6)
    folder = Path(folder)
    monitor = LeakageMonitor(
        dirpath=folder / f"watch{devices}",
        probes=["attribute", "membership", Firsts(fault=bool(fault))],
        on_problem="raise" if fault == "raise" else "auto",
    )
    strategy = "ddp" if devices > 1 else "auto"
    run = trainer(folder, monitor, epochs=2, devices=devices, strategy=strategy, logger=False)
    failed, module = "", Reader(dropout=0.1)
    try:
        run.fit(
            module,
            DataLoader(Patients(1, 121), batch_size=12, shuffle=True),
            DataLoader(Patients(2, 101, 10_000), batch_size=24),
        )
    except Exception as error:
        if fault != "raise":
            raise
        failed = f"{type(error).__name__}: {error}"
    torch.save(
        {
            "failed": failed,
            "curve": [
                (point.epoch, probe, name, one.value, one.low, one.high, one.n)
                for point in monitor.curve
                for probe, numbers in point.probes.items()
                for name, one in numbers.items()
            ],
            "logged": {
                name: float(value) for name, value in run.callback_metrics.items() if name.count("/") == 2
            },
            "asked": monitor._probing.standing is not None,
            "notes": [note for note in monitor._results.notes if "firsts" in note],
            "weights": [value.detach().clone() for value in module.parameters()],
        },
        folder / f"{devices}_{run.global_rank}.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *(sys.argv[3:] or [""]))
