"""What DP-SGD costs beside training without privacy, and beside Opacus: methods take turns, step by step.

    python -m benchmarks.dp_speed              # about 15 minutes on one quiet core
    python -m benchmarks.dp_speed --quick      # small models, a few rounds: to see that it runs

Every method trains a copy of one model on the same records in one process. In each round each takes one step, in an
order that rotates, so that a machine that slows down slows all of them; a ratio is that of two steps of one round.
Clipping, noise of 1 and the optimizer's step are included everywhere. Peak memory is measured in a process of its own
for each method, over what that process held before the first step. Last, a Trainer with the callback takes turns with
one without it: loader, ledger and logging included.

Opacus runs as it does alone: its optimizer and hooks in a plain loop. It draws and clips records and knows no
patients, so only memguard has a column for patients, of two to four records each.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
import numpy as np
import torch
from opacus import PrivacyEngine
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.turns import CLOCKS, Cost, measure, prepare, size
from memguard.callbacks.dpsgd import DPSGD
from memguard.privacy.engines.base import Engine, Work
from memguard.privacy.engines.loop import LoopEngine
from memguard.privacy.engines.opacus import OpacusEngine
from memguard.privacy.engines.still import no_dropout
from memguard.privacy.mechanism import Mechanism
from memguard.privacy.noise import NoiseSource, entropy
from memguard.privacy.sampling import PatientSampler

Arm = tuple[nn.Module, Callable[[], None]]  # what is trained, and a step of it
MAX_GRAD_NORM, LR = 1.0, 1e-3
UNITS = ("record", "patient")


# -- models ------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention from linear layers, which every method takes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.given, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.given(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.ahead = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.ahead(self.norms[1](x))


class Gpt(nn.Module):
    """Next-code model; its head is not tied to its embedding, which ghost clipping does not take."""

    def __init__(self, codes: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.codes, self.places = nn.Embedding(codes, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, codes)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).repeat(
            len(x), 1
        )  # one row a record, or Opacus cannot tell them apart
        return self.head(self.norm(self.blocks(self.codes(x) + self.places(places))))


class Gru(nn.Module):
    """An outcome from a sequence of codes."""

    def __init__(self, codes: int, width: int, hidden: int) -> None:
        super().__init__()
        self.codes, self.gru = nn.Embedding(codes, width), nn.GRU(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.codes(x))[0][:, -1])


def mlp(features: int, width: int) -> nn.Module:
    """Two hidden layers, with norms."""
    return nn.Sequential(
        nn.Linear(features, width), nn.LayerNorm(width), nn.ReLU(),
        nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(),
        nn.Linear(width, 2),
    )  # fmt: skip


def records(model: str, n: int, *, quick: bool) -> TensorDataset:
    """Inputs and targets of ``n`` records of one length."""
    length, codes = (12, 50) if quick else (128, 5000)
    if model == "MLP":
        return TensorDataset(torch.randn(n, 10 if quick else 100), torch.randint(0, 2, (n,)))
    if model == "GRU":
        return TensorDataset(torch.randint(0, codes, (n, length)), torch.randint(0, 2, (n,)))
    tokens = torch.randint(0, codes, (n, length + 1))
    return TensorDataset(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def network(model: str, *, quick: bool) -> nn.Module:
    """The model of that name, from the same seed each time."""
    torch.manual_seed(0)
    if model == "MLP":
        return mlp(10, 16) if quick else mlp(100, 512)
    if model == "GRU":
        return Gru(50, 8, 12) if quick else Gru(5000, 128, 256)
    return Gpt(50, 16, 1, 12) if quick else Gpt(5000, 128, 4, 128)


def batch_size(model: str, *, quick: bool) -> int:
    """Records in a step."""
    return 8 if quick else 256 if model == "MLP" else 32


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over records, and over the codes of each."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


# -- methods -----------------------------------------------------------------------------------------------------


def owners(n: int, unit: str) -> np.ndarray:
    """Whose each of ``n`` records is: their own, or of patients with two to four."""
    if unit == "record":
        return np.arange(n)
    return np.repeat(np.arange(n), 2 + np.arange(n) % 3)[:n]


def without(net: nn.Module, data: TensorDataset, *_: object) -> Arm:
    """Training without privacy."""
    optimizer, (x, y) = torch.optim.SGD(net.parameters(), LR), data.tensors

    def step() -> None:
        optimizer.zero_grad()
        mean_loss(net(x), y).backward()
        optimizer.step()

    return net, step


def ours(kind: type[Engine], net: nn.Module, data: TensorDataset, unit: str, noise_multiplier: float) -> Arm:
    """What DPSGD does in a step: the draw (of everybody here), the engine, noise, and the user's optimizer."""
    parameters, owner = list(net.parameters()), owners(len(data), unit)
    optimizer, (x, y) = torch.optim.SGD(parameters, LR), data.tensors
    sampler = PatientSampler(owner, rates=1.0, steps=1_000_000, chunks=1, max_records=None, seed=entropy())
    engine = kind(net, parameters)
    engine.attach()
    mechanism = Mechanism(
        engine, parameters, sampler, NoiseSource(),
        max_grad_norm=MAX_GRAD_NORM, expected_owners=float(owner.max() + 1),
    )  # fmt: skip
    draws = iter(sampler)

    def read(position: int) -> tuple[Tensor, Tensor]:
        return x[position : position + 1], y[position : position + 1]

    def run_step(batch: tuple[Tensor, Tensor]) -> Tensor:
        return mean_loss(net(batch[0]), batch[1])

    if isinstance(engine, OpacusEngine):
        few = PatientSampler(np.arange(4), rates=1.0, steps=1, chunks=1, max_records=None, seed=entropy())
        with no_dropout():
            engine.calibrate(Work((x[:4], y[:4]), few.take(next(iter(few)))), run_step, read)

    def step() -> None:
        drawn = next(draws)
        mechanism.take((x[drawn], y[drawn]), np.asarray(drawn), run_step, read)
        released = mechanism.release(noise_multiplier)
        for parameter, gradient in zip(parameters, released.gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return net, step


def theirs(mode: str, net: nn.Module, data: TensorDataset, _: str, noise_multiplier: float) -> Arm:
    """Opacus: its hooks on the model, its optimizer around the user's; in ghost mode its loss too."""
    net = ModuleValidator.fix(net)  # its own GRU in place of PyTorch's
    net.train()
    x, y = data.tensors
    _hooks, optimizer, *more = PrivacyEngine().make_private(
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), LR),
        data_loader=DataLoader(data, batch_size=len(data)),
        criterion=nn.CrossEntropyLoss(),
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
        poisson_sampling=False,  # the batches are given here; this changes no arithmetic
        grad_sample_mode=mode,
        wrap_model=False,
    )

    def loss_of(logits: Tensor) -> Tensor:
        if mode != "ghost":
            return mean_loss(logits, y)
        shape = {"shape": logits.shape} if logits.dim() == 3 else {}
        return more[0](logits.flatten(0, -2), y.flatten(), **shape)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(net(x)).backward()
        optimizer.step()

    return net, step


METHODS: dict[str, Callable[[nn.Module, TensorDataset, str, float], Arm]] = {
    "without privacy": without,
    'DPSGD engine="opacus"': partial(ours, OpacusEngine),
    'DPSGD engine="loop"': partial(ours, LoopEngine),
    "Opacus hooks": partial(theirs, "hooks"),
    "Opacus functorch": partial(theirs, "functorch"),
    "Opacus ghost": partial(theirs, "ghost"),
}
BASE, *PRIVATE = METHODS
MODELS = ("GPT", "MLP", "GRU")


def made(model: str, method: str, unit: str = "record", *, quick: bool, noise_multiplier: float = 1.0) -> Arm:
    """A fresh copy of a model, and a step of a method on it; records are the same for all."""
    net = network(model, quick=quick)
    data = records(model, batch_size(model, quick=quick), quick=quick)
    return METHODS[method](net, data, unit, noise_multiplier)


# -- time --------------------------------------------------------------------------------------------------------


def arms() -> Iterator[tuple[str, str]]:
    """Methods and units that are measured."""
    for method in METHODS:
        for unit in UNITS if method.startswith("DPSGD") else UNITS[:1]:
            yield method, unit


def turns(steps: Sequence[Callable[[], None]], rounds: int) -> np.ndarray:
    """CPU seconds ``(rounds, arms)``; the first arm to go rotates, and one round before does not count."""
    seconds = np.full((rounds + 1, len(steps)), np.nan)
    for number in range(rounds + 1):
        for at in np.roll(np.arange(len(steps)), -number):
            start = time.process_time()
            steps[at]()
            seconds[number, at] = time.process_time() - start
    return seconds[1:]


# -- memory ------------------------------------------------------------------------------------------------------


def memory() -> tuple[float, float]:
    """MiB that this process holds now, and the most that it ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak / 2**20, peak / 2**20
    return pages * os.sysconf("SC_PAGESIZE") / 2**20, peak / 2**20


def peak_of(model: str, method: str, unit: str, quick: bool) -> float:
    """MiB over what the process held before its first two steps. Run it in a process that did nothing else."""
    torch.set_num_threads(1)
    for small in (True, quick):  # a first one that is small, since code is loaded when it is first run
        _net, step = made(model, method, unit, quick=small)
        before, _ = memory()
        step()
    step()
    return max(0.0, memory()[1] - before)


def peak(model: str, method: str, unit: str, *, quick: bool) -> float:
    """:func:`peak_of` in a process of its own, forked from one that has imported all this and allocated nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.dp_speed"])
    with context.Pool(1) as pool:
        return pool.apply(peak_of, (model, method, unit, quick))


# -- the whole Trainer -------------------------------------------------------------------------------------------


class Module(pl.LightningModule):
    """A model in a Trainer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = mean_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LR)


def trainers(model: str, steps: int, folder: str, *, quick: bool) -> Callable:
    """Makes the arms for `measure`: the same records, drawn by Poisson sampling in the one, shuffled in the other."""
    size = batch_size(model, quick=quick)
    data = records(model, size * steps, quick=quick)
    data.patient_ids = np.arange(len(data))  # type: ignore[attr-defined]

    def make(private: bool) -> tuple[pl.LightningModule, DataLoader, list[pl.Callback]]:
        callback = DPSGD(
            noise_multiplier=1.0, max_grad_norm=MAX_GRAD_NORM, dirpath=folder,
            physical_batch_size=4 * size, engine="opacus",
        )  # fmt: skip
        loader = DataLoader(data, size, shuffle=True)
        return Module(copy.deepcopy(network(model, quick=quick))), loader, [callback] if private else []

    return make


def in_trainer(model: str, *, quick: bool) -> list[str]:
    """A line a clock: how much longer a step takes with the callback."""
    with TemporaryDirectory() as folder:
        steps = 4 if quick else {"GPT": 6, "GRU": 20, "MLP": 40}[model]
        make = trainers(model, steps, folder, quick=quick)
        seconds = measure(make, epochs=3, repeats=1 if quick else 2)
    lines = []
    for clock, each in zip(CLOCKS, seconds, strict=True):
        cost = Cost(each)
        plain, more = cost.plain[0].mean(), cost.added[0].mean()
        lines.append(
            f"{clock} time of a step in a Trainer: {1 + more / plain:.2f} times {1e3 * plain:.1f} ms"
        )
    return lines


# -- the table ---------------------------------------------------------------------------------------------------


def table(model: str, rounds: int, *, quick: bool) -> Iterator[str]:
    """Lines of Markdown."""
    measured, steps, failed = list(arms()), [], {}
    for method, unit in measured:
        try:
            _net, step = made(model, method, unit, quick=quick)
            step()
        except Exception as error:  # a method that does not take a model is a result
            failed[method, unit] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        steps.append(step)
    ran = [each for each in measured if each not in failed]
    seconds = turns(steps, rounds)
    ratios = seconds / seconds[:, :1]
    yield f"| {model} | CPU time of a step, ratio | quartiles | peak memory, MiB |\n|---|---|---|---|"
    for at, (method, unit) in enumerate(ran):
        low, middle, high = np.quantile(ratios[:, at], (0.25, 0.5, 0.75))
        most = peak(model, method, unit, quick=quick)
        label = f"{method}, patients" if unit == "patient" else method
        yield f"| {label} | {middle:.2f} | {low:.2f} to {high:.2f} | {most:.0f} |"
    for (method, unit), why in failed.items():
        yield f"| {method}, {unit}s | cannot: {why} | | |"
    yield f"\nWithout privacy a step takes {1e3 * np.median(seconds[:, 0]):.1f} ms of CPU time."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, help="steps that count; 10, and 30 of the MLP, by default")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    args = parser.parse_args(argv)
    prepare(args.threads)
    for model in args.models:
        rounds = args.rounds or (3 if args.quick else 30 if model == "MLP" else 10)
        net, load = network(model, quick=args.quick), os.getloadavg()[0]
        print(
            f"\n## {model}: {size(net):,} parameters, batches of {batch_size(model, quick=args.quick)}, ",
            end="",
        )
        print(f"{rounds} rounds, {args.threads} thread(s), load {load:.1f} on {os.cpu_count()} cores\n")
        for line in (*table(model, rounds, quick=args.quick), *in_trainer(model, quick=args.quick)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
