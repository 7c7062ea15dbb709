"""Do the bounds on epsilon hold? Thousands of audits of mechanisms whose epsilon is known.

    python -m benchmarks.validity                               # everything, about an hour on one thread
    python -m benchmarks.validity --runs 200 --canaries 100 300 # a quick look

Per number of canaries: the share of audits whose 95 % bound exceeds the true epsilon, to be held against 5 % and two
standard errors; one audit, and a look at each of 50 epochs that counts as false if any of its 50 bounds is.

- ``null``: scores that know nothing (epsilon 0). Looks: independent noise at every epoch.
- ``response``: randomized response at epsilon 1 and delta 0. One audit sees the answers, equal ones in random order;
  looks see the same answers and another random order at every epoch, so that each look guesses on other canaries.
- ``fails``: all coins are shown with probability delta, noise otherwise: (0, delta)-DP, with delta = 0.01.
- ``gaussian``: the Gaussian mechanism with epsilon 1 at delta 1e-5, for the bounds that assume Gaussian-DP.

Then what else is measured on scores that know nothing. ``intervals``: the mean AUC, and the share of 95 % intervals
that lie wholly above the true null value. The intervals are two-sided, so 2.5 % of them may. ``exposure``: canaries
that were not inserted; their exposure has a mean of 1.44 bits, a share 2^-k of them may reach k bits, and each has a
true exposure of its own, above which 2.5 % of the intervals may lie. Last, ``tight``: medians on two normal
distributions one apart (epsilon 4.38).
"""

import argparse
import math
import time

import numpy as np

from memguard.attacks import (
    Bonferroni,
    Split,
    auc,
    epsilon_clopper_pearson,
    epsilon_f_dp,
    epsilon_gdp,
    epsilon_one_run,
    epsilon_sequential,
    exposure,
    gaussian_delta,
    membership_advantage,
    tnr_at_fnr,
    tpr_at_fpr,
)
from memguard.errors import ResolutionError

PARTS = ["one", "looks", "intervals", "exposure", "tight"]
DELTA = 1e-5
LOOKS = 50
BOUNDS = {
    "one run, weighed": epsilon_one_run,
    "one run, Bonferroni": lambda s, i, **k: epsilon_one_run(s, i, threshold=Bonferroni(), **k),
    "one run, Split": lambda s, i, **k: epsilon_one_run(s, i, threshold=Split(), **k),
    "f-DP, Bonferroni": epsilon_f_dp,
    "Clopper-Pearson": epsilon_clopper_pearson,
}
GAUSSIAN = {
    "GDP": epsilon_gdp,
    "f-DP, Gaussian curve": lambda s, i, **k: epsilon_f_dp(s, i, curve="gaussian", **k),
}
INTERVALS = {  # of scores and coins, with the value that they have where nothing is to be found
    "AUC": (auc, 0.5),
    "TPR at FPR 10 %": (lambda s, i: tpr_at_fpr(s, i, 0.1), 0.1),
    "TPR at FPR 1 %": (lambda s, i: tpr_at_fpr(s, i, 0.01), 0.01),
    "TNR at FNR 10 %": (lambda s, i: tnr_at_fnr(-s, i, 0.1), 0.1),
    "TNR at FNR 1 %": (lambda s, i: tnr_at_fnr(-s, i, 0.01), 0.01),
    "advantage, best threshold": (membership_advantage, 0.0),
    "advantage, threshold 0": (lambda s, i: membership_advantage(s, i, threshold=0.0), 0.0),
}


def mu_of(epsilon: float, delta: float) -> float:
    """The shift at which the Gaussian mechanism has this epsilon at this delta."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, epsilon) < delta else (low, middle)
    return low


MU_1 = mu_of(1.0, DELTA)


def experiment(kind: str, m: int, rng: np.random.Generator):
    """Scores, coins, and the epsilon and delta for which the mechanism is differentially private."""
    included = rng.random(m) < 0.5
    if kind == "null":
        return rng.normal(size=m), included, 0.0, DELTA
    if kind == "response":
        said = np.where(rng.random(m) < math.e / (1 + math.e), included, ~included)
        return said + 0.5 * rng.random(m), included, 1.0, 0.0
    if kind == "fails":
        return (included + 0.0 if rng.random() < 0.01 else rng.normal(size=m)), included, 0.0, 0.01
    return rng.normal(size=m) + MU_1 * included, included, 1.0, DELTA


def looks(kind: str, m: int, rng: np.random.Generator):
    """The same for a run with a look at each epoch, ``(LOOKS, m)``."""
    scores, included, epsilon, delta = experiment(kind, m, rng)
    if kind == "null":
        return rng.normal(size=(LOOKS, m)), included, epsilon, delta
    return np.floor(scores) + 0.5 * rng.random((LOOKS, m)), included, epsilon, delta


def share(wrong: int, runs: int, promised: float = 0.05) -> str:
    """A share of false claims, marked where it is more than two standard errors above what it may be."""
    allowed = promised + 2 * math.sqrt(promised * (1 - promised) / runs)
    return f"{100 * wrong / runs:5.2f} %{'' if wrong / runs <= allowed else '  ABOVE ' + format(100 * allowed, '.2f')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--canaries", type=int, nargs="+", default=[100, 300, 1000, 5000])
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--only", choices=PARTS, nargs="+")
    args = parser.parse_args()
    parts = args.only or PARTS
    for m in args.canaries:
        if "one" in parts:
            one_look(m, args.runs, args.seed)
        if "looks" in parts:
            many_looks(m, args.runs, args.seed)
        if "intervals" in parts:
            null_intervals(m, args.runs, args.seed)
        if "exposure" in parts:
            null_exposure(m, args.runs, args.seed)
    if "tight" in parts:
        tightness(min(args.runs, 200), args.seed)


def one_look(m: int, runs: int, seed: int) -> None:
    for kind in ("null", "response", "fails", "gaussian"):
        bounds = GAUSSIAN if kind == "gaussian" else (BOUNDS | GAUSSIAN if kind == "null" else BOUNDS)
        start, wrong = time.perf_counter(), dict.fromkeys(bounds, 0)
        for run in range(runs):
            scores, included, epsilon, delta = experiment(kind, m, np.random.default_rng([seed, m, run]))
            for name, bound in bounds.items():
                if kind == "fails" and name == "Clopper-Pearson":
                    continue  # its canaries are not independent here
                wrong[name] += bound(scores, included, delta=delta).epsilon > epsilon
        print(f"\nm = {m}, {kind}, {runs} audits ({time.perf_counter() - start:.0f} s): false claims")
        for name, count in wrong.items():
            if not (kind == "fails" and name == "Clopper-Pearson"):
                print(f"  {name:24s} {share(count, runs)}", flush=True)


def many_looks(m: int, runs: int, seed: int) -> None:
    for kind in ("null", "response"):
        for horizon in (LOOKS, None):
            start, wrong = time.perf_counter(), 0
            for run in range(runs):
                table, included, epsilon, delta = looks(kind, m, np.random.default_rng([seed + 1, m, run]))
                bounds = epsilon_sequential(table, included, delta=delta, horizon=horizon)
                wrong += bounds[-1].epsilon > epsilon  # the largest of all
            spent = time.perf_counter() - start
            planned = "planned" if horizon else "no horizon"
            print(
                f"m = {m}, {kind}, {LOOKS} looks, {planned} ({spent:.0f} s): {share(wrong, runs)}", flush=True
            )


def null_intervals(m: int, runs: int, seed: int) -> None:
    start, areas, wrong = time.perf_counter(), [], dict.fromkeys(INTERVALS, 0)
    counted = dict.fromkeys(INTERVALS, 0)
    for run in range(runs):
        scores, included, _, _ = experiment("null", m, np.random.default_rng([seed + 2, m, run]))
        for name, (measure, null) in INTERVALS.items():
            try:
                found = measure(scores, included)
            except ResolutionError:  # too few canaries for this rate
                continue
            counted[name] += 1
            wrong[name] += found.low > null
            if name == "AUC":
                areas.append(found.value)
    error, spent = np.std(areas) / math.sqrt(runs), time.perf_counter() - start
    print(f"\nm = {m}, null, {runs} runs ({spent:.0f} s): 95 % intervals wholly above the null value")
    print(f"  mean AUC {np.mean(areas):.4f} (two standard errors {2 * error:.4f})")
    for name, count in wrong.items():
        line = share(count, counted[name], 0.025) if counted[name] == runs else "  n/a, too few canaries"
        print(f"  {name:26s} {line}", flush=True)


def null_exposure(m: int, runs: int, seed: int) -> None:
    """``m`` alternatives and one canary per run, all uniform, so that a loss is its own share of the space."""
    bits, wrong = np.empty(runs), 0
    for run in range(runs):
        rng = np.random.default_rng([seed + 4, m, run])
        loss = rng.random()
        found = exposure(loss, rng.random(m))
        bits[run] = found.value[0]
        wrong += found.low[0] > -math.log2(loss)
    print(f"\n{m} alternatives, {runs} canaries that were not inserted: exposure")
    error = np.std(bits) / math.sqrt(runs)
    print(f"  mean {np.mean(bits):.3f} bits (two standard errors {2 * error:.3f}; 1 / ln 2 is 1.443)")
    for k in (1, 2, 4, 6, 8):
        line = share(int(np.count_nonzero(bits >= k)), runs, 2.0**-k)
        print(f"  at least {k} bits {line}, may be {100 * 2.0**-k:.2f} %")
    print(f"  interval wholly above the true exposure {share(wrong, runs, 0.025)}", flush=True)


def tightness(runs: int, seed: int) -> None:
    for m in (1000, 10_000):
        found: dict[str, list[float]] = {}
        for run in range(runs):
            rng = np.random.default_rng([seed + 3, m, run])
            included = rng.random(m) < 0.5
            scores = rng.normal(size=m) + included
            for name, bound in (BOUNDS | GAUSSIAN).items():
                found.setdefault(name, []).append(bound(scores, included, delta=DELTA).epsilon)
            if m == 1000:
                table = rng.normal(size=(LOOKS, m)) + np.linspace(0.02, 1, LOOKS)[:, None] * included
                table[-1] = scores
                for name, horizon in (("50 looks, planned", LOOKS), ("50 looks, no horizon", None)):
                    last = epsilon_sequential(table, included, delta=DELTA, horizon=horizon)[-1].epsilon
                    found.setdefault(name, []).append(last)
        print(f"\nshift 1 (epsilon 4.38 at delta 1e-5), m = {m}, {runs} audits: median bound")
        fixed = np.median(found["one run, weighed"])
        for name, values in found.items():
            ratio = f"   {np.median(values) / fixed:.2f} of one look" if "looks" in name else ""
            print(f"  {name:24s} {np.median(values):.2f}{ratio}", flush=True)


if __name__ == "__main__":
    main()
