"""Was it Poisson sampling? How often each patient was drawn, and how many were drawn at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from memguard.errors import PrivacyError
from memguard.privacy.guards._tails import Floats, squares_tails, strata_of, total_pmf
from memguard.privacy.guards.finding import FALSE_ALARM, Finding, Verdict

__all__ = ["Inclusion", "included_matrix", "inclusion_variance"]


@dataclass(frozen=True, kw_only=True)
class Inclusion(Verdict):
    """What :func:`inclusion_variance` found.

    Attributes:
        rate: Share of patients that a draw held, on average.
        expected_rate: What was claimed.
        size_variance: Of the batch sizes about their expectation, over what Poisson sampling gives; 0 for batches of
            fixed size.
        count_variance: Of the inclusions of each patient about their expectation, over what Poisson sampling gives; 0
            for shuffling.
        repeated: Draws that were drawn before, patient for patient, where chance could not.
        p_value: Chance of the most surprising of these under Poisson sampling, or an upper bound on it.
        n_draws: Draws looked at.
    """

    rate: float
    expected_rate: float
    size_variance: float
    count_variance: float
    repeated: int
    p_value: float
    n_draws: int


def included_matrix(draws: Sequence[Sequence[int] | NDArray[np.int64]], n_patients: int) -> NDArray[np.bool_]:
    """Draws as a table of who was in them.

    Args:
        draws: Patients of each draw, as numbers below ``n_patients``; an empty one is a draw too.
        n_patients: Of whom they were drawn.

    Returns:
        ``(T, P)`` booleans.

    Raises:
        PrivacyError: If a draw names a patient twice: his records would count as two patients'.

    Example:
        >>> included_matrix([[0, 2], []], 3).astype(int).tolist()
        [[1, 0, 1], [0, 0, 0]]
    """
    table = np.zeros((len(draws), n_patients), dtype=np.bool_)
    for i, draw in enumerate(draws):
        row = table[i]
        row[np.asarray(draw, dtype=np.int64)] = True
        if row.sum() != len(draw):
            raise PrivacyError(
                f"a draw of {len(draw)} with {int(row.sum())} different patients",
                "a patient who is drawn twice contributes twice",
                "draw each patient at most once for a step",
            )
    return table


def inclusion_variance(
    included: ArrayLike, rates: float | ArrayLike, *, false_alarm: float = FALSE_ALARM
) -> Inclusion:
    """Hold draws against Poisson sampling: every patient in every draw by an independent coin of known rate.

    Three numbers are tested: how many inclusions there were, the variance of the batch sizes, and the variance of the
    inclusion counts of patients. Shuffled epochs and batches of fixed size fail the last two, a wrong rate the first,
    a random stream that begins again all of them or the check for repeated draws.

    Args:
        included: ``(T, P)`` booleans, draws by patients; draws that were empty too.
        rates: Claimed, one for all or ``(P,)``, in (0, 1]; 1 is everybody
            in every draw.
        false_alarm: Chance, at most, of a finding under Poisson sampling. The first test is exact; for the variances
            the chance is bounded for every T and P (Chernoff), so that the true one is smaller still.

    Returns:
        The verdict.

    Raises:
        PrivacyError: For shapes or rates that do not fit, or rates that are not in (0, 1].

    Guarantees:
        A finding refutes the sampling that the accountant assumes, up to the chance stated. No finding is evidence
        about the moments tested alone: draws can have them right and depend on each other otherwise. About 100 draws
        of 100 patients show shuffling; a rate wrong by a tenth takes about ten thousand inclusions.

    References:
        Shuffling accounted as Poisson: Chua et al., arXiv 2403.17673; Annamalai et al., arXiv 2411.10614 (the loss
        can be four times the claim). The bound: Chernoff 1952.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> inclusion_variance(rng.random((200, 100)) < 0.1, 0.1).ok
        True
        >>> shuffled = np.concatenate([np.eye(10, dtype=bool)[rng.permutation(100) % 10].T for _ in range(20)])
        >>> found = inclusion_variance(shuffled, 0.1)
        >>> found.finding.id, found.size_variance, found.count_variance
        ('inclusion/sizes', 0.0, 0.0)
    """
    table, q = _checked(included, rates)
    n_draws = len(table)
    certain = q == 1.0
    absent = n_draws * int(certain.sum()) - int(table[:, certain].sum())
    if absent or certain.all():
        found = _finding("rate", f"{absent} absences of patients whose rate is 1") if absent else None
        return Inclusion(
            finding=found,
            rate=float(table.mean()),
            expected_rate=float(q.mean()),
            size_variance=1.0,
            count_variance=1.0,
            repeated=0,
            p_value=0.0 if absent else 1.0,
            n_draws=n_draws,
        )
    rate, expected_rate = float(table.mean()), float(q.mean())
    table, q = table[:, ~certain], q[~certain]
    strata = strata_of(q)
    level = false_alarm / 4
    counts, sizes = table.sum(axis=0), table.sum(axis=1)
    rate_p = min(1.0, len(strata) * min(_rate_p(counts[who], n_draws, r) for r, who in strata))
    size_p, size_variance = _sizes(sizes, strata)
    count_p, count_variance = _counts(counts, n_draws, strata)
    repeated, repeat_p = _repeats(table, q)
    p_values = {"rate": rate_p, "sizes": size_p, "counts": count_p, "repeated": repeat_p}
    seen = {
        "rate": f"{counts.sum()} inclusions in {n_draws} draws where {n_draws * q.sum():.0f} were expected",
        "sizes": f"batch sizes with {size_variance:.2f} times the variance of Poisson sampling",
        "counts": f"inclusions of patients with {count_variance:.2f} times the variance of Poisson sampling",
        "repeated": f"{repeated} of {n_draws} draws that had been drawn before, patient for patient",
    }
    surprising = [name for name, p in p_values.items() if p <= level]
    finding = _finding(surprising[0], seen[surprising[0]]) if surprising else None
    return Inclusion(
        finding=finding,
        rate=rate,
        expected_rate=expected_rate,
        size_variance=size_variance,
        count_variance=count_variance,
        repeated=repeated,
        p_value=min(p_values.values()),
        n_draws=n_draws,
    )


def _finding(name: str, seen: str) -> Finding:
    fixes = {
        "rate": "account for the rate that is used, frozen before training, and do not compute it from the data again",
        "repeated": "seed the sampler from the operating system at every start, and never from the training's seed",
    }
    return Finding(
        f"inclusion/{name}",
        seen,
        "amplification by sampling holds for independent coins of the rate that is accounted; shuffling and batches "
        "of fixed size can leak several times the epsilon computed for them",
        fixes.get(name, "draw each patient for each step by an independent coin, as PatientSampler does"),
    )


def _checked(included: ArrayLike, rates: float | ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    table = np.asarray(included)
    if table.ndim != 2 or table.size == 0 or table.dtype != np.bool_:
        raise PrivacyError(
            f"included of shape {table.shape} and type {table.dtype}",
            "who was in which draw is needed",
            "pass booleans, draws by patients; included_matrix makes them of lists",
        )
    q = np.asarray(rates, dtype=np.float64)
    q = np.full(table.shape[1], float(q)) if q.ndim == 0 else q
    if q.shape != (table.shape[1],) or not ((q > 0) & (q <= 1)).all():
        raise PrivacyError(
            f"rates of shape {q.shape} for {table.shape[1]} patients, or outside (0, 1]",
            "each patient has a probability of being drawn",
            "pass one rate for all, or one for each patient",
        )
    return table, q


def _rate_p(counts: NDArray[np.int64], n_draws: int, rate: float) -> float:
    """Exact: inclusions of a stratum are one binomial."""
    found, trials = int(counts.sum()), n_draws * len(counts)
    tail = min(stats.binom.cdf(found, trials, rate), stats.binom.sf(found - 1, trials, rate))
    return float(min(1.0, 2 * tail))


def _sizes(sizes: NDArray[np.int64], strata: list[tuple[float, NDArray[np.int64]]]) -> tuple[float, float]:
    values, law = total_pmf([(rate, len(who)) for rate, who in strata])
    mean = sum(rate * len(who) for rate, who in strata)
    variance = sum(rate * (1 - rate) * len(who) for rate, who in strata)
    observed = float(((sizes - mean) ** 2).sum()) / variance
    if sizes.min() < values[0] or sizes.max() > values[-1]:
        return 0.0, observed / len(sizes)
    tails = squares_tails(
        observed, [(np.asarray((values - mean) ** 2 / variance, dtype=np.float64), law, len(sizes))]
    )
    return min(1.0, 2 * min(tails)), observed / len(sizes)


def _counts(
    counts: NDArray[np.int64], n_draws: int, strata: list[tuple[float, NDArray[np.int64]]]
) -> tuple[float, float]:
    observed, laws, outside = 0.0, [], False
    for rate, who in strata:
        values, law = total_pmf([(rate, n_draws)])
        variance = n_draws * rate * (1 - rate)
        observed += float(((counts[who] - n_draws * rate) ** 2).sum()) / variance
        squares = np.asarray((values - n_draws * rate) ** 2 / variance, dtype=np.float64)
        laws.append((squares, law, len(who)))
        outside |= bool(counts[who].min() < values[0] or counts[who].max() > values[-1])
    p = 0.0 if outside else min(1.0, 2 * min(squares_tails(observed, laws)))
    return p, observed / len(counts)


def _repeats(table: NDArray[np.bool_], q: Floats) -> tuple[int, float]:
    """Draws that occur again, if for so many patients that should never happen."""
    n_draws = len(table)
    _, occurrences = np.unique(np.packbits(table, axis=1), axis=0, return_counts=True)
    repeated, disjoint = int((occurrences - 1).sum()), int((occurrences // 2).sum())
    if not repeated:
        return 0, 1.0
    # A union bound over all ways to choose so many disjoint pairs, each equal with the same chance independently.
    log_pairs = float(np.log(n_draws * (n_draws - 1) / 2) + np.log(q**2 + (1 - q) ** 2).sum())
    return repeated, float(np.exp(min(0.0, disjoint * log_pairs - special.gammaln(disjoint + 1))))
