"""Run by test_dpsgd_killed.py: trains, killed at any moment, and again from its last checkpoint.

python _private_killed.py FOLDER KILLS SEED. Everything is imported once; every training is a forked child, which says
before each optimizer step that it takes it, so that the parent knows how many were really taken.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from _private import Data, Mlp, Visits, private, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from memguard.privacy.ledger import Ledger

SETTINGS = {"target_epsilon": 30.0, "delta": 1e-2, "physical_batch_size": 12}


class Says(Mlp):
    """Tells the parent of each step right after the optimizer took it."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        os.write(self.out, b".")


def train(folder, out, epochs):
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    dpsgd = private(**SETTINGS)
    keep = ModelCheckpoint(
        folder / "kept", filename="last", every_n_train_steps=1, save_top_k=1, enable_version_counter=False
    )
    run = trainer(folder, dpsgd, keep, max_epochs=epochs, limit_val_batches=0, enable_checkpointing=True)
    whole = folder / "kept" / "last.ckpt"
    kept = whole if whole.exists() else None
    run.fit(Says(out), datamodule=Data(Visits(12, 24), batch_size=6), ckpt_path=kept)
    os.write(out, b"!")


def until_killed(folder, least, wait, epochs):
    """Killed some time after it has taken so many steps, so that a slow machine takes steps too.

    Steps that a child said to have taken before it was killed; whether it came to its end.
    """
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(inside)
        code = 1
        try:
            train(folder, outside, epochs)
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    os.close(outside)
    said, begun = b"", None
    while True:
        left = 60.0 if begun is None else max(0.0, begun + wait - time.monotonic())
        ready, _, _ = select.select([inside], [], [], left)
        if not ready:
            break
        got = os.read(inside, 4096)
        if not got:
            break
        said += got
        if begun is None and said.count(b".") >= least:
            begun = time.monotonic()
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while got := os.read(inside, 4096):
        said += got
    os.close(inside)
    failed = os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
    return said.count(b"."), b"!" in said, failed


def main(folder, kills, seed):
    rng = random.Random(seed)
    folder = Path(folder)
    taken, found = 0, []
    for _ in range(kills):
        steps, ended, failed = until_killed(folder, rng.randint(1, 3), rng.random() * 0.1, epochs=10_000)
        taken += steps
        # A run that was killed before its first checkpoint begins anew, with a ledger of its own.
        ledgers = [Ledger.read(path.parent, path.stem) for path in (folder / "memguard-dp").glob("*.jsonl")]
        for ledger in ledgers:
            ledger.verify()
        held = sum(ledger.n_steps for ledger in ledgers)
        seeds = {seed for ledger in ledgers for seed in ledger.seeds()}
        found.append({"taken": taken, "held": held, "failed": failed, "ended": ended, "seeds": len(seeds)})
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
