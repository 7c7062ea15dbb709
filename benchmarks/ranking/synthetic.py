"""Ranking on the synthetic cohort with known strata: a next-code model and a phenotype classifier.

python -m benchmarks.ranking.synthetic --seed 2027 --cache .cache/ranking
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.cohort import STRATA, VOCABULARY, Cohort, make_cohort
from benchmarks.ranking.lira import attack_table
from benchmarks.ranking.models import SequenceData, TabularData
from benchmarks.ranking.score import split_half
from benchmarks.ranking.signals import (
    Look,
    SequenceStudy,
    TabularStudy,
    best_reference,
    sequence_tables,
    tabular_tables,
)
from benchmarks.ranking.train import Recipe
from benchmarks.ranking.truth import Pool, load_pool, one_model
from memguard.records.content import Ragged

GPT_RECIPE = Recipe(epochs=16, rate=3e-3)
GPT_AT = (4, 5, 6, 8, 16)
MLP_RECIPE = Recipe(epochs=30, rate=1e-3, width=128)
MLP_AT = (4, 8, 12, 30)


GPT_LOOKS = [
    Look(title="Next-code, final model (16 epochs)", epoch=16, truth=16),
    Look(title="Next-code, a quarter of the epochs, truth of the final models", epoch=4, truth=16),
    Look(title="Next-code, half of the epochs, truth of the final models", epoch=8, truth=16),
]
MLP_LOOKS = [
    Look(title="Classifier, final model (30 epochs)", epoch=30, truth=30),
    Look(title="Classifier, a quarter of the epochs, truth of the final models", epoch=8, truth=30),
]


def load(seed: int, cache: Path, n_models: int, kind: str) -> tuple[Cohort, Cohort, Pool, np.ndarray]:
    """Draw the cohort, train (or read) the half-models; with the reference's losses of pool and held-out."""
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
    reference = one_model(
        folder / "reference.npz",
        data,
        spare,
        held_out,
        recipe,
        seed + 500,
        every=np.arange(n + 600),
        at=tuple(range(2, recipe.epochs // 2)),
        stop=recipe.epochs // 2,
    )
    return pool, outside, models, best_reference(reference)


def next_code(seed: int, cache: Path, n_models: int, n_targets: int) -> None:
    """Print the tables of the next-code model."""
    cohort, outside, models, reference = load(seed, cache, n_models, "gpt")
    study = SequenceStudy(
        codes=cohort.codes,
        patient=cohort.patient,
        held_out=outside.codes.take(np.arange(600)),
        models=models,
        reference=reference,
    )
    subsets = {"all": np.ones(len(cohort.codes), dtype=bool), "ordinary records": cohort.stratum == 0}
    tallies, fits = sequence_tables(study, GPT_LOOKS, subsets, n_targets)
    best = models.held_out.mean(2).argmin(1) + 1
    print(f"## Synthetic cohort, seed {seed}, {n_models} half-models\n")
    print(f"Best held-out epoch {best.min()}-{best.max()} of {GPT_RECIPE.epochs}; base rates .01 and .05.\n")
    for look in GPT_LOOKS:
        for name, mask in subsets.items():
            tally = tallies[look.title, name]
            members = [np.flatnonzero(inside & mask) for inside in models.inside[:n_targets]]
            ceiling = split_half(models, lambda only, e=look.truth: models.truth(e, only=only), members)
            tally.add_values("(split-half agreement of the truth)", ceiling)
            print(tally.markdown(f"{look.title}; {name}"))
    print("\n".join(fits), "\n")
    by_stratum = {name: cohort.stratum == i for i, name in enumerate(STRATA)}
    print(attack_table(models, GPT_RECIPE.epochs, {"all": subsets["all"], **by_stratum}))


def classifier(seed: int, cache: Path, n_models: int, n_targets: int) -> None:
    """Print the tables of the classifier."""
    cohort, outside, models, reference = load(seed, cache, n_models, "mlp")
    study = TabularStudy(
        x=cohort.multi_hot(),
        y=cohort.label,
        patient=cohort.patient,
        x_out=outside.multi_hot()[:600],
        y_out=outside.label[:600],
        models=models,
        reference=reference,
    )
    clean = cohort.label == cohort.phenotype
    tallies, fits = tabular_tables(study, MLP_LOOKS, n_targets, clean)
    print(f"## Synthetic cohort, classifier, seed {seed}, {n_models} half-models\n")
    for look in MLP_LOOKS:
        for name, mask in (("", np.ones(len(clean), dtype=bool)), (", true labels only", clean)):
            members = [np.flatnonzero(inside & mask) for inside in models.inside[:n_targets]]
            ceiling = split_half(
                models, lambda only, e=look.truth: models.truth(e, only=only, probability=True), members
            )
            tallies[look.title + name].add_values("(split-half agreement of the truth)", ceiling)
            print(tallies[look.title + name].markdown(look.title + name))
    print("\n".join(fits))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--models", type=int, default=14, help="half-models of the next-code model; 0: none")
    parser.add_argument("--classifiers", type=int, default=20, help="half-models of the classifier; 0: none")
    parser.add_argument(
        "--targets", type=int, default=99, help="half-models that take the part of the target"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/ranking"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.classifiers:
        classifier(args.seed, args.cache, args.classifiers, min(args.targets, args.classifiers))
    if args.models:
        next_code(args.seed, args.cache, args.models, min(args.targets, args.models))


if __name__ == "__main__":
    main()
