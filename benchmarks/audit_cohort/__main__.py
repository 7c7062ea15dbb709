"""The audit's tests of sensitive codes on the synthetic cohort.

    OMP_NUM_THREADS=1 python -m benchmarks.audit_cohort --cache runs/audit_cohort

Each half-model is audited in turn, the others being its references; then each is audited with both sides drawn from
patients that it never saw. What was trained lies in ``--cache`` and is not trained again; ``--quick`` shows the form
with few small models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.audit_cohort.codes import Rates, attribute_rates, perturbation_rates
from benchmarks.audit_cohort.models import Recipe, load_world
from benchmarks.audit_cohort.setting import adapters_of, audit_of, null_of

BARS = {"recall": 0.75, "false": 0.05, "inferable": 0.02, "auc": 0.9}


def _mean(found: Sequence[Rates], name: str) -> str:
    values = np.array([getattr(rates, name) for rates in found], dtype=float)
    values = values[np.isfinite(values)]
    return "n/a" if not len(values) else f"{values.mean():.3f} ({values.min():.2f}-{values.max():.2f})"


def _row(label: str, found: Sequence[Rates]) -> str:
    names = ("recall", "recall_flags", "false", "false_planted", "inferable_called", "inferable_both",
             "planted_inferred", "auc")  # fmt: skip
    return f"| {label} | " + " | ".join(_mean(found, name) for name in names) + " |"


def run(seed: int, recipe: Recipe, n_models: int, cache: Path, ks: tuple[int, ...], nulls: int) -> bool:
    """Train, ask and print one cohort; whether all bars are met."""
    world = load_world(seed, n_models, recipe, cache)
    adapters, k = adapters_of(world), max(ks)
    began = time.perf_counter()
    settings = [audit_of(world, adapters, target) for target in range(n_models)]
    by_k = [attribute_rates(setting, ks) for setting in settings]
    changed = [perturbation_rates(setting, k) for setting in settings]
    first = by_k[0][k]
    print(f"\n## Cohort {seed}: {recipe.n} records, {n_models} half-models, each the target once\n")
    print(f"First target: {first.planted} planted and {first.inferable} inferable members, {first.never} never-trained "
          "patients with a sensitive code. Means over targets, with the least and the largest.\n")  # fmt: skip
    print("| test | planted members called | of them flagged | never-trained called | of them planted | "
          "inferable members called memorized alone | called both | planted members called inferable | "
          "AUC planted-inferable |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for each in ks:
        print(_row(f"T2, k = {each}", [found[each] for found in by_k]))
    print(_row(f"T5, k = {k}", changed))
    print(f"\n{time.perf_counter() - began:.0f} s for {n_models} audits.")
    null2, null5 = [], []
    for draw in range(nulls):
        setting = null_of(world, adapters, draw % n_models, draw)
        null2.append(attribute_rates(setting, (k,), draw)[k])
        null5.append(perturbation_rates(setting, k, draw))
    ok = True
    if nulls:
        print(
            f"\nA model of other patients, {nulls} draws of both sides, k = {k}, {null2[0].never} never-trained:"
        )
        for name, found in (("T2", null2), ("T5", null5)):
            called = np.array([rates.called for rates in found])
            error = called.std(ddof=1) / np.sqrt(len(called)) if len(called) > 1 else np.nan
            flags = int(sum(rates.any_flag for rates in found))
            print(f"- {name}: {called.mean():.3f} ± {error:.3f} of members called (stated: at most 0.05); "
                  f"any flag in {flags} of {nulls} (stated: at most 10 %).")  # fmt: skip
            ok &= bool(called.mean() <= 0.05 + 2 * error)
    means = {
        name: float(np.mean([getattr(found[k], name) for found in by_k])) for name in ("recall", "false")
    }
    means["inferable"] = float(np.mean([found[k].inferable_called for found in by_k]))
    means["auc"] = float(np.mean([rates.auc for rates in changed]))
    for name, bar in BARS.items():
        met = means[name] >= bar if name in ("recall", "auc") else means[name] <= bar
        ok &= met
        said = "met" if met else "MISSED"
        print(f"Bar {name} {'>=' if name in ('recall', 'auc') else '<='} {bar}: {means[name]:.3f}, {said}.")
    return ok


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--records", type=int, default=4000, help="of the cohort; each model trains on half")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--ks", type=int, nargs="+", default=[0, 1, 2, 5, 10, 20])
    parser.add_argument("--nulls", type=int, default=20, help="draws of two sides that the model never saw")
    parser.add_argument("--cache", type=Path, default=Path("runs/audit_cohort"))
    parser.add_argument("--quick", action="store_true", help="few small models: the form, not the numbers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe, n_models = Recipe(n=args.records), args.models
    ks, nulls = tuple(args.ks), args.nulls
    if args.quick:
        recipe, n_models, ks, nulls = Recipe(n=1200, epochs=3, width=16), 4, (0, 20), 2
    for seed in args.seeds:
        run(seed, recipe, n_models, args.cache, ks, nulls)


if __name__ == "__main__":
    main()
