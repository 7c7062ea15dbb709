"""The loss that a model has on a patient it never saw, fitted on held-out patients.

Here are the regression and its fit, and what makes members' train-time losses comparable with held-out
patients' eval-mode ones. Which features go in, and what is done with the result: ``surrogate.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError, HeldOutError

__all__ = [
    "MIN_HELD_OUT",
    "REFUSE_FIT",
    "WARN_FIT",
    "Expectation",
    "correlation",
    "counterfactual",
    "fit_status",
    "match_train_noise",
]

MIN_HELD_OUT = 100  # held-out patients below which no expectation is fitted
WARN_FIT = 0.9  # correlation on held-out patients below which the ranking carries a warning
REFUSE_FIT = 0.5  # and below which there is none
_RIDGE = 10.0
_FOLDS = 5

Status = Literal["ok", "warn", "refuse"]
_Float = NDArray[np.float64]


def fit_status(fit_r: float) -> Status:
    """What a correlation between expected and actual held-out loss allows.

    Example:
        >>> [fit_status(r) for r in (0.95, 0.8, 0.3, float("nan"))]
        ['ok', 'warn', 'refuse', 'refuse']
    """
    if not fit_r >= REFUSE_FIT:
        return "refuse"
    return "ok" if fit_r >= WARN_FIT else "warn"


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The loss that the current model has on a patient it never saw, from features of the record.

    Attributes:
        weights: ``(K, F)`` of the K fold models, on standardised features.
        intercepts: ``(K,)``.
        center: ``(F,)`` mean of the held-out features.
        scale: ``(F,)`` their standard deviation; a constant feature is left out (weight 0).
        cross_fitted: ``(M,)`` expectation of each held-out record by the fold model that did not see its
            patient.
        fit_r: correlation of ``cross_fitted`` with the held-out losses.
        n: held-out patients.

    What it does and does not show: ``fit_r`` speaks for patients like the held-out ones. A fit of .87 does
    not guarantee a good top of the ranking, hence the warning below .9.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(300, 2))
        >>> fit = Expectation.fit(x, 3 + x[:, 0] + 0.1 * rng.normal(size=300))
        >>> fit.status, round(float(fit.predict([[1.0, 0.0]])[0]), 1)
        ('ok', 4.0)
    """

    weights: _Float
    intercepts: _Float
    center: _Float
    scale: _Float
    cross_fitted: _Float
    fit_r: float
    n: int

    @classmethod
    def fit(
        cls,
        features: ArrayLike,
        loss: ArrayLike,
        patient: ArrayLike | None = None,
        *,
        ridge: float = _RIDGE,
        folds: int = _FOLDS,
        seed: int = 0,
    ) -> Expectation:
        """Fit on held-out patients, once for each fold of patients left out.

        Args:
            features: ``(M, F)``.
            loss: ``(M,)`` current loss of the held-out records (eval mode, or made to look like train mode by
                :func:`match_train_noise` where members' train-time losses are compared).
            patient: ``(M,)``; every record its own patient when ``None``.
            ridge: penalty on standardised features.
            folds: of patients.
            seed: of the folds.

        Raises:
            HeldOutError: with fewer than 100 held-out patients.
            DataError: where shapes differ or a number is not finite.
        """
        x, y = np.asarray(features, dtype=np.float64), np.asarray(loss, dtype=np.float64)
        if x.ndim != 2 or y.shape != (len(x),) or not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise DataError(
                f"features {x.shape} and losses {y.shape}, all finite: {bool(np.isfinite(x).all())}, "
                f"{bool(np.isfinite(y).all())}",
                "the expected loss would be fitted to something else",
                "pass (M, F) features and (M,) losses without NaN",
            )
        code = (
            np.arange(len(y)) if patient is None else np.unique(np.asarray(patient), return_inverse=True)[1]
        )
        n = int(code.max(initial=-1)) + 1
        if n < MIN_HELD_OUT:
            raise HeldOutError(
                f"{n} held-out patients",
                f"the expected loss is fitted on held-out patients; below {MIN_HELD_OUT} the fit is noise",
                f"hold out at least {MIN_HELD_OUT} patients",
            )
        center, spread = x.mean(0), x.std(0)
        scale = np.where(spread > 1e-9 * (1 + np.abs(center)), spread, np.inf)
        z = (x - center) / scale
        fold = (np.random.default_rng(seed).permutation(n) % folds)[code]
        weights, intercepts, crossed = np.empty((folds, z.shape[1])), np.empty(folds), np.empty(len(y))
        for k in range(folds):
            seen = fold != k
            middle, level = z[seen].mean(0), y[seen].mean()
            a = z[seen] - middle
            weights[k] = np.linalg.solve(a.T @ a + ridge * np.eye(a.shape[1]), a.T @ (y[seen] - level))
            intercepts[k] = level - middle @ weights[k]
            crossed[~seen] = z[~seen] @ weights[k] + intercepts[k]
        return cls(
            weights=weights,
            intercepts=intercepts,
            center=center,
            scale=scale,
            cross_fitted=crossed,
            fit_r=correlation(crossed, y),
            n=n,
        )

    @property
    def status(self) -> Status:
        """``ok``, ``warn`` (below .9) or ``refuse`` (below .5)."""
        return fit_status(self.fit_r)

    def predict(self, features: ArrayLike) -> _Float:
        """Expected loss ``(N,)`` of records that are not held out: the mean of the fold models.

        A held-out record takes ``cross_fitted`` instead. The two are exchangeable up to the spread between
        fold models, which only makes the held-out gaps wider, hence p-values larger.
        """
        z = (np.asarray(features, dtype=np.float64) - self.center) / self.scale
        return np.asarray(z @ self.weights.mean(0) + self.intercepts.mean())


def counterfactual(expected: ArrayLike, loss: ArrayLike, *, weight: float = 1.0) -> _Float:
    """Expected loss of a model that never saw the patient, less ``weight`` times the model's loss.

    Weight 1 is the gap in nats, a severity; weight 1/2 ranks better while memorization is still small
    beside the differences in difficulty.

    Example:
        >>> counterfactual([2.0, 3.0], [1.5, 1.0]).tolist()
        [0.5, 2.0]
    """
    return np.asarray(expected, dtype=np.float64) - weight * np.asarray(loss, dtype=np.float64)


def match_train_noise(
    held_out: ArrayLike,
    sample_train: ArrayLike,
    sample_eval: ArrayLike,
    rng: np.random.Generator,
    *,
    noise_only: bool = False,
) -> _Float:
    """Make held-out patients' eval-mode losses look like members' train-mode, mid-epoch ones.

    A member's trace holds the loss of a training step: dropout on, and the model as it was in the middle of
    the epoch. A held-out patient's is measured in eval mode at its end. The two are not exchangeable, and a
    score built on them would call members memorized where nothing is. A small sample of members measured
    both ways gives the difference; each held-out record takes that of a member of about the same *rank*: the
    third hardest of a hundred held-out records that of the third hardest of a hundred members, or of one of
    its neighbours. Where nothing is memorized, the same rank is the same loss. Where members are memorized,
    the same loss is not: most held-out records lie above most members then, and would all share the
    differences of the few hardest members. By rank, and dealt like cards instead of drawn, each difference
    serves equally many held-out records.

    Args:
        held_out: ``(M,)`` eval-mode losses of held-out records at the end of an epoch; NaN stays NaN.
        sample_train: ``(m,)`` train-time losses of a sample of members in that epoch.
        sample_eval: ``(m,)`` their eval-mode losses at the end of that epoch.
        rng: shuffles the differences among neighbours.
        noise_only: add the spread of the differences but not a positive mean. For a *current* loss: there the
            mean also holds what the members memorized in this very epoch, which a held-out patient does not
            have; leaving it out errs on the side of fewer flags.

    Returns:
        ``(M,)`` losses; records whose sample is too small (fewer than 10) are refused.

    Raises:
        DataError: with fewer than 10 members measured both ways.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> level = rng.gamma(9.0, 0.3, 1000)
        >>> matched = match_train_noise(level - 1.0, level + 0.2, level, rng)
        >>> round(float((matched - level).mean()), 3)
        -0.8
    """
    out = np.array(held_out, dtype=np.float64)
    train, level = np.asarray(sample_train, dtype=np.float64), np.asarray(sample_eval, dtype=np.float64)
    both = np.isfinite(train) & np.isfinite(level)
    train, level = train[both], level[both]
    m = len(train)
    if m < 10:
        raise DataError(
            f"{m} members measured in train and in eval mode",
            "members' train-time losses cannot be compared with held-out patients' eval-mode ones",
            "measure at least 10, better 100",
        )
    shift = (train - level)[np.argsort(level, kind="stable")]
    if noise_only:
        shift = shift - max(0.0, float(shift.mean()))
    measured = np.flatnonzero(np.isfinite(out))
    n = len(measured)
    easiest_first = measured[np.argsort(out[measured], kind="stable")]
    rank = (np.arange(n) + 0.5) / max(n, 1)
    reach = max(5, m // 20) / m  # of a shift, in ranks: not far, for hard records are noisier
    dealt = np.argsort(rank + rng.uniform(-reach, reach, n), kind="stable")
    out[easiest_first] += shift[(rank * m).astype(np.int64)][dealt]
    return out


def correlation(a: _Float, b: _Float) -> float:
    """Pearson correlation; NaN where either side does not vary."""
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
