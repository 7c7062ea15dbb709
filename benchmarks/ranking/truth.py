"""Ground truth from paired half-models: how much lower a record's loss is in models that trained on it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from benchmarks.ranking.models import SequenceData, TabularData
from benchmarks.ranking.train import Recipe, train

__all__ = ["Pool", "halves", "load_pool", "memorization", "one_model"]


def halves(patient: np.ndarray, n_models: int, seed: int) -> np.ndarray:
    """Bool ``(n_models, N)``: complementary halves of the patients, a fresh division for each pair."""
    ids, code = np.unique(patient, return_inverse=True)
    rng = np.random.default_rng([seed, 17])
    out = np.zeros((n_models, len(patient)), dtype=bool)
    for k in range(0, n_models, 2):
        chosen = np.zeros(len(ids), dtype=bool)
        chosen[rng.permutation(len(ids))[: len(ids) // 2]] = True
        out[k] = chosen[code]
        if k + 1 < n_models:
            out[k + 1] = ~out[k]
    return out


def one_model(
    path: Path,
    data: SequenceData | TabularData,
    members: np.ndarray,
    held_out: np.ndarray,
    recipe: Recipe,
    seed: int,
    *,
    every: np.ndarray,
    at: tuple[int, ...],
    stop: int | None = None,
) -> dict[str, np.ndarray]:
    """Train a model, or read what an earlier run left at ``path``."""
    if not path.exists():
        began = time.perf_counter()
        result = train(data, members, held_out, recipe, seed, every=every, at=at, stop=stop)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **result)
        os.replace(part, path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


class Pool:
    """The half-models of one data set.

    Attributes:
        inside: bool ``(K, N)``, which pool records each model trained on.
        losses: ``(K, A, N)`` eval losses of all pool records at the epochs ``at``.
        traces: K arrays ``(E, n_k)``, train-time losses of the model's members in pool order.
        held_out: ``(K, E, M)`` eval losses of the held-out records after each epoch.
    """

    def __init__(self, inside: np.ndarray, runs: list[dict[str, np.ndarray]]) -> None:
        self.inside = inside
        self.at = runs[0]["at"]
        self.losses = np.stack([run["every"] for run in runs]).astype(np.float64)
        self.traces = [run["trace"].astype(np.float64) for run in runs]
        self.held_out = np.stack([run["held_out"] for run in runs]).astype(np.float64)

    def __len__(self) -> int:
        return len(self.inside)

    def eval_loss(self, model: int, epoch: int) -> np.ndarray:
        """Eval losses ``(N,)`` of one model after ``epoch`` epochs."""
        return self.losses[model, int(np.flatnonzero(self.at == epoch)[0])]

    def truth(
        self,
        epoch: int,
        *,
        without: int | None = None,
        only: np.ndarray | None = None,
        probability: bool = False,
    ) -> np.ndarray:
        """Memorization ``(N,)`` after ``epoch`` epochs, a target's own run left out.

        In nats, or as a difference in the probability of the true label (``probability``).
        """
        keep = np.ones(len(self), dtype=bool) if only is None else only.copy()
        if without is not None:
            keep[without] = False
        losses = self.losses[:, int(np.flatnonzero(self.at == epoch)[0])]
        return memorization(self.inside[keep], 1 - np.exp(-losses[keep]) if probability else losses[keep])


def memorization(inside: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """``mean_out - mean_in`` of each record, from ``(K, N)`` masks and losses."""
    n_in = inside.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_in = (losses * inside).sum(0) / n_in
        mean_out = (losses * ~inside).sum(0) / (len(inside) - n_in)
    return mean_out - mean_in


def load_pool(
    folder: Path,
    data: SequenceData | TabularData,
    pool: np.ndarray,
    patient: np.ndarray,
    held_out: np.ndarray,
    recipe: Recipe,
    *,
    n_models: int,
    seed: int,
    at: tuple[int, ...],
    backwards: bool = False,
) -> Pool:
    """Train (or read) the half-models.

    Args:
        folder: where the arrays of each model lie; what is there is not trained again.
        data: all records.
        pool: rows that half-models train on.
        patient: patient of each row of ``pool``; halves are drawn by patient.
        held_out: rows never trained on.
        recipe: the settings of all.
        n_models: how many, in complementary pairs.
        seed: of the halves, the weights and the batches.
        at: epochs at which all of ``pool`` is evaluated.
        backwards: begin with the last model, so that two processes can share the work.
    """
    inside = halves(patient, n_models, seed)

    def run(k: int) -> dict[str, np.ndarray]:
        return one_model(
            folder / f"half-{k:02d}.npz",
            data,
            pool[inside[k]],
            held_out,
            recipe,
            1000 * (seed % 100_000) + k,
            every=pool,
            at=at,
        )

    if backwards:
        for k in reversed(range(n_models)):
            run(k)
    return Pool(inside, [run(k) for k in range(n_models)])
