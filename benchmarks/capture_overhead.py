"""What capture adds to a training step: paired blocks of steps, with and without, interleaved in one process.

    OMP_NUM_THREADS=1 python benchmarks/capture_overhead.py [--pairs 15] [--steps 24]

Each pair fits the same model for one block with the Trainer alone and for one block with capture (positions and
losses of every record, gathered once a block); the order alternates. A block's time is the median of its steps, from
one ``on_train_batch_end`` to the next, so that the loader is inside. The number is the median over pairs of
``with / without - 1``, with its quartiles: wall time, and CPU time of the process, which other jobs disturb less.
The bar: at most 3 % on the transformer of at least one million parameters.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import time
import warnings

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from memguard.capture import Capture, LossTraces, collect


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


class Clock(pl.Callback):
    def __init__(self):
        self.wall, self.cpu = [], []

    def on_train_batch_end(self, *args):
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def medians(self):
        gaps = [[b - a for a, b in itertools.pairwise(t)][2:] for t in (self.wall, self.cpu)]
        return [statistics.median(gap) for gap in gaps]


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


def block(model, data, batch_size, steps, watched):
    clock = Clock()
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*([Watch(len(data))] if watched else []), clock],
    )
    trainer.fit(model, loader)
    return clock.medians()


def measure(make, batch_size, pairs, steps):
    torch.manual_seed(0)
    model, data = make(), make.data(batch_size * steps)
    for watched in (False, True):
        block(model, data, batch_size, 8, watched)  # warm up
    times = []
    for pair in range(pairs):
        order = (False, True) if pair % 2 == 0 else (True, False)
        got = {watched: block(model, data, batch_size, steps, watched) for watched in order}
        times.append((got[False], got[True]))
    out = {"parameters": sum(p.numel() for p in model.parameters()), "pairs": pairs, "steps_per_block": steps}
    for at, clock in enumerate(("wall", "cpu")):
        ratios = [with_[at] / without[at] - 1 for without, with_ in times]
        low, middle, high = statistics.quantiles(ratios, n=4)
        out[clock] = {
            "step_ms_without": round(1e3 * statistics.median(w[at] for w, _ in times), 3),
            "step_ms_with": round(1e3 * statistics.median(w[at] for _, w in times), 3),
            "overhead": round(middle, 4),
            "quartiles": [round(low, 4), round(high, 4)],
        }
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {
        "transformer": measure(Transformer, 16, args.pairs, args.steps),
        "mlp": measure(Mlp, 64, args.pairs, 10 * args.steps),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
