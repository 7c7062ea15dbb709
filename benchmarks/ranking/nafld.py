"""Ranking on real patients: a next-code model on NAFLD event sequences.

    python -m benchmarks.ranking.nafld --seed 2027 --cache .cache/ranking
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.ranking.models import SequenceData
from benchmarks.ranking.train import Recipe
from benchmarks.ranking.truth import Pool, load_pool, one_model
from memguard.records.content import Ragged
from recipes.data.nafld import nafld_sequences

RECIPE = Recipe(epochs=32, rate=3e-3)
AT = (6, 7, 8, 10, 16, 24, 32)
SIZES = (3000, 600, 1500)  # pool, held-out, patients for the reference model


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that the scoring needs."""

    codes: Ragged
    pool: np.ndarray
    held_out: np.ndarray
    models: Pool
    reference: dict[str, np.ndarray]


def load(seed: int, cache: Path, n_models: int, *, backwards: bool = False) -> Study:
    """Draw the patients, train (or read) the half-models and the reference."""
    data = nafld_sequences(cache / "nafld-meds", seed=seed, sizes=SIZES)
    pool, held_out, spare = (data.rows(name) for name in ("train", "tuning", "held_out"))
    tensors = SequenceData(data.tokens, len(data.vocabulary))
    folder = cache / f"nafld-{seed}"
    models = load_pool(
        folder,
        tensors,
        pool,
        data.patient_ids[pool],
        held_out,
        RECIPE,
        n_models=n_models,
        seed=seed,
        at=AT,
        backwards=backwards,
    )
    reference = one_model(
        folder / "reference.npz",
        tensors,
        spare,
        held_out,
        RECIPE,
        seed + 500,
        every=np.concatenate([pool, held_out]),
        at=tuple(range(4, 13)),
        stop=12,
    )
    return Study(codes=data.tokens, pool=pool, held_out=held_out, models=models, reference=reference)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=Path(".cache/ranking"))
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--backwards", action="store_true", help="begin with the last model (a second process)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load(args.seed, args.cache, args.models, backwards=args.backwards)
    if args.train_only:
        return


if __name__ == "__main__":
    main()
