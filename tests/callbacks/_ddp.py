"""Run by test_ddp.py: python _ddp.py FOLDER DEVICES."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from _runs import Forecaster, Visits, trainer
from torch.utils.data import DataLoader

from memguard import LeakageMonitor


def main(folder, devices):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    folder = Path(folder)
    monitor = LeakageMonitor(dirpath=folder / f"watch{devices}", final_evaluation=True, hash_ids=False)
    run = trainer(
        folder, monitor, epochs=3, devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False
    )
    # 241 and 161: uneven, so that the samplers pad both
    run.fit(
        Forecaster(dropout=0.0),
        DataLoader(Visits(241, 1), batch_size=16, shuffle=True),
        DataLoader(Visits(161, 2, first_patient=10_000), batch_size=32),
    )
    torch.save(
        {
            "curve": [
                (p.epoch, p.auc.value, p.auc.low, p.coverage, p.flagged_patients, p.held_out_loss)
                for p in monitor.curve
            ],
            "traces": torch.from_numpy(monitor.watch.members.traces.array().copy()),
            "held_out": torch.from_numpy(monitor.watch.held_out.traces.array().copy()),
            "content": monitor.watch.members.store.n_observed,
            "metric": float(run.callback_metrics["memguard/membership_auc"]),
            "files": sorted(monitor.files),
            "patients": monitor.patients.height,
        },
        folder / f"{devices}_{run.global_rank}.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
