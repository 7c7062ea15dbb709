"""Ranking on the synthetic cohort with known strata: a next-code model and a phenotype classifier.

    python -m benchmarks.ranking.synthetic --seed 2027 --cache .cache/ranking
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.cohort import VOCABULARY, Cohort, make_cohort
from benchmarks.ranking.models import SequenceData, TabularData
from benchmarks.ranking.train import Recipe
from benchmarks.ranking.truth import Pool, load_pool, one_model
from memguard.records.content import Ragged

GPT_RECIPE = Recipe(epochs=16, rate=3e-3)
GPT_AT = (4, 5, 6, 8, 16)
MLP_RECIPE = Recipe(epochs=30, rate=1e-3, width=128)
MLP_AT = (4, 8, 12, 30)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One cohort and its models; pool rows come first, then held-out, then the reference's."""

    cohort: Cohort
    held_out: Cohort
    models: Pool
    reference: dict[str, np.ndarray]


def load(seed: int, cache: Path, n_models: int, kind: str) -> Study:
    """Draw the cohort, train (or read) the half-models and the reference."""
    pool, outside = make_cohort(seed, n_held_out=600 + 2000)
    codes = Ragged.concat([pool.codes, outside.codes])
    data: SequenceData | TabularData
    if kind == "gpt":
        data, recipe, at = SequenceData(codes, VOCABULARY), GPT_RECIPE, GPT_AT
    else:
        x = np.concatenate([pool.multi_hot(), outside.multi_hot()])
        data = TabularData(x, np.concatenate([pool.label, outside.label]), 12)
        recipe, at = MLP_RECIPE, MLP_AT
    n = len(pool.codes)
    rows, held_out, spare = np.arange(n), np.arange(n, n + 600), np.arange(n + 600, n + 2600)
    folder = cache / f"synthetic-{kind}-{seed}"
    models = load_pool(
        folder, data, rows, pool.patient, held_out, recipe, n_models=n_models, seed=seed, at=at
    )
    early = tuple(range(2, recipe.epochs // 2))
    reference = one_model(
        folder / "reference.npz",
        data,
        spare,
        held_out,
        recipe,
        seed + 500,
        every=np.arange(n + 600),
        at=early,
        stop=recipe.epochs // 2,
    )
    return Study(cohort=pool, held_out=outside, models=models, reference=reference)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--models", type=int, default=14, help="half-models of the next-code model")
    parser.add_argument("--classifiers", type=int, default=32)
    parser.add_argument("--cache", type=Path, default=Path(".cache/ranking"))
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.classifiers:
        load(args.seed, args.cache, args.classifiers, "mlp")
    if args.models:
        load(args.seed, args.cache, args.models, "gpt")


if __name__ == "__main__":
    main()
