"""Patients with several records under DP-SGD by record and by patient, attacked by LiRA, on the synthetic cohort.

    OMP_NUM_THREADS=1 python -m benchmarks.private_cohort.halves --seeds 20262

Half-models are trained through ``Trainer`` and ``DPSGD``; each is attacked in turn, the others being its references.
What was trained lies in ``--cache`` and is not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from benchmarks.cohort import BOS, STRATA, VOCABULARY, make_cohort
from benchmarks.private_cohort.attack import VARIANCES, Found, attack, by_group, patient_losses
from benchmarks.private_cohort.training import ARMS, Pool, Recipe, load_pool
from memguard.privacy.accounting import Phase, epsilon, patient_epsilon
from memguard.records.content import Ragged

REPEATED = STRATA.index("repeated patient")
BAR = 0.10
SIZES = ((2, 3), (4, 5), (6, 8))


def unigram(pool: Ragged, outside: Ragged) -> float:
    """Validation loss of knowing nothing but how frequent each code is: what a useless model reaches."""
    counts = np.bincount(pool.values[pool.values > BOS], minlength=VOCABULARY) + 0.5
    counts[: BOS + 1] = 0.0
    with np.errstate(divide="ignore"):
        loss = -np.log(counts / counts.sum())
    return float(np.mean([loss[outside[i][1:]].mean() for i in range(len(outside))]))


def promises(pools: dict[str, Pool], recipe: Recipe, most: int) -> list[str]:
    """What each private arm promises, in words."""
    lines = []
    for arm in ARMS[1:]:
        pool = pools[arm]
        noise = recipe.noise if arm == "record" else recipe.patient_noise
        run = [Phase(noise, pool.sample_rate, pool.steps)]
        found = epsilon(run, recipe.delta)
        lines.append(
            f"{arm}: {run[0].steps} steps, sample rate {run[0].sample_rate:.4f}, noise multiplier {noise}, "
            f"epsilon {found.value:.1f} of a {arm} at delta {recipe.delta:g} ({found.accountant})"
        )
        for r in sorted({2, 4, most}) if arm == "record" else []:
            own = patient_epsilon(run, recipe.delta, r)
            lines.append(
                f"  of a patient with {r} records: epsilon {own.value:.1f} ({own.accountant}) {own.note}"
            )
    return lines


def run(seed: int, recipe: Recipe, *, n: int, n_models: int, cache: Path, fpr: float) -> None:
    """Train, attack and print one cohort."""
    pool, outside = make_cohort(seed, n=n, n_held_out=1000)
    settings = hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]  # other settings are other models
    folder = cache / f"{seed}-{n}-{settings}"
    pools = {
        arm: load_pool(arm, pool, outside, recipe, n_models=n_models, seed=seed, folder=folder)
        for arm in ARMS
    }
    base = unigram(pool.codes, outside.codes)
    repeats = np.bincount(pool.patient)
    print(f"\n## Cohort {seed}: {n} records, {n_models} half-models an arm\n")
    print(f"Validation loss of code frequencies alone: {base:.3f} nats per code.\n")
    print("\n".join(promises(pools, recipe, int(repeats.max()))), "\n")
    print("| arm | validation loss | group | patients | attack's variance | AUC | TPR, common threshold "
          "| own FPR there | TPR, own threshold |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    worst: dict[str, Found] = {}
    for arm, models in pools.items():
        each = models.validation.mean(1)
        told = f"{each.mean():.3f} ± {each.std(ddof=1) / np.sqrt(n_models):.3f}"
        by_patient, first = patient_losses(models.losses, pool.patient)
        inside, stratum = models.inside[:, first], pool.stratum[first]
        groups = {"all": np.ones(len(first), dtype=bool)}
        groups |= {name: stratum == i for i, name in enumerate(STRATA)}
        owned = repeats[pool.patient[first]]
        groups |= {f"repeated, {low}-{high} records": (low <= owned) & (owned <= high) for low, high in SIZES}
        tables = {v: by_group(attack(by_patient, inside, stratum, v), inside, groups, fpr) for v in VARIANCES}
        for name in tables[VARIANCES[0]]:
            best = max(VARIANCES, key=lambda v, name=name: tables[v][name].common.value)
            f = tables[best][name]
            print(
                f"| {arm} | {told} | {name} | {f.patients} | {best} | {f.auc.value:.3f} | {f.common:.2f} "
                f"| {f.own_fpr:.3f} | {f.own:.2f} [{f.own_low:.2f}, {f.own_high:.2f}] |"
            )
        at = max(VARIANCES, key=lambda v: tables[v][STRATA[REPEATED]].common.value)
        worst[arm] = tables[at][STRATA[REPEATED]]
    gap = pools["patient"].validation.mean(1) - pools["record"].validation.mean(1)
    error = gap.std(ddof=1) / np.sqrt(n_models)
    print(f"\nValidation loss by patient less that by record: {gap.mean():+.3f} ± {error:.3f}.")
    for arm in ARMS[1:]:
        print(f"Repeated patients, unit={arm}: TPR {worst[arm].common} at {fpr:.0%} of all non-members.")
    reached = "reached" if worst["patient"].common.value <= BAR else "MISSED"
    print(f"Aim, at most {BAR:.2f} by patient: {reached}.")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--records", type=int, default=4000, help="of the cohort; each model trains on half")
    parser.add_argument("--models", type=int, default=12, help="half-models an arm")
    parser.add_argument("--fpr", type=float, default=0.01)
    parser.add_argument("--cache", type=Path, default=Path("runs/private_cohort"))
    for field in fields(Recipe):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    for seed in args.seeds:
        run(seed, recipe, n=args.records, n_models=args.models, cache=args.cache, fpr=args.fpr)


if __name__ == "__main__":
    main()
