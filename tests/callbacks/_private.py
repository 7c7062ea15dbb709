"""Small models on patients with several records, and DP-SGD written out in plain torch to compare with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from memguard.callbacks.dpsgd import DPSGD


class Visits(Dataset):
    """``records`` visits of ``patients`` patients, unevenly."""

    def __init__(self, patients=24, records=60, features=6, seed=0):
        rng = np.random.default_rng(seed)
        self.patient_ids = np.concatenate(
            [np.arange(patients), rng.integers(0, patients, records - patients)]
        )
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(records, features, generator=generator)
        self.y = (self.x.sum(1) + 0.5 * torch.randn(records, generator=generator) > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Held(Visits):
    def __init__(self, patients=30, records=40, seed=1, **kwargs):
        super().__init__(patients, records, seed=seed, **kwargs)
        self.patient_ids = self.patient_ids + 1000


class Mlp(pl.LightningModule):
    def __init__(self, features=6, lr=0.1, optimizer="sgd"):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self):
        if self.hparams.optimizer == "adam":
            return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Data(pl.LightningDataModule):
    def __init__(self, train=None, val=None, batch_size=10, **loader):
        super().__init__()
        self.train = Visits() if train is None else train
        self.val = Held() if val is None else val
        self.batch_size, self.loader = batch_size, loader

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True, **self.loader)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.batch_size)


class Recorder(pl.Callback):
    """Keeps, for each optimizer step, weights and draw before it and the gradient that it used. Put it last."""

    def __init__(self, dpsgd):
        self.dpsgd, self.steps, self.batches = dpsgd, [], 0
        self._positions, self._owners = [], []

    def on_train_start(self, trainer, pl_module):
        mechanism = self.dpsgd._loop.mechanism
        take, recorder = mechanism.sampler.take, self

        def recorded(positions):
            chunk = take(positions)
            recorder.batches += 1
            if not chunk.empty:
                recorder._positions += chunk.positions.tolist()
            return chunk

        mechanism.sampler.take = recorded

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        weights = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        grads = {
            n: None if p.grad is None else p.grad.detach().clone() for n, p in pl_module.named_parameters()
        }
        self.steps.append((weights, self._positions, grads))
        self._positions = []


def plain_gradient(module, loss_of, dataset, weights, positions, owner, *, clip, expected, average="mean"):
    """Micro-batch DP-SGD without noise: one record at a time, one clipped gradient a patient."""
    now = {n: p.detach().clone() for n, p in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weights[name])
    by_owner = defaultdict(list)
    for position in positions:
        by_owner[owner[position]].append(position)
    total = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    parameters = dict(module.named_parameters())
    for rows in by_owner.values():
        sums = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for row in rows:
            grads = torch.autograd.grad(loss_of(module, row), list(parameters.values()), allow_unused=True)
            for name, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    sums[name] += grad
        if average == "mean":
            sums = {n: s / len(rows) for n, s in sums.items()}
        norm = torch.sqrt(sum(s.square().sum() for s in sums.values()))
        factor = min(1.0, clip / float(norm)) if norm > 0 else 1.0
        for name in total:
            total[name] += sums[name] * factor
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(now[name])
    return {n: t / expected for n, t in total.items()}


def private(*, engine="loop", noise_multiplier=0.0, max_grad_norm=0.5, checks=False, **settings):
    """A DPSGD without noise and checks, if nothing else is asked for."""
    if {"target_epsilon", "budgets"} & set(settings):
        noise_multiplier = None
    return DPSGD(
        engine=engine,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        checks=checks,
        **settings,
    )


def trainer(folder, *callbacks, **options):
    """A quiet Trainer on the CPU."""
    quiet = {
        "max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pl.Trainer(**{**quiet, **options}, callbacks=list(callbacks))


def worst(
    dpsgd, recorder, module, data, *, collate=default_collate, around=None, average="mean", by="patient"
):
    """Largest difference of an update from plain DP-SGD, over all steps and parameters."""
    owner = data.patient_ids if by == "patient" else range(len(data))

    def loss_of(mod, row):
        batch = collate([data[row]])
        if around is None:
            return mod.loss(batch)
        with around():
            return mod.loss(batch)

    found = 0.0
    for weights, positions, grads in recorder.steps:
        plain = plain_gradient(
            module, loss_of, data, weights, positions, owner,
            clip=dpsgd.settings.max_grad_norm, expected=dpsgd._run.plan.expected_owners, average=average,
        )  # fmt: skip
        for name, gradient in plain.items():
            ours = grads[name]
            if ours is None:
                assert not gradient.any()
            else:
                found = max(found, float((gradient - ours).abs().max()))
    return found


def sequences(records=24, vocabulary=20, longest=9, seed=0):
    rng = np.random.default_rng(seed)
    return [
        torch.from_numpy(rng.integers(1, vocabulary, length))
        for length in rng.integers(3, longest + 1, records)
    ]


class Codes(Dataset):
    """Sequences of codes of different lengths, some patients with several."""

    def __init__(self, records=24, patients=10, vocabulary=20, seed=0):
        rng = np.random.default_rng(seed)
        self.codes = sequences(records, vocabulary, seed=seed)
        self.patient_ids = np.concatenate(
            [np.arange(patients), rng.integers(0, patients, records - patients)]
        )

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, i):
        return self.codes[i]


def padded(records):
    """(B, T) codes, 0 where a record is shorter than the longest."""
    return nn.utils.rnn.pad_sequence(list(records), batch_first=True)


@dataclass
class Case:
    """A batch as a dataclass."""

    x: torch.Tensor
    y: torch.Tensor


def token_mean(logits, codes):
    """Mean over the tokens of the batch, as most code has it."""
    return F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten(), ignore_index=0)


class Steps(pl.LightningModule):
    """A module whose loss is ``loss(batch)``."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Gpt(Steps):
    """A transformer with learned positions, its head tied to the embedding or not."""

    def __init__(self, vocabulary=20, width=8, tied=False, functional=False, padding_idx=None, longest=16):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=padding_idx)
        self.place = nn.Embedding(longest, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)
        self.functional = functional
        if not functional:
            self.head = nn.Linear(width, vocabulary, bias=False)
            if tied:
                self.head.weight = self.embed.weight

    def forward(self, codes):
        length = codes.shape[1]
        hidden = self.embed(codes) + self.place(torch.arange(length, device=codes.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.block(hidden, src_mask=mask, is_causal=True)
        return F.linear(hidden, self.embed.weight) if self.functional else self.head(hidden)

    def loss(self, codes):
        return token_mean(self(codes[:, :-1]), codes)


class Rnn(Steps):
    def __init__(self, vocabulary=20, width=8):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def loss(self, codes):
        return token_mean(self.head(self.rnn(self.embed(codes[:, :-1]))[0]), codes)
