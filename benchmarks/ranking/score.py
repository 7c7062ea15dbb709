"""How well a score ranks the records by true memorization, beside its base rate and its ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.stats import spearmanr

from benchmarks.ranking.truth import Pool
from memguard.records.content import Ragged

__all__ = ["Tally", "lt_iqr", "mean_idf", "precision_at", "split_half"]

SHARES = (0.01, 0.05)


def precision_at(score: np.ndarray, truth: np.ndarray, share: float) -> float:
    """Share of the top of ``score`` that is in the top of ``truth``, both of size ``share * n``."""
    k = max(1, round(share * len(truth)))
    top = np.argpartition(-truth, k - 1)[:k]
    return float(np.isin(np.argpartition(-score, k - 1)[:k], top).mean())


def lt_iqr(trace: np.ndarray) -> np.ndarray:
    """Interquartile range of each record's train-time losses (arXiv 2411.05743)."""
    low, high = np.quantile(trace, [0.25, 0.75], axis=0)
    return high - low


def mean_idf(codes: Ragged) -> np.ndarray:
    """Rarity: mean over a record's codes of minus the log share of the other records that carry the code."""
    pairs = np.unique(codes.rows * (int(codes.values.max()) + 1) + codes.values)
    carriers = np.bincount(pairs % (int(codes.values.max()) + 1))
    idf = -np.log(np.maximum(carriers[codes.values] - 1, 0.5) / len(codes))
    return np.bincount(codes.rows, idf, len(codes)) / np.maximum(codes.lengths, 1)


class Tally:
    """Means and standard errors over target models of P@1 %, P@5 % and rho, one row for each signal."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, ...]]] = {}

    def add(self, name: str, score: np.ndarray, truth: np.ndarray) -> None:
        if np.ptp(score) == 0:
            return  # no ranking at all, as the best epoch's loss less itself
        rho = float(spearmanr(score, truth).statistic)
        values = (*(precision_at(score, truth, share) for share in SHARES), rho)
        self.rows.setdefault(name, []).append(values)

    def add_values(self, name: str, values: tuple[float, ...]) -> None:
        self.rows.setdefault(name, []).append(values)

    def markdown(self, title: str) -> str:
        """The table; ``±`` is the standard error over targets, which share patients, so it is not for new patients."""
        lines = [
            f"**{title}**",
            "",
            "| signal | P@1 % | P@5 % | rho | targets |",
            "|---|---|---|---|---|",
        ]
        for name, values in self.rows.items():
            table = np.array(values)
            error = table.std(0, ddof=1) / np.sqrt(len(table)) if len(table) > 1 else np.zeros(3)
            if len(table) > 1:
                cells = [f"{m:.2f} ± {e:.2f}" for m, e in zip(table.mean(0), error, strict=True)]
            else:
                cells = [f"{m:.2f}" for m in table[0]]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(table)} |")
        return "\n".join(lines) + "\n"


def split_half(
    pool: Pool,
    value: Callable[[np.ndarray], np.ndarray],
    subsets: Iterable[np.ndarray],
    *,
    seed: int = 0,
    draws: int = 10,
) -> tuple[float, ...]:
    """Agreement of the truth with itself: pairs of models divided in two, one half's truth scored by the other's.

    Args:
        pool: the models.
        value: truth ``(N,)`` from a mask ``(K,)`` of models.
        subsets: rows over which to rank (the members of each target).
        seed: of the divisions.
        draws: divisions to average over.
    """
    rng = np.random.default_rng(seed)
    pairs = len(pool) // 2
    out = []
    for rows in subsets:
        for _ in range(draws):
            left = np.repeat(np.isin(np.arange(pairs), rng.permutation(pairs)[: (pairs + 1) // 2]), 2)
            a, b = value(left)[rows], value(~left)[rows]
            out.append((*(precision_at(b, a, share) for share in SHARES), float(spearmanr(a, b).statistic)))
    return tuple(np.mean(out, axis=0))
