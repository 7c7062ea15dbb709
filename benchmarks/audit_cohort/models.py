"""Next-code models on halves of the synthetic cohort by patient, trained once and kept in a folder."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.cohort import Cohort, make_cohort
from benchmarks.ranking.models import SequenceData
from benchmarks.ranking.truth import halves

__all__ = ["Recipe", "World", "load_world"]

VOCABULARY = 600


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a cohort is made and a model of it trained (AdamW, cosine to zero).

    Attributes:
        n: Records of the cohort, both sides of a model together.
        epochs: As many as a model takes that nobody stopped early.
        rate: Learning rate.
        batch: Records a step.
        width: Of the transformer.
    """

    n: int = 4000
    epochs: int = 16
    rate: float = 3e-3
    batch: int = 64
    width: int = 64

    @property
    def tag(self) -> str:
        """Other settings are other models."""
        return f"n{self.n}-{sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class World:
    """A cohort and K models, each trained on half of its patients.

    Attributes:
        cohort: N records.
        inside: ``(K, N)`` who was trained on.
        models: In eval mode.
    """

    cohort: Cohort
    inside: np.ndarray
    models: list[nn.Module]


def load_world(seed: int, n_models: int, recipe: Recipe, folder: Path) -> World:
    """Train what is not there yet; a run that was killed goes on with the next model."""
    cohort, _ = make_cohort(seed, n=recipe.n, n_held_out=1)
    inside = halves(cohort.patient, n_models, seed)
    data = SequenceData(cohort.codes, VOCABULARY)
    models = []
    for k in range(n_models):
        path = folder / f"{seed}-{recipe.tag}-{k}.pt"
        model = data.model(width=recipe.width)
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            began = time.perf_counter()
            model = _train(data, np.flatnonzero(inside[k]), recipe, 1000 * seed + k)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            torch.save(model.state_dict(), part)
            os.replace(part, path)
            print(f"trained {path.name}: {time.perf_counter() - began:.0f} s", flush=True)
        models.append(model.eval())
    return World(cohort=cohort, inside=inside, models=models)


def _train(data: SequenceData, members: np.ndarray, recipe: Recipe, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    model = data.model(width=recipe.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01, fused=True)
    steps = -(-len(members) // recipe.batch) * recipe.epochs
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rows = torch.from_numpy(members)
    model.train()
    for _ in range(recipe.epochs):
        for part in torch.randperm(len(members), generator=generator).split(recipe.batch):
            optimizer.zero_grad(set_to_none=True)
            data.loss(model, rows[part]).mean().backward()
            optimizer.step()
            cosine.step()
    return model
