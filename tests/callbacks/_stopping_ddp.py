"""Run by test_stopping_ddp.py: python _stopping_ddp.py FOLDER DEVICES."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from _runs import Forecaster, loaders, trainer

from memguard import LeakageMonitor, LeakageStopping


class Apart(Forecaster):
    """Logs a metric that is another one on each process."""

    def on_validation_epoch_end(self):
        self.log("apart", float(self.global_rank * (-1) ** self.current_epoch), sync_dist=False)


def main(folder, devices):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    folder = Path(folder)
    monitor = LeakageMonitor(dirpath=folder / "watch", every_n_steps=3, final_evaluation=False)
    stopping = LeakageStopping(0.6)
    other = LeakageStopping(
        0.9, bound="value", of="membership.tpr_at_fpr_0.1", utility="apart", restore=False
    )
    strategy = "ddp" if devices > 1 else "auto"
    run = trainer(
        folder, monitor, stopping, other, epochs=25, devices=devices, strategy=strategy, logger=False
    )
    module = Apart(lr=2e-2, dropout=0.1)
    run.fit(module, *loaders(240, 160, batch_size=16))
    torch.save(
        {
            "looks": [look.as_dict() for look in stopping.looks],
            "others": [(look.step, look.utility) for look in other.looks],
            "stopped": stopping.stopped.step,
            "best": stopping.best.step,
            "steps": run.global_step,
            "epochs": run.current_epoch,
            "path": "" if stopping.best_path is None else str(stopping.best_path),
            "logged": float(run.callback_metrics["memguard/leakage_stopping/membership.auc/bound"]),
            "weights": {name: value.detach().clone() for name, value in module.state_dict().items()},
        },
        folder / f"{devices}_{run.global_rank}.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
