"""Ranking on real patients: a next-code model on NAFLD event sequences.

python -m benchmarks.ranking.nafld --seed 2027 --cache .cache/ranking
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.ranking.lira import attack_table
from benchmarks.ranking.models import SequenceData
from benchmarks.ranking.score import split_half
from benchmarks.ranking.signals import Look, SequenceStudy, best_reference, sequence_tables
from benchmarks.ranking.train import Recipe
from benchmarks.ranking.truth import load_pool, one_model
from memguard.records.content import Ragged
from recipes.data.nafld import nafld_sequences

RECIPE = Recipe(epochs=32, rate=3e-3)
AT = (6, 7, 8, 10, 16, 24, 32)
SIZES = (3000, 600, 1500)  # pool, held-out, patients for the reference model
LOOKS = [
    Look(title="Final model (32 epochs)", epoch=32, truth=32),
    Look(title="After a quarter of the epochs, truth of the final models", epoch=8, truth=32),
    Look(title="After half of the epochs, truth of the final models", epoch=16, truth=32),
    Look(title="Early-stopped at the best held-out epoch, truth of that epoch", epoch=0, truth=0),
]


def load(
    seed: int, cache: Path, n_models: int, *, backwards: bool = False, tails: bool = False
) -> tuple[SequenceStudy, tuple[str, ...]]:
    """Draw the patients, train (or read) the half-models and the reference; with the names of the codes."""
    data = nafld_sequences(cache / "nafld-meds", seed=seed, sizes=SIZES, tails=tails)
    pool, held_out, spare = (data.rows(name) for name in ("train", "tuning", "held_out"))
    tensors = SequenceData(data.tokens, len(data.vocabulary))
    folder = cache / f"nafld-{'tails-' if tails else ''}{seed}"
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
    study = SequenceStudy(
        codes=data.tokens.take(pool),
        patient=data.patient_ids[pool],
        held_out=data.tokens.take(held_out),
        models=models,
        reference=best_reference(reference),
    )
    return study, data.vocabulary


def groups(codes: Ragged, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Masks of identifiable patients: a rare code, or few others of the same age, sex and diagnoses."""
    size = len(names)
    pairs = np.unique(codes.rows * size + codes.values)
    carriers = np.bincount(pairs % size, minlength=size)
    fewest = np.full(len(codes), len(codes))
    np.minimum.at(fewest, pairs // size, carriers[pairs % size])
    public = np.array([name.startswith(("AGE", "GENDER", "DIAGNOSIS")) for name in names])
    shown = np.zeros((len(codes), size), dtype=bool)
    shown[pairs // size, pairs % size] = public[pairs % size]
    _, kind, count = np.unique(shown, axis=0, return_inverse=True, return_counts=True)
    alike = count[kind.reshape(-1)]
    rare = int(np.ceil(0.01 * len(codes)))
    out = {
        "all": np.ones(len(codes), dtype=bool),
        "a code in <= 3 patients": fewest <= 3,
        "the others: no such code": fewest > 3,
        f"a code in <= {rare} patients (1 %)": fewest <= rare,
        "age, sex and diagnoses shared by <= 3": alike <= 3,
    }
    return {name: mask for name, mask in out.items() if mask.any()}


def _print_ranking(study: SequenceStudy, seed: int, best: np.ndarray) -> None:
    models, n = study.models, len(study.codes)
    everybody = {"": np.ones(n, dtype=bool)}
    tallies, fits = sequence_tables(study, LOOKS, everybody, len(models))
    print(f"## NAFLD, seed {seed}, {len(models)} half-models\n")
    print(f"Best held-out epoch {best.min()}-{best.max()} of {RECIPE.epochs}; base rates .01 and .05.\n")
    members = [np.flatnonzero(mask) for mask in models.inside]
    for look in LOOKS:
        tally = tallies[look.title, ""]
        epoch = look.truth or int(models.at[np.abs(models.at - np.median(best)).argmin()])
        ceiling = split_half(models, lambda only, epoch=epoch: models.truth(epoch, only=only), members)
        tally.add_values("(split-half agreement of the truth)", ceiling)
        print(tally.markdown(look.title))
    print("\n".join(fits), "\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=Path(".cache/ranking"))
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument(
        "--backwards", action="store_true", help="begin with the last model (a second process)"
    )
    parser.add_argument(
        "--tails", action="store_true", help="bins of their own for extreme values (rare codes)"
    )
    parser.add_argument("--groups-only", action="store_true", help="print the attack tables alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study, names = load(args.seed, args.cache, args.models, backwards=args.backwards, tails=args.tails)
    if args.train_only:
        return
    models = study.models
    best = models.held_out.mean(2).argmin(1) + 1
    if not args.groups_only:
        _print_ranking(study, args.seed, best)
    for epoch in (int(models.at[np.abs(models.at - np.median(best)).argmin()]), RECIPE.epochs):
        print(attack_table(models, epoch, groups(study.codes, names)))


if __name__ == "__main__":
    main()
