"""Run by test_dpsgd_ddp.py: python _private_ddp.py FOLDER DEVICES CASE."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from _private import Data, Mlp, Recorder, Visits, private, trainer

from memguard import LeakageMonitor
from memguard.callbacks import private_data
from memguard.errors import MemguardError


class Synced(Mlp):
    """Logs over processes from a step that they do not run together."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, sync_dist=True, on_step=True, on_epoch=True)
        return loss


class Gathers(Mlp):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return loss + 0 * self.all_gather(loss).sum()


def main(folder, devices, case):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    folder = Path(folder)
    module = {"sync": Synced, "gather": Gathers}.get(case, Mlp)()
    private_data.entropy = lambda: b"the same draws in all cases 1234"
    noise = 3.0 if case == "noise" else 0.0
    dpsgd = private(
        engine="loop" if case in ("sync", "empty") else "auto", noise_multiplier=noise, delta=1e-3, checks=True,
        sample_rate=0.02 if case == "empty" else 0.25, physical_batch_size=8, dirpath=folder / f"dp-{case}{devices}",
    )  # fmt: skip
    recorder = Recorder(dpsgd)
    others = [LeakageMonitor(on_problem="raise", dirpath=folder / "watch")] if case == "noise" else []
    run = trainer(
        folder, dpsgd, recorder, *others, max_epochs=2, devices=devices, strategy="ddp" if devices > 1 else "auto",
        limit_train_batches=6, limit_val_batches=1.0 if others else 0,
    )  # fmt: skip
    data = Data(Visits(40, 90), batch_size=10)
    problem = ""
    try:
        run.fit(module, datamodule=data)
    except MemguardError as error:
        problem = str(error)
    torch.save(
        {
            "problem": problem,
            "steps": [(positions, grads) for _, positions, grads in recorder.steps],
            "weights": dict(module.state_dict()),
            "global_step": run.global_step,
            "run": None if dpsgd._run is None else dpsgd._run.steps,
            "epsilon": float(dpsgd.epsilon),
            "ledgers": len(list((folder / f"dp-{case}{devices}").glob("*.jsonl"))),
            "batches": recorder.batches,
            "parts": dpsgd._run.plan.parts if dpsgd._run else 0,
            "coverage": [point.coverage for point in others[0].curve] if others else [],
            "said": dpsgd.statement().text() if not problem else "",
        },
        folder / f"{case}{devices}_{run.global_rank}.pt",
    )


if __name__ == "__main__":
    for case in sys.argv[3:]:
        main(sys.argv[1], int(sys.argv[2]), case)
