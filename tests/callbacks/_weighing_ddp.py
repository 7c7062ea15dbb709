"""Run by test_deduplicate.py: python _weighing_ddp.py FOLDER 2."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from _runs import Forecaster, trainer
from test_deduplicate import Copied, data
from torch.nn import functional as F

from memguard.callbacks.deduplicate import Deduplicate
from memguard.callbacks.goldfish import GoldfishLoss
from memguard.mitigations.goldfish import goldfish_keys, goldfish_weights


class ByHand(Forecaster):
    def training_step(self, batch, batch_idx):
        codes, y = batch["codes"], batch["codes"][:, 1:]
        logits = self.out(self.rnn(self.embed(codes[:, :-1]))[0])
        each = F.cross_entropy(logits.transpose(1, 2), y, ignore_index=0, reduction="none")
        weights = self.of_record[batch["at"]][:, None] * goldfish_weights(
            y, (y != 0).float(), 4, goldfish_keys(5)
        )
        return (each * weights).sum() / (y != 0).sum()


def fit(folder, devices, module, *callbacks):
    pl.seed_everything(0, verbose=False)
    run = trainer(
        folder, *callbacks, epochs=2, devices=devices, strategy="ddp", logger=False, precision="64-true"
    )
    run.fit(module, *data(Copied()))
    return run, [p.detach().clone() for p in module.parameters()]


def main(folder, devices):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder, once = Path(folder), Deduplicate()

    def made(kind):
        pl.seed_everything(3, verbose=False)
        return kind(dropout=0.0)

    run, found = fit(folder, devices, made(Forecaster), once, GoldfishLoss(4, 5))
    hand = made(ByHand)
    hand.of_record = torch.from_numpy(once.weights)
    right, plain = fit(folder, devices, hand)[1], fit(folder, devices, made(Forecaster))[1]

    def far(a, b):
        return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))

    torch.save(
        {
            "weights": torch.from_numpy(once.weights),
            "patients": float(run.callback_metrics["memguard/deduplicate/patients"]),
            "found": found,
            "difference": far(found, right),
            "from_plain": far(found, plain),
        },
        folder / f"{devices}_{run.global_rank}.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
