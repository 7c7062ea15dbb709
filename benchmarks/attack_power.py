"""How well LiRA, RMIA and BaVarIA separate members with few reference models.

    python -m benchmarks.attack_power                                    # simulated records
    python -m benchmarks.attack_power --pool .cache/ranking/nafld-2027 --epoch 1
    # losses of half-models as benchmarks.ranking leaves them (``--epoch`` indexes its snapshots)

Simulated: each record has its own variance, drawn from an inverse gamma; masks are Bernoulli, so that counts differ and
records without IN or OUT models occur. Every attack is judged on the records that LiRA can score too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from memguard.attacks import auc, bavaria, lira, logit_scale, rmia, tpr_at_fpr
from memguard.errors import ResolutionError

GAPS = ("same", "drawn", "with spread", "hard records")


def simulated(
    seed: int, k: int, n: int, gap: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Target, references, masks, members, and the (k + 1, Z) population."""
    rng = np.random.default_rng([seed, k])

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        return 2 * rng.normal(size=size), np.sqrt(1 / rng.gamma(2.0, 1.0, size))

    base, spread = draw(n)
    lift = {
        "same": np.ones(n),
        "drawn": np.exp(0.4 * rng.normal(size=n)),
        "with spread": spread,
        "hard records": np.log1p(np.exp(1 - base)),
    }[gap]
    mask, member = rng.random((k, n)) < 0.5, rng.random(n) < 0.5
    reference = base + lift * mask + spread * rng.normal(size=(k, n))
    outside, noise = draw(n // 10)
    population = outside + noise * rng.normal(size=(k + 1, n // 10))
    return base + lift * member + spread * rng.normal(size=n), reference, mask, member, population


def measured(target, reference, mask, member, population) -> dict[str, tuple[float, float]]:
    """AUC and TPR at 1 % FPR of each attack, judged on the records that have IN and OUT models."""
    seen = mask.any(0) & ~mask.all(0)
    arrays = (target, reference, mask)
    attacks = {
        "LiRA pooled": lambda: lira(*arrays),
        "LiRA per record": lambda: lira(*arrays, variance="per_record"),
        "RMIA": lambda: rmia(
            expit(arrays[0]),
            expit(arrays[1]),
            arrays[2],
            expit(population[0]),
            expit(population[1:]),
            continuous=True,
        ),
        "BaVarIA-n": lambda: bavaria(*arrays),
        "BaVarIA-t": lambda: bavaria(*arrays, predictive="t"),
    }
    out = {}
    for name, attack in attacks.items():
        try:
            score = attack().score[seen]
        except ResolutionError:
            continue
        if np.isnan(score).all():
            continue
        score = np.where(np.isnan(score), np.nanmedian(score), score)  # no opinion
        truth = member[seen]
        out[name] = (auc(score, truth).value, tpr_at_fpr(score, truth, 0.01).value)
    return out


def line(found: list[dict[str, tuple[float, float]]]) -> str:
    names = [name for name in found[0] if all(name in one for one in found)]
    means = {name: np.mean([one[name] for one in found], axis=0) for name in names}
    return "; ".join(f"{name} {value[0]:.3f}, {value[1]:.3f}" for name, value in means.items())


def recorded(folder: Path, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses ``(models, N)`` and masks of the half-models in a folder."""
    runs = [dict(np.load(path)) for path in sorted(folder.glob("half-*.npz"))]
    pool = np.union1d(runs[0]["members"], runs[1]["members"])
    mask = np.stack([np.isin(pool, run["members"]) for run in runs])
    return np.stack([run["every"][epoch] for run in runs]).astype(np.float64), mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--epoch", type=int, default=1)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("AUC and TPR at 1 % FPR, means over targets")
    if args.pool is None:
        for gap in GAPS:
            for k in (2, 4, 8, 16):
                found = [measured(*simulated(seed, k, args.records, gap)) for seed in range(args.repeats)]
                print(f"gap {gap}, {k} models: {line(found)}", flush=True)
        return
    losses, mask = recorded(args.pool, args.epoch)
    scores, n_models = logit_scale(loss=losses), len(losses)
    for k in sorted({2, 4, 8, n_models - 1}):
        found = []
        for target in range(n_models):
            for repeat in range(args.repeats):
                rng = np.random.default_rng([target, repeat, k])
                others = rng.permutation([j for j in range(n_models) if j != target])[:k]
                # a constant population: with continuous=True it does not touch the order
                population = np.zeros((k + 1, 1)) + logit(0.5)
                found.append(measured(scores[target], scores[others], mask[others], mask[target], population))
        print(f"{args.pool.name}, {k} models: {line(found)}", flush=True)


if __name__ == "__main__":
    main()
