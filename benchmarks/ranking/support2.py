"""Ranking on real patients, tabular: death in hospital on SUPPORT2.

python -m benchmarks.ranking.support2 --seed 2027 --cache .cache/ranking
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.ranking.models import TabularData
from benchmarks.ranking.score import split_half
from benchmarks.ranking.signals import Look, TabularStudy, best_reference, tabular_tables
from benchmarks.ranking.train import Recipe
from benchmarks.ranking.truth import load_pool, one_model
from recipes.data.support2 import support2

RECIPE = Recipe(epochs=60, rate=1e-3)
AT = (8, 12, 16, 30, 60)
SIZES = (4000, 1000, 2000)  # pool, held-out, patients for the reference model


LOOKS = [
    Look(title="Overtrained (60 epochs)", epoch=60, truth=60),
    Look(title="After 16 of 60 epochs, truth of that epoch", epoch=16, truth=16),
]


def load(seed: int, cache: Path, n_models: int) -> TabularStudy:
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
    return TabularStudy(
        x=table.x[pool],
        y=table.y[pool],
        patient=table.patient_ids[pool],
        x_out=table.x[held_out],
        y_out=table.y[held_out],
        models=models,
        reference=best_reference(reference),
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--cache", type=Path, default=Path(".cache/ranking"))
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = load(args.seed, args.cache, args.models)
    if args.train_only:
        return
    models = study.models
    best = models.held_out.mean(2).argmin(1) + 1
    print(f"## SUPPORT2, seed {args.seed}, {len(models)} half-models\n")
    print(f"Best held-out epoch {best.min()}-{best.max()} of {RECIPE.epochs}; base rates .01 and .05.\n")
    tallies, fits = tabular_tables(study, LOOKS, len(models))
    members = [np.flatnonzero(mask) for mask in models.inside]
    for look in LOOKS:
        tally = tallies[look.title]
        ceiling = split_half(
            models, lambda only, e=look.truth: models.truth(e, only=only, probability=True), members
        )
        tally.add_values("(split-half agreement of the truth)", ceiling)
        print(tally.markdown(look.title))
    print("\n".join(fits))


if __name__ == "__main__":
    main()
