"""Patients with some records each, small models, and losses; of one record, and of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CLASSES, FEATURES, WIDTH = 3, 6, 20


@dataclass
class World:
    """``x`` is ``(P, R, D)``, ``mask`` says which of the R records a patient has, ``y`` is ``(P, R)``."""

    x: torch.Tensor
    y: torch.Tensor
    mask: torch.Tensor

    @property
    def n(self):
        return len(self.x)


def cohort(n=80, seed=0, records=4):
    rng = np.random.default_rng(seed)
    have = rng.integers(1, records + 1, size=n)
    x = 1.5 * rng.normal(size=(n, records, FEATURES)) + rng.normal(size=(n, 1, FEATURES))
    y = rng.integers(0, CLASSES, size=(n, records))
    mask = np.arange(records) < have[:, None]
    return World(torch.tensor(x, dtype=torch.float32), torch.tensor(y), torch.tensor(mask))


def with_odd_patients(world):
    """Beside the cohort: one of huge values, one with a NaN. Positions n and n + 1."""
    huge, nan = world.x[:1] * 1000, world.x[1:2].clone()
    nan[0, 0, 0] = math.nan
    pick = torch.tensor([*range(world.n), 0, 1])
    return World(torch.cat([world.x, huge, nan]), world.y[pick], world.mask[pick])


def canaries(m, seed):
    """Patients that are one canary each: one feature that nobody else has, and a random class."""
    rng = np.random.default_rng(seed)
    x = torch.zeros(m, 1, m)
    x[torch.arange(m), 0, torch.arange(m)] = 5.0
    return World(x, torch.tensor(rng.integers(0, CLASSES, size=(m, 1))), torch.ones(m, 1, dtype=torch.bool))


class Standardizing(nn.Module):
    """What BatchNorm does, written out."""

    def forward(self, h):
        return (h - h.mean(0)) / (h.var(0, unbiased=False) + 0.1).sqrt() if len(h) else h


class BatchNorm(nn.BatchNorm1d):
    """One that does not refuse a batch of one record."""

    def forward(self, h):
        return super().forward(h) if len(h) != 1 else super().forward(torch.cat([h, h]))[:1]


class Tied(nn.Module):
    """Codes and decodes with one weight; the second use goes past the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(FEATURES, WIDTH)

    def forward(self, x):
        return F.linear(torch.tanh(self.layer(x)), self.layer.weight.T)


def model(bug=None, features=FEATURES, linear=False):
    if linear:
        net = nn.Sequential(nn.Linear(features, CLASSES))
        nn.init.zeros_(net[0].weight)
        return net
    middle = {"batch_norm": BatchNorm(WIDTH), "batch_standardized": Standardizing()}.get(bug, nn.Identity())
    if bug == "tied_weight":
        return Tied()
    return nn.Sequential(nn.Linear(features, WIDTH), middle, nn.Tanh(), nn.Linear(WIDTH, CLASSES))


def record_losses(net, x, y, bug=None):
    """One loss for each record; with some bugs, a function of the whole batch."""
    out = net(x)
    if bug == "tied_weight":
        return (out - x).square().sum(1)
    if bug == "class_weighted_mean":
        weight = torch.tensor([1.0, 0.3, 3.0])[y]
        return F.cross_entropy(out, y, reduction="none") * weight / weight.sum() * len(y)
    if bug == "cox":  # in the order of the batch, which is that of the times
        risk = out[:, 0]
        return torch.logcumsumexp(risk.flip(0), 0).flip(0) - risk
    if bug == "contrastive":
        h = F.normalize(out, dim=1)
        return F.cross_entropy(h @ h.T / 0.2, torch.arange(len(h)), reduction="none")
    return F.cross_entropy(out, y, reduction="none")
