"""BaVarIA: likelihood ratios whose variances and gaps come from a prior over records (after arXiv 2603.11799)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.special import gammaln, log_ndtr, stdtr

from memguard.attacks._checks import Floats, choice
from memguard.attacks.reference import Moments, ReferenceScores, moments, reference_models
from memguard.errors import ResolutionError

__all__ = ["bavaria"]

_FLOOR = 1e-6  # smallest pooled standard deviation, as a share of that of all reference scores
_ENOUGH = 4000  # records that the prior is fitted to, spread evenly over the order of their gaps
_STEP = 1 << 14  # records scored at once
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
_REACH = 4.0  # a record's log spread and its centre count at most so many units in the gap


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What the records have in common.

    Attributes:
        pooled: Variance of IN and of OUT scores about their record's mean, over all records.
        freedom: Degrees of freedom of the inverse gamma: how much the records' variances agree.
        unit: Its scale: variance of a typical record as a share of the pooled one.
        gap: ``(N,)`` median of the prior of each record's gap, IN mean minus OUT mean.
        spread: Standard deviation of the log gap.
        slope: ``(3,)`` what the log gap depends on: level, log spread, centre.
    """

    pooled: tuple[float, float]
    freedom: float
    unit: float
    gap: Floats
    spread: float
    slope: Floats


def bavaria(
    target: ArrayLike,
    reference: ArrayLike,
    in_mask: ArrayLike,
    *,
    mode: Literal["online", "offline"] = "online",
    predictive: Literal["t", "normal"] = "normal",
) -> ReferenceScores:
    """Likelihood ratio of IN against OUT with Bayesian variances and gaps: the attack for few reference models.

    With 2 to 16 models a record's own variances and the difference of its two means are mostly noise, and
    pooling them ignores that records differ. Here each record borrows from all others what it lacks. The
    model, for record n with variance ``s_n`` (in units of the pooled ``V_in``, ``V_out``):

    - OUT scores ``~ N(a_n, s_n V_out)``, IN scores ``~ N(a_n + d_n, s_n V_in)``; ``a_n`` has a flat prior;
    - ``s_n ~ inverse gamma(f / 2, f u / 2)``: f and u maximize the marginal (F) likelihood of the records'
      variances. f is large where records agree; then this becomes pooled LiRA;
    - ``log d_n ~ N(b0 + b1 log spread_n + b2 centre_n, tau^2)``: being trained on raises a score, more so for
      records whose scores scatter and for those that fit badly, where the data say so. ``b`` and tau maximize
      the marginal likelihood of the observed differences of means.

    Given ``d_n`` this is the conjugate normal-inverse-gamma model, and everything about a record is in closed
    form; the gap is summed out over 9 Gauss-Hermite nodes, weighted by the likelihood of the record's
    reference scores. The score is ``log p(target | IN) - log p(target | OUT)`` in nats, with the posterior
    predictive Student t (``"t"``) or a normal with the posterior's variance (``"normal"``). The normal is the
    default: on recorded losses it found more at low false positive rates. All models count, whatever the
    balance; a record without IN (or OUT) models gets its score from its OUT (IN) models and the prior.

    Offline, with OUT models only, there is no gap to learn: the score is ``-log P(an OUT score > target)``
    under the posterior predictive, as in ``lira``.

    Brännvall (arXiv 2603.11799) proposes conjugate normal-inverse-gamma priors with a t or a normal predictive,
    and reports gains over LiRA and RMIA mostly with few models. What is ours, and may differ from that paper:
    one variance factor per record for both sides, the prior on the gap, and that every constant is fitted to
    the reference scores (empirical Bayes) so that there is nothing to tune.

    The score ranks; its size is as good as the model above, which real scores follow only roughly. It can only
    see membership that *raises* a score.

    Args:
        target: ``(N,)`` scores of the audited model, logit-scaled (see ``logit_scale``), higher = fits better.
        reference: ``(K, N)`` the same of the reference models.
        in_mask: ``(K, N)`` whether reference model k trained on record n. Counts may differ by record.
        mode: ``"offline"`` uses the OUT models only; IN models in ``reference`` are then left out.
        predictive: See above.

    Returns:
        Scores with the number of IN and OUT models; offline NaN, and counted, for a record without OUT models.

    Raises:
        MemguardError: for NaN, infinities, wrong shapes, or a mask without any IN (online) or OUT model.
        ResolutionError: if no two records have both IN and OUT models (online), or none two OUT models (offline).

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> trained_on, member = rng.random((4, 300)) < 0.5, rng.random(300) < 0.5
        >>> base = rng.normal(size=300)
        >>> reference = base + 2 * trained_on + 0.5 * rng.normal(size=(4, 300))
        >>> found = bavaria(base + 2 * member, reference, trained_on)
        >>> found.n_missing, bool(np.all((found.score > 0) == member))
        (0, True)
    """
    choice(mode, "mode", ("online", "offline"))
    choice(predictive, "predictive", ("t", "normal"))
    now, scores, mask = reference_models(target, reference, in_mask, needs_in=mode == "online")
    m = moments(scores, mask)
    if mode == "offline":
        score = _tail(now, m, predictive)
    else:
        prior = fit_prior(m)
        score = np.concatenate(
            [log_ratio(now, m, prior, predictive, slice(i, i + _STEP)) for i in range(0, len(now), _STEP)]
        )
    return ReferenceScores(score=score, n_in=m.n_in.astype(np.int64), n_out=m.n_out.astype(np.int64))


def fit_prior(m: Moments, like: Prior | None = None) -> Prior:
    """Fit what the records have in common to their moments.

    With ``like`` only the pooled variances and the records' own gaps are new; what takes a search (freedom, unit,
    slope, spread) is taken over. That is for many similar sets of reference models, where one fit says enough.
    """
    both = (m.n_in > 0) & (m.n_out > 0)
    if np.count_nonzero(both) < 2:
        raise ResolutionError(
            f"{int(np.count_nonzero(both))} of {len(both)} records have an IN and an OUT model",
            "what training on a record does to its score cannot be told",
            "pass more reference models, or use mode='offline'",
        )
    gap = np.where(both, m.mean_in - m.mean_out, 0.0)
    pooled = _pooled(m, gap[both])
    free = np.maximum(m.n_in - 1, 0) + np.maximum(m.n_out - 1, 0)
    square = m.square_in / pooled[0] + m.square_out / pooled[1]
    if like is not None:
        freedom, unit = like.freedom, like.unit
    elif free.any():
        freedom, unit = _fit_variances(square, free)
    else:  # all that scatters are the differences themselves
        off = gap - np.median(gap[both])
        freedom, unit = _fit_variances(off**2 / (pooled[0] + pooled[1]), both.astype(np.float64))
    # what a gap may depend on: how far the record's scores scatter, and where they lie
    log_spread = np.log((freedom * unit + square) / (freedom + free)) / 2
    half = gap[both].mean() / 2
    middle = np.where(both, np.nan_to_num(m.mean_in + m.mean_out) / 2, 0.0)
    middle = np.where(m.n_out == 0, m.mean_in - half, np.where(m.n_in == 0, m.mean_out + half, middle))
    centre = (middle - middle.mean()) / (middle.std() or 1.0)
    causes = np.stack([np.ones(len(both)), log_spread - log_spread.mean(), centre]).clip(-_REACH, _REACH)
    yard = np.sqrt((pooled[0] + pooled[1]) / 2)
    if like is not None:
        return replace(like, pooled=pooled, gap=yard * np.exp(like.slope @ causes))
    some = np.flatnonzero(both)[np.argsort(gap[both], kind="stable")][:: len(gap[both]) // _ENOUGH + 1]
    effect = 1.0 / (pooled[0] / m.n_in[some] + pooled[1] / m.n_out[some])
    power = (freedom + free[some] + 1) / 2

    def surprise(x: Floats) -> float:
        guess = yard * np.exp(x[:3] @ causes[:, some] + np.exp(x[3]) * _NODES[:, None])
        fit = np.log(freedom * unit + square[some] + effect * (gap[some] - guess) ** 2)
        return -float(_log_sum(_LOG_WEIGHTS[:, None] - power * fit).mean())

    start = [np.log(max(float(np.median(gap[both])) / yard, 0.05)), 0.0, 0.0, -0.7]
    bounds = [(-8.0, 12.0), (-3.0, 3.0), (-3.0, 3.0), (-4.0, 1.0)]
    best = optimize.minimize(
        surprise, np.clip(start, *np.transpose(bounds)), method="L-BFGS-B", bounds=bounds
    ).x
    return Prior(
        pooled=pooled,
        freedom=freedom,
        unit=unit,
        gap=yard * np.exp(best[:3] @ causes),
        spread=float(np.exp(best[3])),
        slope=best[:3],
    )


def log_ratio(now: Floats, m: Moments, prior: Prior, predictive: str, at: slice) -> Floats:
    """Log ratio of the posterior predictive densities of scores ``(..., N)``, IN over OUT."""
    (v_in, v_out), t = prior.pooled, now[..., None, at]
    weight_in, weight_out = m.n_in[at] / v_in, m.n_out[at] / v_out
    weight = weight_in + weight_out
    mean_in, mean_out = (
        np.where(n[at] > 0, mean[at], 0.0) for n, mean in ((m.n_in, m.mean_in), (m.n_out, m.mean_out))
    )
    gap = prior.gap[at] * np.exp(prior.spread * _NODES[:, None])
    freedom = prior.freedom + m.n_in[at] + m.n_out[at] - 1
    square = prior.freedom * prior.unit + m.square_in[at] / v_in + m.square_out[at] / v_out
    square = square + weight_in * weight_out / weight * (mean_in - mean_out - gap) ** 2
    centre = (weight_out * mean_out + weight_in * (mean_in - gap)) / weight
    posterior = _LOG_WEIGHTS[:, None] - freedom / 2 * np.log(square)
    factor = square / freedom
    inside = _log_density(t - centre - gap, factor * (v_in + 1 / weight), freedom, predictive)
    outside = _log_density(t - centre, factor * (v_out + 1 / weight), freedom, predictive)
    return _log_sum(posterior + inside) - _log_sum(posterior + outside)


def _log_sum(x: Floats) -> Floats:
    """Log of the sum of exponentials over the nodes, the last axis but one; all are finite."""
    most = x.max(axis=-2, keepdims=True)
    total: Floats = np.log(np.exp(x - most).sum(axis=-2)) + most[..., 0, :]
    return total


def _log_density(off: Floats, variance: Floats, freedom: Floats, predictive: str) -> Floats:
    """Up to a constant of the record, the same on both sides."""
    density: Floats = off**2 / variance
    density = -density / 2 if predictive == "normal" else -(freedom + 1) / 2 * np.log1p(density / freedom)
    return density - np.log(variance) / 2


def _tail(now: Floats, m: Moments, predictive: str) -> Floats:
    """Minus the log of the posterior predictive probability that an OUT score exceeds the target's."""
    free = np.maximum(m.n_out - 1, 0)
    if not free.any():
        raise ResolutionError(
            f"none of {len(free)} records has two OUT models",
            "how far the scores of one record scatter cannot be told",
            "pass more reference models that do not include the records",
        )
    pooled = max(float(m.square_out.sum() / free.sum()), (_FLOOR * (m.scale or 1.0)) ** 2)
    square = m.square_out / pooled
    freedom, unit = _fit_variances(square, free)
    nu = freedom + free
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (now - m.mean_out) / np.sqrt((freedom * unit + square) / nu * pooled * (1 + 1 / m.n_out))
        score = -log_ndtr(-z)
        if predictive == "t":
            # where the tail is too small for a double: its first term, right to 1 / z^2
            log_pdf = (
                gammaln((nu + 1) / 2)
                - gammaln(nu / 2)
                - np.log(nu * np.pi) / 2
                - (nu + 1) / 2 * np.log1p(z**2 / nu)
            )
            far = log_pdf + np.log(np.abs(z) * (nu + z**2) / (nu * (z**2 + 1)))
            mass = stdtr(nu, -z)
            score = -np.where((z > 1) & (mass < 1e-290), far, np.log(mass))
    return np.where(m.n_out > 0, score, np.nan)


def _pooled(m: Moments, gap: Floats) -> tuple[float, float]:
    """Variances within records; where no record has two models of a side, half that of the gaps bounds them."""
    least = (_FLOOR * (m.scale or 1.0)) ** 2
    free = [float(np.maximum(n - 1, 0).sum()) for n in (m.n_in, m.n_out)]
    squares = [float(m.square_in.sum()), float(m.square_out.sum())]
    if free[0] and free[1]:
        return max(squares[0] / free[0], least), max(squares[1] / free[1], least)
    one = sum(squares) / sum(free) if sum(free) else float(gap.var()) / 2
    return max(one, least), max(one, least)


def _fit_variances(square: Floats, free: Floats) -> tuple[float, float]:
    """Degrees of freedom and scale of the inverse gamma; ``square / free / scale`` then has an F distribution."""
    some = np.lexsort((square, free))[int(np.count_nonzero(free == 0)) :]
    if len(some) < 2:
        return 1e4, 1.0
    some = some[:: len(some) // _ENOUGH + 1]
    q, f = square[some], free[some]

    def surprise(x: Floats) -> float:
        nu, scale = np.exp(x[0]), np.exp(x[0] + x[1])
        density = (
            gammaln((f + nu) / 2)
            - gammaln(nu / 2)
            - f / 2 * np.log(scale)
            - (f + nu) / 2 * np.log1p(q / scale)
        )
        return -float(density.mean())

    best = optimize.minimize(surprise, [1.5, -0.3], method="L-BFGS-B", bounds=[(-2.0, 9.2), (-25.0, 5.0)]).x
    return float(np.exp(best[0])), float(np.exp(best[1]))
