"""P-values beyond the largest held-out score: a tail model that is used only where it is calibrated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from memguard.attacks._checks import Floats, finite
from memguard.errors import MemguardError

__all__ = ["TailPValues", "tail_p_values"]

_LEAST_NULL = 200  # held-out patients below which no tail is fitted
_LEAST_EXCESSES = 20
_MOST_EXCESSES = 100  # more would reach below the tail proper: t(4) at n = 2,000 is then too small by 1.2
_REACH = 100.0  # a p-value is never more than this factor below 1 / (n + 1)
_SHAPES = np.linspace(0.0, 2.0, 16)  # exponential to very heavy; bounded tails count as exponential
_LOG_SCALES = np.linspace(-1.5, 2.0, 41)


@dataclass(frozen=True, kw_only=True)
class TailPValues:
    """P-values with what they rest on.

    Attributes:
        p: ``(N,)`` p-values.
        method: ``"tail"`` if the tail model was used above the largest held-out score, else ``"empirical"``.
        resolution: The smallest p-value that could have come out.
        calibrated: Whether the tail model passed its test on held-out folds (False too if none was fitted,
            as where no score lies above the largest held-out one).
        detail: Why, in words and numbers: ``reason``, ``n_null``, ``excesses``, and per tested level the
            observed and the allowed count of held-out patients.
    """

    p: Floats
    method: Literal["empirical", "tail"]
    resolution: float
    calibrated: bool
    detail: dict[str, object] = field(default_factory=dict)


def tail_p_values(scores: ArrayLike, null_scores: ArrayLike, *, folds: int = 5) -> TailPValues:
    """Conformal p-values, extended above the largest held-out score by a generalized Pareto tail.

    Up to the largest of the n held-out scores the p-value is the empirical one. Above it the p-value would
    stay at 1 / (n + 1); there, and only there, it falls with the tail model, no further than to
    1 / (100 (n + 1)). The model is the posterior predictive tail of the highest 10 % (20 to 100) of the
    held-out scores, with a flat prior on the shape in [0, 2] and on the log scale: it carries the uncertainty
    of the fit into the p-value (for exponential excesses and known shape it would be exact), and tails that
    are lighter than exponential, bounded ones too, are treated as exponential, so that it errs upward.

    It is used only if it is calibrated on held-out folds: it is fitted to ``folds - 1`` parts of the held-out
    patients and predicts the rest; at each of the levels 10/n, 3/n, 1/n, 0.1/n, 0.01/n the pooled number of
    held-out patients with a p-value at or below it must not exceed the 95 % binomial bound (Bonferroni over
    the levels). Otherwise, or with fewer than 200 held-out patients, or if the scores are discrete, the
    empirical p-values are returned. Nor is a tail fitted or tested where no score lies above the largest
    held-out one: the two are the same there.

    Guarantees:
        Empirical p-values are valid without assumption. Below 1 / (n + 1) validity rests on a tail that is
        regular above the 20 to 100 highest held-out scores, with shape at most 2; no data can prove that, and
        a rare second population that the held-out patients happen not to show breaks it.

    Args:
        scores: ``(N,)``, one per patient, larger = more memorized.
        null_scores: ``(n,)`` scores of held-out patients, made in the same way.
        folds: Parts for the calibration test, at least 2.

    Raises:
        MemguardError: for empty input, NaN or infinite scores, or fewer than two folds.

    Example:
        >>> import numpy as np
        >>> null = np.random.default_rng(0).normal(size=1000)
        >>> result = tail_p_values([0.0, 2.0, 12.0], null)
        >>> result.method, result.calibrated, bool(result.p[2] < 1 / 1001)
        ('tail', True, True)
    """
    if folds < 2:
        raise MemguardError(
            f"folds = {folds}", "the tail model cannot be tested on patients it was fitted to", "pass folds=5"
        )
    s = finite(scores, "scores", allow_empty=True)
    null = np.sort(finite(null_scores, "null_scores"))
    n = len(null)
    p: Floats = (1.0 + n - np.searchsorted(null, s, side="left").astype(np.float64)) / (n + 1.0)
    detail: dict[str, object] = {"n_null": n}
    beyond = s > null[-1]
    reason = "" if np.any(beyond) else "no score lies above the largest held-out one"
    reason = reason or _unfit(null) or _miscalibrated(null, folds, detail)
    if reason:
        detail["reason"] = reason
        return TailPValues(p=p, method="empirical", resolution=1.0 / (n + 1), calibrated=False, detail=detail)
    resolution = 1.0 / (_REACH * (n + 1.0))
    p[beyond] = np.clip(_Tail(null).p(s[beyond]), resolution, 1.0 / (n + 1.0))
    detail |= {"reason": "calibrated on held-out folds", "excesses": _n_excesses(n)}
    return TailPValues(p=p, method="tail", resolution=resolution, calibrated=True, detail=detail)


class _Tail:
    """Posterior predictive survival function of the highest scores of a sorted null."""

    def __init__(self, null: Floats) -> None:
        n, k = len(null), _n_excesses(len(null))
        self.start = float(null[n - k - 1])
        excess = null[n - k :] - self.start
        unit = float(np.median(excess))
        scales = np.exp(_LOG_SCALES)
        ratio = (excess / unit)[:, None] / scales
        shape = np.maximum(_SHAPES, 1e-9)
        logs = np.stack([np.log1p(xi * ratio).sum(axis=0) for xi in shape])
        loglik = -k * _LOG_SCALES - (1.0 + 1.0 / shape[:, None]) * logs
        posterior = np.exp(loglik - loglik.max())
        # cells that cannot matter are left out: each less than 1e-9 of the largest
        i, j = np.nonzero(posterior > 1e-9)
        weight, xi = posterior[i, j] / posterior[i, j].sum(), shape[i, None]
        # a fixed grid of excesses, interpolated in log-log, serves any number of scores
        grid = np.geomspace(1e-3, 1e6, 180)
        survival = weight @ np.exp(-np.log1p(xi * grid / scales[j, None]) / xi)
        self.log_p = math.log((k + 1) / (n + 1)) + np.log(np.maximum(survival, 1e-300))
        self.log_grid = np.log(grid * unit)

    def p(self, scores: Floats) -> Floats:
        """Probability of a new null score at least this large, for scores above the start of the tail."""
        where = np.log(np.maximum(scores - self.start, 1e-300))
        p: Floats = np.exp(np.interp(where, self.log_grid, self.log_p))
        return p


def _n_excesses(n: int) -> int:
    return min(max(_LEAST_EXCESSES, math.ceil(0.1 * n)), _MOST_EXCESSES)


def _unfit(null: Floats) -> str:
    n, k = len(null), _n_excesses(len(null))
    if n < _LEAST_NULL:
        return f"{n} held-out patients, a tail needs {_LEAST_NULL}"
    top = null[n - k - 1 :]
    if np.count_nonzero(np.diff(top)) < 0.9 * k:
        return "the largest held-out scores are tied"
    return ""


def _miscalibrated(null: Floats, folds: int, detail: dict[str, object]) -> str:
    """Empty if the tail model predicts held-out patients; else which level it fails."""
    n = len(null)
    # drawn on the sorted scores, so that the answer does not depend on the order of the patients
    part = np.random.default_rng(0).permutation(n) % folds
    p = np.ones(n)
    for fold in range(folds):
        fitted, rest = null[part != fold], part == fold
        tail = _Tail(fitted)
        rest &= null > tail.start
        p[rest] = tail.p(null[rest])
    levels = np.array([10.0, 3.0, 1.0, 0.1, 0.01]) / n
    observed = np.count_nonzero(p[:, None] <= levels, axis=0)
    allowed = stats.binom.isf(0.05 / len(levels), n, levels)
    detail["levels"] = [
        {"level": float(a), "observed": int(o), "allowed": int(b)}
        for a, o, b in zip(levels, observed, allowed, strict=True)
    ]
    failed = np.flatnonzero(observed > allowed)
    if len(failed) == 0:
        return ""
    j = int(failed[0])
    limit = int(allowed[j])
    return f"on held-out folds {observed[j]} patients had p <= {levels[j]:.2g}, where at most {limit} may"
