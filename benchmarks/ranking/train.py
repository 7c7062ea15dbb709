"""Train one model and keep what a monitor would see: train-time losses of members, losses of held-out records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.ranking.models import SequenceData, TabularData, record_loss

__all__ = ["Recipe", "train"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model of the benchmark is trained (AdamW, cosine to zero over ``epochs``)."""

    epochs: int
    rate: float
    batch: int = 64
    decay: float = 0.01
    dropout: float = 0.0
    width: int = 64


def train(
    data: SequenceData | TabularData,
    members: np.ndarray,
    held_out: np.ndarray,
    recipe: Recipe,
    seed: int,
    *,
    every: np.ndarray | None = None,
    at: tuple[int, ...] = (),
    stop: int | None = None,
) -> dict[str, np.ndarray]:
    """Train on ``members``.

    Args:
        data: all records.
        members: rows trained on.
        held_out: rows evaluated after every epoch.
        recipe: the settings.
        seed: of the initial weights and of the order of the batches.
        every: rows (members or not) whose eval-mode loss is kept at the epochs ``at`` and at the last.
        at: number of epochs done, at which ``every`` is evaluated.
        stop: end after so many epochs; the cosine still reaches zero at ``recipe.epochs``.

    Returns:
        ``trace`` (E, n) train-time loss of each member, ``held_out`` (E, M) eval loss after each epoch,
        ``at`` (A,) epochs done and ``every`` (A, len(every)) eval losses then.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    model = data.model(dropout=recipe.dropout, width=recipe.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, fused=True)
    steps = -(-len(members) // recipe.batch) * recipe.epochs
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    epochs = recipe.epochs if stop is None else stop
    trace = np.full((epochs, len(members)), np.nan, dtype=np.float32)
    outside = np.full((epochs, len(held_out)), np.nan, dtype=np.float32)
    kept: dict[int, np.ndarray] = {}
    rows = torch.from_numpy(members)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(members), generator=generator)
        for start in range(0, len(order), recipe.batch):
            part = order[start : start + recipe.batch]
            loss = data.loss(model, rows[part])
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()
            cosine.step()
            trace[epoch, part.numpy()] = loss.detach().numpy()
        outside[epoch] = record_loss(model, data, held_out)
        if every is not None and (epoch + 1 in at or epoch + 1 == epochs):
            kept[epoch + 1] = record_loss(model, data, every)
    out = {"members": members, "trace": trace, "held_out": outside}
    if every is not None:
        out["at"] = np.array(sorted(kept))
        out["every"] = np.stack([kept[k] for k in sorted(kept)])
    return out
