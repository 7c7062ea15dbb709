"""LiRA: the likelihood ratio of a record's score under models that have and have not seen it (arXiv 2112.03570)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr

from memguard.attacks._checks import Floats, choice, patient_codes
from memguard.attacks.reference import Mask, Moments, ReferenceScores, blocks, moments, reference_models
from memguard.errors import ResolutionError

__all__ = ["lira"]

FLOOR = 1e-6  # smallest standard deviation, as a share of that of all reference scores


def lira(
    target: ArrayLike,
    reference: ArrayLike,
    in_mask: ArrayLike,
    *,
    mode: Literal["online", "offline"] = "online",
    variance: Literal["pooled", "per_record", "global"] = "pooled",
    statistic: Literal["mean", "median"] = "mean",
    strata: ArrayLike | None = None,
) -> ReferenceScores:
    """Log-likelihood ratio of each record's score, IN against OUT models, each side a normal distribution.

    Online (Carlini et al., arXiv 2112.03570, algorithm 1) the score is
    ``log N(target; mean_in, var_in) - log N(target; mean_out, var_out)``, in nats. Offline (their eq. 4) it is
    one-sided, from the OUT models alone: ``-log P(an OUT score > target)`` under
    ``N(mean_out, var_out)``, the same order as the paper's ``P(OUT <= target)``, on a scale on which records
    far above their OUT scores stay apart instead of meeting at 1. (A two-sided density of the OUT scores,
    which some implementations call offline LiRA, would give high scores to records that fit *badly*.)

    What "the variance" is differs between implementations; here residuals are centred on their own record
    and side, every IN and every OUT model is used (nothing is cut to the smaller count), and sums of squares
    are divided by their degrees of freedom, so that records with few models do not look quieter:

    - ``"pooled"``: one variance for all IN and one for all OUT residuals, each
      ``sum of squares / sum over records of (n - 1)``. What the paper advises below about 64 models.
    - ``"per_record"``: of each record and side, divisor n - 1 (the paper's text leaves the divisor open). A
      record with fewer than two IN or two OUT models has no variance and gets no score.
    - ``"global"``: a single variance, of IN and OUT residuals together; the score is then linear in
      ``target``. Offline, where nothing is known of IN models, it is the pooled one of the OUT models.

    Standard deviations are raised to 1e-6 of that of all reference scores, so that a record on which all
    models agree gets a large finite score.

    The ratio ranks. It is no probability, and its size is not calibrated where scores are not normal; how
    well it separates is what ``auc`` and ``tpr_at_fpr`` say. With 16 models or fewer prefer ``bavaria``.

    Args:
        target: ``(N,)`` scores of the audited model, logit-scaled (see ``logit_scale``), higher = fits better.
        reference: ``(K, N)`` the same of the reference models.
        in_mask: ``(K, N)`` whether reference model k trained on record n. Counts may differ by record.
        mode: ``"offline"`` uses the OUT models only; IN models in ``reference`` are then left out.
        variance: See above.
        statistic: Location of each side. The median resists single diverged models; residuals are still
            taken from the mean.
        strata: ``(N,)`` code of each record's stratum, in which ``"pooled"`` and ``"global"`` variances are then
            taken: one variance over all records hides those of a group that scatters less than the others.

    Returns:
        Scores with the number of IN and OUT models; NaN, and counted, for a record without an IN model
        (online) or without an OUT model.

    Raises:
        MemguardError: for NaN, infinities, wrong shapes, or a mask without any IN (online) or OUT model.
        ResolutionError: if a variance is asked for that no record (or no record of a stratum) has enough models for.

    Example:
        >>> reference = [[2.0, 0.5], [2.4, 0.1], [0.0, 0.3], [0.4, 0.7]]
        >>> trained_on = [[1, 1], [1, 0], [0, 1], [0, 0]]
        >>> lira([2.2, 0.3], reference, trained_on, variance="global").score.round(2)
        array([22.22,  0.  ])
    """
    choice(mode, "mode", ("online", "offline"))
    choice(variance, "variance", ("pooled", "per_record", "global"))
    choice(statistic, "statistic", ("mean", "median"))
    online = mode == "online"
    now, scores, mask = reference_models(target, reference, in_mask, needs_in=online)
    m = moments(scores, mask)
    cells = None if strata is None else patient_codes(strata, len(now), "strata")[0]
    middles = medians(scores, mask, inside=online) if statistic == "median" else None
    score = log_ratio(now, m, variance, online=online, strata=cells, middles=middles)
    return ReferenceScores(score=score, n_in=m.n_in.astype(np.int64), n_out=m.n_out.astype(np.int64))


def log_ratio(
    now: Floats,
    m: Moments,
    variance: str,
    *,
    online: bool = True,
    strata: NDArray[np.int64] | None = None,
    middles: tuple[Floats, Floats] | None = None,
) -> Floats:
    """The scores of `lira` for ``now`` of shape ``(..., N)``, from the moments of the reference models."""
    middle_in, middle_out = middles or (m.mean_in, m.mean_out)
    spread_in, spread_out = _spreads(m, variance, online=online, strata=strata)
    with np.errstate(invalid="ignore"):
        z_out = (now - middle_out) / spread_out
        if online:
            z_in = (now - middle_in) / spread_in
            score: Floats = np.log(spread_out) - np.log(spread_in) + (z_out**2 - z_in**2) / 2
        else:
            score = -log_ndtr(-z_out)
    return score


def medians(scores: NDArray[Any], mask: Mask, *, inside: bool = True) -> tuple[Floats, Floats]:
    """Median of the IN and of the OUT scores of each record, ``(N,)``; NaN where there are none.

    Example:
        >>> import numpy as np
        >>> medians(np.array([[1.0], [5.0], [2.0]]), np.array([[True], [True], [False]]))
        (array([3.]), array([2.]))
    """
    both = np.full((2, scores.shape[1]), np.nan)
    for at, x in blocks(scores):
        for side in (0, 1) if inside else (1,):
            mine = mask[:, at] if side == 0 else ~mask[:, at]
            # one record per row, the other side's scores at the end
            rows = np.where(mine, x, np.inf).T.copy()
            rows.sort(axis=1)
            count, row = np.count_nonzero(mine, axis=0), np.arange(rows.shape[0])
            middle = (rows[row, np.maximum(count - 1, 0) // 2] + rows[row, count // 2]) / 2
            both[side, at] = np.where(count > 0, middle, np.nan)
    return both[0], both[1]


def _spreads(
    m: Moments, variance: str, *, online: bool, strata: NDArray[np.int64] | None
) -> tuple[Floats, Floats]:
    """Standard deviations of the IN and of the OUT scores, of each record or one for all."""
    floor = FLOOR * (m.scale or 1.0)
    squares, free = [m.square_in, m.square_out], [np.maximum(n - 1, 0) for n in (m.n_in, m.n_out)]
    if not online:
        squares, free = [squares[1]] * 2, [free[1]] * 2
    elif variance == "global":
        squares, free = [squares[0] + squares[1]] * 2, [free[0] + free[1]] * 2
    sides = ("IN" if online else "OUT", "OUT")
    for side, f in zip(sides, free, strict=True):
        _enough(float(f.sum()), side, f"none of {len(f)} records")
    if variance == "per_record":
        with np.errstate(invalid="ignore", divide="ignore"):
            own = [
                np.maximum(np.sqrt(s / np.where(f > 0, f, np.nan)), floor)
                for s, f in zip(squares, free, strict=True)
            ]
        return own[0], own[1]
    if strata is None:
        strata, common = np.zeros(len(m.n_in), dtype=np.int64), True
    else:
        common = False
    spreads = []
    for side, s, f in zip(sides, squares, free, strict=True):
        freedom = np.bincount(strata, weights=f)
        _enough(float(freedom.min()), side, "no record of a stratum")
        spread = np.maximum(np.sqrt(np.bincount(strata, weights=s) / freedom), floor)
        spreads.append(spread[0] if common else spread[strata])
    return spreads[0], spreads[1]


def _enough(freedom: float, side: str, who: str) -> None:
    if freedom <= 0:
        raise ResolutionError(
            f"{who} has two {side} models",
            "how far the scores of one record scatter cannot be told, so the ratio would have no scale",
            "pass more reference models, or use bavaria, whose prior can do with one of each",
        )
