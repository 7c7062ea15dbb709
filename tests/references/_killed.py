"""Trains a pool slowly, to be killed in the middle: python _killed.py FOLDER."""

from __future__ import annotations

import sys
import time

import torch
from _models import SETTINGS, Net, data, sides

from memguard.references.halves import halves
from memguard.references.pool import train_pool

K = 4


class Slow(Net):
    def training_step(self, batch, batch_idx):
        time.sleep(SECONDS)
        return super().training_step(batch, batch_idx)


SECONDS = 0.0


def pool(folder):
    return train_pool(
        Slow,
        data(),
        in_mask=halves(*sides(), K),
        trainer=SETTINGS,
        backend="sequential",
        folder=folder,
        progress=False,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    import _killed

    _killed.time.sleep = lambda seconds, sleep=time.sleep: sleep(0.15)
    _killed.pool(sys.argv[1])
