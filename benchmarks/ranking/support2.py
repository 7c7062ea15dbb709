"""Ranking on real patients, tabular: death in hospital on SUPPORT2.

    python -m benchmarks.ranking.support2 --seed 2027 --cache .cache/ranking
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.ranking.models import TabularData
from benchmarks.ranking.train import Recipe
from benchmarks.ranking.truth import Pool, load_pool, one_model
from recipes.data.support2 import support2

RECIPE = Recipe(epochs=60, rate=1e-3)
AT = (8, 12, 16, 30, 60)
SIZES = (4000, 1000, 2000)  # pool, held-out, patients for the reference model


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that the scoring needs."""

    x: np.ndarray
    y: np.ndarray
    pool: np.ndarray
    held_out: np.ndarray
    models: Pool
    reference: dict[str, np.ndarray]


def load(seed: int, cache: Path, n_models: int) -> Study:
    """Draw the patients, train (or read) the half-models and the reference."""
    table = support2(seed=seed, sizes=SIZES)
    pool, held_out, spare = (table.rows(name) for name in ("train", "tuning", "held_out"))
    data = TabularData(table.x, table.y, 2)
    folder = cache / f"support2-{seed}"
    models = load_pool(
        folder, data, pool, table.patient_ids[pool], held_out, RECIPE, n_models=n_models, seed=seed, at=AT
    )
    reference = one_model(
        folder / "reference.npz",
        data,
        spare,
        held_out,
        RECIPE,
        seed + 500,
        every=np.concatenate([pool, held_out]),
        at=tuple(range(2, 30)),
        stop=30,
    )
    return Study(x=table.x, y=table.y, pool=pool, held_out=held_out, models=models, reference=reference)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--models", type=int, default=32)
    parser.add_argument("--cache", type=Path, default=Path(".cache/ranking"))
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load(args.seed, args.cache, args.models)


if __name__ == "__main__":
    main()
