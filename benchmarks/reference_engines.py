"""References one after another and as a stack: what a step of each costs, and what a whole pool costs.

    python -m benchmarks.reference_engines             # about ten minutes on one quiet core
    python -m benchmarks.reference_engines --quick     # a minute: to see that it runs

A step: K models take a step of fused AdamW on batches that are there already, in a plain loop over the models and as a
stack, in turns; CPU time, and the ratio of the two within each turn. A pool: `train_pool` both ways, loaders and
Trainer included. Last, the trial by which ``backend="auto"`` chooses, for the MLPs and for a transformer, of which
a stack must not be chosen where it is slower.
"""

from __future__ import annotations

import argparse
import itertools
import time

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks.turns import prepare, size
from memguard.references.data import TrainingData
from memguard.references.halves import halves
from memguard.references.job import Job
from memguard.references.pool import train_pool
from memguard.references.settings import Settings
from memguard.references.stackable import why_not_stacked
from memguard.references.stacked import Stack
from memguard.references.trial import trial
from recipes.nafld_next_code import NextCode

MLPS = ((9, 32, 32, 2), (64, 64, 64, 2))
BARS = {8: 2.0, 32: 4.0}
BATCH = 64


class Mlp(pl.LightningModule):
    """A classifier."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*layers[:-1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


class Gpt(NextCode):
    """The demo's transformer, over sequences of one length."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


def tabular(sizes: tuple[int, ...], n: int) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, sizes[0], generator=generator)
    return TrainingData(
        dataset=TensorDataset(x, (x[:, 0] > 0).long()), patient=np.arange(n), batch_size=BATCH
    )


class Sequences(torch.utils.data.Dataset):
    """Random codes; what they say does not matter for time."""

    def __init__(self, n: int, length: int, vocabulary: int) -> None:
        self.codes = torch.randint(1, vocabulary, (n, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> Tensor:
        return self.codes[row]


def jobs(factory, data: TrainingData, k: int, epochs: int = 10) -> list[Job]:
    n = len(data)
    masks = halves(data.patient, np.arange(n) < 2 * n // 3, k)
    settings = Settings.of({"max_epochs": epochs, "accelerator": "cpu"})
    return [
        Job(k=i, factory=factory, data=data, rows=np.flatnonzero(mask), settings=settings, seed=0)
        for i, mask in enumerate(masks)
    ]


def step(sizes: tuple[int, ...], k: int, turns: int) -> tuple[np.ndarray, np.ndarray]:
    """CPU seconds ``(turns,)`` in which k models take a step, by a loop and by a stack."""
    todo = jobs(lambda: Mlp(sizes), tabular(sizes, 4 * BATCH), k)
    assert not why_not_stacked(todo)
    stack = Stack(todo)
    batches = [(i, 0, next(iter(job.loader()))) for i, job in enumerate(todo)]
    models = [job.module() for job in todo]
    optimizers = [model.configure_optimizers() for model in models]

    def loop() -> None:
        for model, optimizer, (_, _, batch) in zip(models, optimizers, batches, strict=True):
            optimizer.zero_grad(set_to_none=True)
            model.training_step(batch, 0).backward()
            optimizer.step()

    def stacked() -> None:
        stack.take(batches)

    seconds = np.zeros((2, turns))
    for turn in range(-3, turns):
        for arm in (0, 1) if turn % 2 else (1, 0):
            began = time.process_time()
            (loop, stacked)[arm]()
            if turn >= 0:
                seconds[arm, turn] = time.process_time() - began
    return seconds[0], seconds[1]


def pool(sizes: tuple[int, ...], k: int, n: int, epochs: int) -> tuple[float, float]:
    """CPU seconds of a whole pool, one after another and stacked."""
    data = tabular(sizes, n)
    found = []
    for backend in ("sequential", "stacked"):
        began = time.process_time()
        train_pool(
            lambda: Mlp(sizes),
            data,
            in_mask=halves(data.patient, np.arange(n) < 2 * n // 3, k),
            trainer={"max_epochs": epochs, "accelerator": "cpu"},
            backend=backend,
            progress=False,
        )
        found.append(time.process_time() - began)
    return found[0], found[1]


def main(argv: list[str] | None = None) -> bool:
    """Print the tables; whether the bars of a step are met and the trial chooses rightly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    prepare(args.threads)
    turns, n, epochs = (40, 512, 2) if args.quick else (300, 2048, 5)
    met = True
    print(f"A step of K models, batch {BATCH}, {args.threads} thread(s), CPU time, medians of {turns} turns:")
    for sizes in MLPS:
        for k, bar in BARS.items():
            plain, stacked = step(sizes, k, turns)
            ratio = np.median(plain) / np.median(stacked)
            low, high = np.quantile(plain / stacked, (0.25, 0.75))
            met &= bool(ratio >= bar)
            print(
                f"  MLP {'-'.join(map(str, sizes))}, K = {k:2}: {1e3 * np.median(plain):6.2f} ms by a loop, "
                f"{1e3 * np.median(stacked):5.2f} ms stacked: {ratio:.1f} x (quartiles of turns {low:.1f} to "
                f"{high:.1f}; bar {bar:g} x {'met' if ratio >= bar else 'MISSED'})",
                flush=True,
            )
    print(f"A whole pool, {n:,} records, {epochs} epochs, loaders and Trainer included, CPU time:")
    for sizes in MLPS:
        for k in BARS:
            plain, stacked = pool(sizes, k, n, epochs)
            print(
                f"  MLP {'-'.join(map(str, sizes))}, K = {k:2}: {plain:6.1f} s one after another, {stacked:5.1f} s "
                f"stacked: {plain / stacked:.1f} x",
                flush=True,
            )
    print("What backend='auto' says:")
    length, vocabulary, batch = 64, 600, 32
    codes = Sequences(1024, length, vocabulary)
    texts = TrainingData(dataset=codes, patient=np.arange(1024), batch_size=batch)
    gpt = jobs(lambda: Gpt(vocabulary, width=64, layers=2), texts, 8)
    for name, todo in (
        *(("MLP " + "-".join(map(str, s)), jobs(lambda s=s: Mlp(s), tabular(s, 2048), 8)) for s in MLPS),
        (f"GPT d = 64, 2 layers, {size(gpt[0].module()):,} parameters, batch {batch} of {length} codes", gpt),
    ):
        found = trial(todo)
        print(f"  {name}: {found}", flush=True)
        met &= found.faster == name.startswith("MLP")
    return met


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
