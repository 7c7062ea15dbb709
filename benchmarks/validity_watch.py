"""How often does the watch claim something false? Simulated truth, so that every claim can be checked.

    python -m benchmarks.validity_watch [--runs 600] [--seed 0] [--json results.json]

Each row repeats one experiment with a known answer and prints the share of runs with a false claim beside the
share that is promised. ``ok`` means: not above the promise by more than two standard errors. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from memguard.attacks import (
    auc,
    benjamini_hochberg,
    conformal_p_values,
    loss_gap,
    storey_share,
    tail_p_values,
    tpr_at_fpr,
)
from memguard.probes.blind import blind_baseline
from memguard.records.content import Ragged, RecordContent

LAWS = {
    "gaussian": stats.norm(),
    "exponential": stats.expon(),
    "t(4)": stats.t(4),
    "lognormal": stats.lognorm(1.0),
    "bounded": stats.uniform(),
    "Cauchy": stats.cauchy(),
}


@dataclass
class Row:
    claim: str
    setting: str
    promised: float
    realised: float
    error: float
    runs: int

    @property
    def ok(self) -> bool:
        return self.realised <= self.promised + 2 * self.error


def row(claim: str, setting: str, promised: float, false: list[float]) -> Row:
    """One line from the share of false claims of each run (0 or 1, or a probability)."""
    runs, realised = len(false), float(np.mean(false))
    # for a rare event the observed spread is no standard error: take that of the promise where it is larger
    binary = set(false) <= {0.0, 1.0}
    spread = math.sqrt(promised * (1 - promised)) if binary else float(np.std(false))
    return Row(claim, setting, promised, realised, spread / math.sqrt(runs), runs)


def patients(rng, members, held_out, records):
    """Scores of ``records`` records per patient, correlation .6 within a patient; members come first."""
    groups = np.repeat(np.arange(members + held_out), records)
    noise = math.sqrt(0.6) * rng.normal(size=members + held_out)[groups]
    return noise + math.sqrt(0.4) * rng.normal(size=len(groups)), groups < members, groups


def membership(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    for members, held_out, records in ((50, 100, 1), (200, 600, 1), (100, 200, 4)):
        for target in (0.5, 0.7, 0.95):
            shift, misses, above = math.sqrt(2) * stats.norm.ppf(target), [], []
            for _ in range(runs):
                s, member, groups = patients(rng, members, held_out, records)
                e = auc(s + shift * member, member, groups=groups)
                misses.append(not e.covers(target))
                above.append(e.low > 0.5)
            where = f"{members}/{held_out} patients x {records}"
            yield row(f"AUC interval misses {target:g}", where, 0.05, misses)
            if target == 0.5:
                yield row("AUC 'above chance' at chance", where, 0.025, above)
        for fpr in (0.1, 0.01):
            for shift in (0.0, 1.0, 2.5):
                truth, misses = stats.norm.sf(stats.norm.isf(fpr) - shift), []
                for _ in range(runs // 2):
                    s, member, groups = patients(rng, members, held_out, records)
                    misses.append(
                        not tpr_at_fpr(s + shift * member, member, fpr, groups=groups).covers(truth)
                    )
                yield row(f"TPR@{fpr:g} interval misses {truth:.3f}", where, 0.05, misses)
        misses = []
        for _ in range(runs):
            s, member, groups = patients(rng, members, held_out, records)
            gap = loss_gap(
                s[member], s[~member] + 0.3, member_groups=groups[member], held_out_groups=groups[~member]
            )
            misses.append(not gap.covers(0.3))
        yield row("loss gap interval misses", where, 0.05, misses)


def tails(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    """P(p <= level) for a new held-out score, exact for each held-out set: the law's mass beyond the cut."""
    for n in (200, 600, 2000):
        for name, law in LAWS.items():
            levels, rates = (1e-2, 1e-3, 1e-4), []
            for _ in range(max(runs // 2, 50)):
                null = np.sort(law.rvs(n, random_state=rng))
                beyond = null[-1] + null.std() * np.r_[1e-9, np.geomspace(1e-4, 1e9, 2000)]
                p = tail_p_values(beyond, null).p
                mass = []
                for level in levels:
                    if level * (n + 1) >= 2:
                        mass.append(law.sf(null[-math.floor(level * (n + 1) + 1e-9)]))
                    elif p[0] <= level or p[-1] <= level:
                        mass.append(law.sf(beyond[int(np.argmax(p <= level))]))
                    else:
                        mass.append(0.0)
                rates.append(mass)
            for j, level in enumerate(levels):
                yield row(f"tail p <= {level:g}", f"{name}, {n} held out", level, [r[j] for r in rates])


def flags(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    members, rate = 1000, 0.1
    for n in (100, 300, 1000):
        for kind, p_values in (
            ("conformal", conformal_p_values),
            ("tail", lambda s, null: tail_p_values(s, null).p),
        ):
            for share in (0.0, 0.02, 0.5):
                memorized, false = np.arange(members) < share * members, []
                for _ in range(max(runs // 3, 50)):
                    s = rng.normal(size=members) + 6.0 * memorized
                    flagged = benjamini_hochberg(p_values(s, rng.normal(size=n)), rate)
                    false.append(float((flagged & ~memorized).sum() / max(flagged.sum(), 1)))
                what = "any flag, nothing memorized" if share == 0 else f"false flags, share {share:g}"
                yield row(f"{what} ({kind})", f"{members} members, {n} held out", rate, false)


def shares(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    for n, members in ((100, 200), (100, 3000), (600, 200), (600, 3000)):
        for share in (0.0, 0.1, 0.5, 0.95):
            misses, above, memorized = [], [], np.arange(members) < share * members
            for _ in range(runs):
                s = rng.normal(size=members) + 8.0 * memorized
                e = storey_share(conformal_p_values(s, rng.normal(size=n)), n_null=n)
                misses.append(not e.covers(share))
                above.append(e.low > share + 1e-12)
            where = f"{members} members, {n} held out"
            yield row(f"memorized share misses {share:g}", where, 0.05, misses)
            yield row(f"memorized share above {share:g}", where, 0.025, above)


def blind(rng: np.random.Generator, runs: int) -> Iterator[Row]:
    for members, held_out, records in ((300, 100, 1), (150, 60, 4)):
        above, patient = [], np.repeat(np.arange(members + held_out), records)
        for seed in range(max(runs // 6, 50)):
            lengths = rng.poisson(20, len(patient)) + 2
            codes = np.minimum(rng.zipf(1.3, lengths.sum()), 500)
            taste = rng.integers(1, 500, size=(members + held_out, 3))
            own = rng.random(len(codes)) < 0.3
            codes[own] = taste[np.repeat(patient, lengths)[own], rng.integers(0, 3, own.sum())]
            content = RecordContent.from_codes(Ragged.from_lengths(codes, lengths))
            inside = patient < members
            e = blind_baseline(
                content.take(inside), content.take(~inside), patient[inside], patient[~inside], seed=seed
            )
            above.append(e.low > 0.5)
        yield row(
            "blind baseline alarm, random split", f"{members}/{held_out} patients x {records}", 0.025, above
        )


PARTS = {"membership": membership, "tails": tails, "flags": flags, "shares": shares, "blind": blind}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=600, help="repetitions of the cheapest experiments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", help="write the rows to this file too")
    args = parser.parse_args()
    start, rows = time.perf_counter(), []
    print(f"{'claim':<46}{'setting':<32}{'promised':>9}{'realised':>10}{'s.e.':>9}{'runs':>6}  ")
    for part in args.parts:
        for line in PARTS[part](np.random.default_rng([args.seed, len(part)]), args.runs):
            rows.append(line)
            print(
                f"{line.claim:<46}{line.setting:<32}{line.promised:>9.4g}{line.realised:>10.3g}"
                f"{line.error:>9.2g}{line.runs:>6}  {'ok' if line.ok else 'TOO OFTEN'}",
                flush=True,
            )
    bad = [line for line in rows if not line.ok]
    print(
        f"{len(rows)} claims, {len(bad)} more often false than promised + 2 s.e. "
        f"(about {0.023 * len(rows):.0f} expected by chance if every claim sat exactly at its promise); "
        f"{time.perf_counter() - start:.0f} s"
    )
    if args.json:
        with open(args.json, "w") as file:
            json.dump([asdict(line) | {"ok": line.ok} for line in rows], file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
