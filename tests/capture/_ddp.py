"""Run by test_ddp.py in two processes: python _ddp.py FOLDER watched|plain."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from _modules import Classifier, Driver, Rows, assert_exact, seed_everything, trainer
from torch.utils.data import DataLoader

from memguard.capture import LossTraces


class Gathers(Driver):
    def on_train_start(self, trainer, pl_module):
        self.traces = LossTraces(self.capture.tracker.n_records("train"))

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        seen = self.capture.last_train
        self.traces.add(seen.positions, seen.loss)

    def on_train_epoch_end(self, trainer, pl_module):
        payloads = [None] * trainer.world_size
        dist.all_gather_object(payloads, self.traces.payload())
        self.traces.merge(payloads)
        self.traces.close(trainer.current_epoch)
        batches = self.capture.fetch("train", np.arange(3), batch_size=3)
        pl_module.noted.val.clear()
        self.probe = self.capture.evaluate(batches)[0].loss


def main(folder, watched):
    warnings.simplefilter("ignore")
    seed_everything()
    driver, module = Gathers(), Classifier(log=False)
    run = trainer([driver] if watched else [], devices=2, strategy="ddp", max_epochs=2)
    train = DataLoader(Rows(21), batch_size=4, shuffle=True)  # uneven: the sampler pads
    run.fit(module, train, DataLoader(Rows(9, seed=1), batch_size=4))
    rank = run.global_rank
    out = {"weights": module.state_dict(), "losses": module.losses, "rng": torch.get_rng_state()}
    if watched:
        assert_exact(module, driver)
        out["traces"] = torch.from_numpy(driver.traces.array().copy())
        out["ids"] = [torch.from_numpy(seen[0]) for seen in driver.train]
        out["probe"] = driver.probe
    torch.save(out, Path(folder) / f"{'watched' if watched else 'plain'}_{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "watched")
