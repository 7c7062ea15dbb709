"""What capture adds to a training step: two Trainers in one process that take turns, step by step.

    OMP_NUM_THREADS=1 python -m benchmarks.capture_overhead [--steps 216]

One Trainer runs the model alone, the other with capture (positions and losses of every record, gathered once an
epoch); step k of one runs right beside step k of the other, and which goes first alternates, so that a machine that
slows down slows both. A step lasts from one ``on_train_batch_end`` to the next, so the loader is inside. The number is
the median over blocks of ten steps of ``with / without - 1``, with its quartiles: wall time, and CPU time of the
training thread, which other jobs disturb less. The bar: at most 3 % on the transformer of at least 1M parameters.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import threading
import time
import warnings

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.turns import Baton
from memguard.capture import Capture, LossTraces, collect

WARM, BLOCK = 16, 10  # steps left out at the start, steps in a block


class Transformer(pl.LightningModule):
    """Next-code model: 2 layers, width 128, 4,000 codes."""

    def __init__(self, vocabulary=4000, width=128, length=128):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.1)
        self.body = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, vocabulary)

    def training_step(self, batch, batch_idx):
        codes = batch[0]
        given, target = codes[:, :-1], codes[:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(given.shape[1])
        hidden = self.embed(given) + self.place(torch.arange(given.shape[1]))
        logits = self.head(self.body(hidden, mask=mask, is_causal=True))
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)

    @staticmethod
    def data(n):
        return TensorDataset(torch.randint(0, 4000, (n, 65)))


class Mlp(pl.LightningModule):
    """The worst case: a step that costs next to nothing."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)

    @staticmethod
    def data(n):
        return TensorDataset(torch.randn(n, 32), torch.randint(0, 2, (n,)))


class Turn(pl.Callback):
    """Lets the two Trainers alternate step by step; stands last, so that the other callbacks are inside the step."""

    def __init__(self, arm, baton):
        self.arm, self.baton, self.wall, self.cpu = arm, baton, [], []

    def on_train_start(self, *args):
        self.baton.take(self.arm)
        self.begin = time.perf_counter(), time.thread_time()

    def on_train_batch_end(self, *args):
        self.wall.append(time.perf_counter() - self.begin[0])
        self.cpu.append(time.thread_time() - self.begin[1])
        self.baton.give(self.arm)
        self.baton.take(self.arm)
        self.begin = time.perf_counter(), time.thread_time()

    def on_fit_end(self, *args):
        self.baton.leave(self.arm)


class Watch(pl.Callback):
    def __init__(self, n):
        self.capture, self.traces, self.seen = Capture(), LossTraces(n), []

    def setup(self, trainer, pl_module, stage):
        self.capture.install(trainer, pl_module)

    def teardown(self, trainer, pl_module, stage):
        self.capture.restore()

    def on_train_batch_end(self, *args):
        self.seen.append(self.capture.last_train)

    def on_train_epoch_end(self, trainer, pl_module):
        positions, loss, _ = collect(self.seen)
        self.traces.add(positions, loss)
        self.traces.close(trainer.current_epoch)


def fit(make, data, batch_size, steps, watched, turn, failures):
    try:
        torch.manual_seed(0)
        trainer = pl.Trainer(
            max_epochs=-1,
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*([Watch(len(data))] if watched else []), turn],
        )
        trainer.fit(make(), DataLoader(data, batch_size=batch_size, shuffle=True))
    except BaseException as error:
        failures.append(error)
        turn.baton.leave(turn.arm)


def measure(make, batch_size, steps):
    data, baton, failures = make.data(batch_size * 50), Baton(), []
    turns = [Turn(arm, baton) for arm in (0, 1)]
    threads = [
        threading.Thread(target=fit, args=(make, data, batch_size, steps, bool(turn.arm), turn, failures))
        for turn in turns
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    out = {"parameters": sum(p.numel() for p in make().parameters()), "paired_steps": steps - WARM}
    for clock in ("wall", "cpu"):
        plain, watched = (getattr(turn, clock)[WARM:] for turn in turns)
        blocks = [
            statistics.median(watched[at : at + BLOCK]) / statistics.median(plain[at : at + BLOCK]) - 1
            for at in range(0, len(plain) - BLOCK + 1, BLOCK)
        ]
        low, middle, high = statistics.quantiles(blocks, n=4)
        out[clock] = {
            "step_ms_without": round(1e3 * statistics.median(plain), 3),
            "step_ms_with": round(1e3 * statistics.median(watched), 3),
            "overhead": round(middle, 4),
            "quartiles": [round(low, 4), round(high, 4)],
        }
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=216, help="steps of the transformer; the MLP takes ten times as many"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {
        "transformer": measure(Transformer, 16, args.steps),
        "mlp": measure(Mlp, 64, 10 * args.steps),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
