"""Trains a pool that waits in the middle to be killed: WAIT_IN=FOLDER python _killed.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from _reference_models import SETTINGS, Net, data, sides

from memguard.references.halves import halves
from memguard.references.pool import train_pool

K = 4


def wait():
    """In the middle of a reference, when two are finished; here and in the test that comes after, the same code."""
    folder = os.environ.get("WAIT_IN")
    if folder and len(list(Path(folder).glob("[0-9a-f]*/meta.json"))) == 2:
        (Path(folder).parent / "waiting").touch()
        time.sleep(600)


class Slow(Net):
    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            wait()
        return super().training_step(batch, batch_idx)


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
    import _killed  # the same module name, and so the same recipe, as in the test

    _killed.pool(os.environ["WAIT_IN"])
