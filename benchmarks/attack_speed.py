"""Time of the attacks and bounds on one thread, each beside a plain loop in the same run.

    OMP_NUM_THREADS=1 python -m benchmarks.attack_speed            # the sizes of the bars
    python -m benchmarks.attack_speed --scale 0.01 --repeats 1     # a look

Times are the least CPU time of ``--repeats`` runs. A loop is run over a part of its records (or draws, or thresholds)
and its time is scaled to all of them; before that, its results must equal ours on that part.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from memguard.attacks import Bonferroni, EpsilonBound, Weighted, auc, bavaria, epsilon_one_run, lira, rmia
from memguard.attacks.epsilon import weighted
from memguard.attacks.epsilon.one_run import all_right
from memguard.attacks.epsilon.thresholds import guesses_of

PART = 400  # records of a loop


@dataclass(frozen=True)
class Row:
    """One line: our milliseconds, the bar, the loop's, and a remark."""

    name: str
    ours: float
    bar: float | None
    loop: float
    note: str = ""

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{self.bar:,.0f}"
        ratio = self.loop / self.ours
        return f"| {self.name} | {self.ours:,.1f} | {bar} | {self.loop:,.0f} | {ratio:,.0f} | {self.note} |"


def clock(call: Callable[[], object], repeats: int) -> float:
    """Least CPU milliseconds of ``repeats`` calls."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return 1e3 * best


def drawn(n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a target, of reference models, and Bernoulli masks in which every record has two of each kind."""
    rng = np.random.default_rng([n, k])
    mask = rng.random((k, n)) < 0.5
    mask[:4] = np.array([True, True, False, False])[:, None]
    base = rng.normal(size=n)
    return base + rng.normal(size=n), base + mask + rng.normal(size=(k, n)), mask


def time_lira(n: int, k: int, statistic: str, bar: float, repeats: int) -> Row:
    target, reference, mask = drawn(n, k)
    part = min(PART, n)
    score = lira(target, reference, mask, variance="per_record", statistic=statistic).score

    def loop() -> list[float]:
        middle = np.mean if statistic == "mean" else np.median
        out = []
        for i in range(part):
            x, y = reference[mask[:, i], i], reference[~mask[:, i], i]
            inside = stats.norm.logpdf(target[i], middle(x), np.std(x, ddof=1))
            out.append(inside - stats.norm.logpdf(target[i], middle(y), np.std(y, ddof=1)))
        return out

    np.testing.assert_allclose(score[:part], loop(), rtol=1e-9, atol=1e-9)

    def ours(variance: str) -> float:
        return clock(lambda: lira(target, reference, mask, variance=variance, statistic=statistic), repeats)

    slower = max(ours("pooled"), ours("per_record"))
    return Row(f"LiRA {n:,} x {k}, {statistic}", slower, bar, clock(loop, 1) * n / part)


def time_bavaria(n: int, k: int, repeats: int) -> Row:
    target, reference, mask = drawn(n, k)
    part = min(PART, n)

    def loop() -> None:
        # pooled LiRA, one record at a time: what a reader would write without a prior
        for i in range(part):
            x, y = reference[mask[:, i], i], reference[~mask[:, i], i]
            stats.norm.logpdf(target[i], np.mean(x), 1.0) - stats.norm.logpdf(target[i], np.mean(y), 1.0)

    ours = clock(lambda: bavaria(target, reference, mask), repeats)
    return Row(
        f"BaVarIA {n:,} x {k}", ours, None, clock(loop, 1) * n / part, "the loop is that of pooled LiRA"
    )


def time_rmia(n: int, k: int, z: int, bar: float, repeats: int) -> Row:
    rng = np.random.default_rng(n)
    target, reference, mask = rng.random(n), rng.random((k, n)), drawn(n, k)[2]
    z_target, z_reference = rng.random(z), rng.random((k, z))
    arrays = (target, reference, mask, z_target, z_reference)
    part = min(PART, n)

    def loop() -> list[float]:
        ratio_z = [z_target[j] / z_reference[:, j].mean() for j in range(z)]
        out = []
        for i in range(part):
            mean = (reference[mask[:, i], i].mean() + reference[~mask[:, i], i].mean()) / 2
            out.append(np.mean(target[i] / mean >= 2.0 * np.array(ratio_z)))
        return out

    np.testing.assert_allclose(rmia(*arrays).score[:part], loop(), atol=1.5 / z)
    ours = clock(lambda: rmia(*arrays), repeats)
    tracemalloc.start()
    rmia(*arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    note = f"peak {peak / 2**20:.1f} MiB beyond the inputs, {peak / 8 / (n + z):.1f} numbers per record"
    return Row(f"RMIA {n:,} x {k}, Z = {z:,}", ours, bar, clock(loop, 1) * n / part, note)


def time_bootstrap(n: int, bar: float, repeats: int) -> Row:
    rng = np.random.default_rng(n)
    member = np.arange(n) % 2 == 0
    scores = rng.normal(size=n) + member
    patients = np.arange(n)
    draws = max(2, min(10, n // 100))

    def loop() -> None:
        for _ in range(draws):
            rows = np.concatenate(
                [rng.choice(np.flatnonzero(member == s), int((member == s).sum())) for s in (True, False)]
            )
            truth, ranks = member[rows], stats.rankdata(scores[rows])
            inside = int(truth.sum())
            (ranks[truth].sum() - inside * (inside + 1) / 2) / (inside * (n - inside))

    ours = clock(lambda: auc(scores, member, groups=patients, n_boot=1000), repeats)
    return Row(f"AUC, 1,000 bootstrap draws of {n:,} patients", ours, bar, clock(loop, 1) * 1000 / draws)


def time_epsilon(m: int, bar: float, repeats: int, rule: Bonferroni | Weighted) -> Row:
    rng = np.random.default_rng(m)
    included = rng.random(m) < 0.5
    scores = rng.normal(size=m) + included
    sets = guesses_of(Bonferroni(), scores, included, 0.05)

    def loop() -> None:
        """Theorem 5.2 as it is written, bisected for each set of guesses."""
        for one in sets:
            low, high, i = 0.0, 20.0, np.arange(1, one.correct + 1)
            while high - low > 1e-5:
                middle = (low + high) / 2
                p = 1 / (1 + np.exp(-middle))
                here = stats.binom.sf(one.correct - 1, one.total, p)
                worst = np.max((stats.binom.sf(one.correct - i - 1, one.total, p) - here) / i)
                low, high = (middle, high) if here + 2 * m * 1e-5 * worst < one.level else (low, middle)

    def call() -> EpsilonBound:
        for cached in (weighted._weights, weighted._tail, all_right):
            cached.cache_clear()  # as in the first audit of a process
        return epsilon_one_run(scores, included, delta=1e-5, threshold=rule)

    name = "weighed" if isinstance(rule, Weighted) else "Bonferroni over 16 sets"
    note = f"epsilon >= {call().epsilon:.2f}; the loop is that of Bonferroni"
    return Row(f"One-run epsilon, m = {m:,}, {name}", clock(call, repeats), bar, clock(loop, 1), note)


def rows(scale: float = 1.0, repeats: int = 3) -> list[Row]:
    """All lines, with sizes multiplied by ``scale``."""

    def size(n: int) -> int:
        return max(100, round(n * scale))

    found: list[Row] = []
    for statistic in ("mean", "median"):
        found.append(time_lira(size(20_000), 16, statistic, 20, repeats))
        found.append(time_lira(size(200_000), 64, statistic, 1000, repeats))
    found.append(time_rmia(size(200_000), 16, size(10_000), 100, repeats))
    found.append(time_bavaria(size(20_000), 16, repeats))
    found.append(time_bavaria(size(200_000), 16, repeats))
    found.append(time_bootstrap(size(10_000), 1500, repeats))
    for rule in (Bonferroni(), Weighted()):
        found.append(time_epsilon(size(10_000), 50, repeats, rule))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("| what | ms | bar | loop, ms | ratio | |\n|---|---|---|---|---|---|")
    for row in rows(args.scale, args.repeats):
        print(row, flush=True)


if __name__ == "__main__":
    main()
