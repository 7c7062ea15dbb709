"""AUC of a small evaluated sample, sharpened by a cheap measurement of everybody.

A monitor can afford to evaluate a few hundred members per look, but it knows the train-time loss of all of
them. Prediction-powered inference lets the cheap numbers narrow the interval without being able to move the
estimate away from what the evaluated sample supports: a useless proxy changes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from memguard.attacks.estimate import Estimate
from memguard.errors import MemguardError

__all__ = ["powered_auc"]

Floats = NDArray[np.float64]


def _basis(rank: Floats) -> Floats:
    return np.stack([np.ones_like(rank), rank, rank**2, rank**3], axis=1)


def _cluster_mean_variance(values: Floats, groups: NDArray[np.int64]) -> float:
    """Variance of the mean of ``values`` when whole groups are drawn (linearised ratio of sums)."""
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        return float("nan")
    sums = np.bincount(groups, values - values.mean(), minlength=n_groups)
    return float(np.sum(sums**2) * n_groups / (n_groups - 1) / values.size**2)


def _codes(groups: ArrayLike | None, n: int) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(n, dtype=np.int64)
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)


def _placements(scores: Floats, others: Floats) -> Floats:
    """Share of ``others`` below each score, ties counted half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left")
    up_to = np.searchsorted(ordered, scores, side="right")
    return np.asarray((below + up_to) / (2.0 * others.size), dtype=np.float64)


def powered_auc(
    sample_scores: ArrayLike,
    sample_proxy: ArrayLike,
    all_proxy: ArrayLike,
    held_out_scores: ArrayLike,
    *,
    sample_groups: ArrayLike | None = None,
    held_out_groups: ArrayLike | None = None,
    confidence: float = 0.95,
    folds: int = 5,
) -> Estimate:
    """Membership AUC from an evaluated random sample of members and a proxy known for all members.

    The estimand is the AUC that evaluating every member would give. With ``V_i`` the placement of sampled
    member ``i`` among the held-out scores and ``g`` a cubic fit of ``V`` on the rank of the proxy (fitted on
    the other folds of patients), the estimate is ``mean_sample(V - w g) + w mean_all(g)`` with the
    variance-minimising weight ``w`` in ``[0, 1]``.

    Args:
        sample_scores: float ``(m,)``, scores of a uniform random sample of members, larger = member-like.
        sample_proxy: float ``(m,)``, the cheap measurement of the same records (any monotone scale).
        all_proxy: float ``(N,)``, the same of every member, the sample included.
        held_out_scores: float ``(n,)``, scores of held-out records, measured as the sample's were.
        sample_groups: ``(m,)`` patient of each sampled record; each record its own patient when not given.
        held_out_groups: ``(n,)`` patient of each held-out record.
        confidence: Coverage of the interval.
        folds: Folds of patients for the cross-fitted proxy model.

    Returns:
        The estimate with a patient-clustered interval on the logit scale; ``n`` counts sampled and held-out
        patients.

    Raises:
        MemguardError: If an array is empty or the sample and its proxy differ in length.

    Guarantees:
        Asymptotically valid for any proxy, since the proxy model is never trusted for the records that it was
        fitted on. It proves nothing about attacks other than the one whose scores these are.

    References:
        Prediction-powered inference: arXiv 2301.09633, Proposition 1; power tuning: arXiv 2311.01453,
        section 6. Variance of placements: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837;
        clusters: Obuchowski 1997, Biometrics 53:567.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> held, members = rng.normal(0, 1, 3000), rng.normal(0.5, 1, 3000)
        >>> proxy = members + rng.normal(0, 0.3, 3000)
        >>> rows = rng.choice(3000, 150, replace=False)
        >>> plain = powered_auc(members[rows], np.zeros(150), np.zeros(3000), held)
        >>> sharp = powered_auc(members[rows], proxy[rows], proxy, held)
        >>> sharp.high - sharp.low < 0.7 * (plain.high - plain.low)
        True
    """
    scores = np.asarray(sample_scores, dtype=np.float64)
    proxy = np.asarray(sample_proxy, dtype=np.float64)
    everyone = np.asarray(all_proxy, dtype=np.float64)
    held_out = np.asarray(held_out_scores, dtype=np.float64)
    if min(scores.size, everyone.size, held_out.size) == 0 or scores.shape != proxy.shape:
        raise MemguardError(
            f"{scores.size} sampled scores, {proxy.size} proxies, {held_out.size} held-out scores",
            "an AUC compares a sample of members, each with its proxy, with held-out records",
            "pass arrays of equal length for the sample and at least one held-out score",
        )
    groups, held_groups = _codes(sample_groups, scores.size), _codes(held_out_groups, held_out.size)
    placement = _placements(scores, held_out)
    reverse = 1.0 - _placements(held_out, scores)
    usable = bool(np.isfinite(everyone).all() and np.isfinite(proxy).all() and np.ptp(everyone) > 0)
    weight, fitted, mean_all, var_all = 0.0, np.zeros_like(placement), 0.0, 0.0
    if usable and int(groups.max()) + 1 >= 4 * folds:
        fitted, mean_all, var_all = _cross_fit(placement, proxy, everyone, groups, folds)
        spread = float(np.var(fitted))
        if spread > 0:
            shared = float(np.mean((fitted - fitted.mean()) * (placement - placement.mean())))
            weight = float(np.clip(shared / (spread * (1 + scores.size / everyone.size)), 0.0, 1.0))
    residual = placement - weight * fitted
    value = float(np.clip(residual.mean() + weight * mean_all, 0.0, 1.0))
    variance = (
        np.nan_to_num(_cluster_mean_variance(residual, groups), nan=0.25)
        + weight**2 * var_all / everyone.size
        + np.nan_to_num(_cluster_mean_variance(reverse, held_groups), nan=0.25)
    )
    n_patients = int(groups.max()) + int(held_groups.max()) + 2
    low, high = _logit_interval(value, float(variance), confidence, min(scores.size, held_out.size))
    method = "prediction-powered, clustered DeLong, logit" if weight else "clustered DeLong, logit"
    return Estimate(value=value, low=low, high=high, n=n_patients, method=method, confidence=confidence)


def _cross_fit(
    placement: Floats, proxy: Floats, everyone: Floats, groups: NDArray[np.int64], folds: int
) -> tuple[Floats, float, float]:
    ordered = np.sort(everyone)
    rank = np.searchsorted(ordered, proxy, side="left") / everyone.size
    rank_all = np.searchsorted(ordered, everyone, side="left") / everyone.size
    design, design_all = _basis(rank), _basis(rank_all)
    fitted = np.zeros_like(placement)
    total = np.zeros(everyone.size)
    for fold in range(folds):
        out = groups % folds == fold
        gram = design[~out].T @ design[~out] + 1e-6 * np.eye(design.shape[1])
        coefficients = np.linalg.solve(gram, design[~out].T @ placement[~out])
        fitted[out] = design[out] @ coefficients
        total += design_all @ coefficients * (out.sum() / placement.size)
    return fitted, float(total.mean()), float(total.var())


def _logit_interval(value: float, variance: float, confidence: float, n: int) -> tuple[float, float]:
    """Wald interval on the logit scale; at 0 or 1 the value is first moved in by half an observation."""
    z = float(norm.ppf(0.5 + confidence / 2))
    inside = float(np.clip(value, 0.5 / (n + 1), 1 - 0.5 / (n + 1)))
    floor = (0.5 / (n + 1)) ** 2  # at complete separation the placements show no spread at all
    half = z * np.sqrt(max(variance, floor)) / (inside * (1 - inside))
    centre = np.log(inside / (1 - inside))
    low, high = 1 / (1 + np.exp(-(centre - half))), 1 / (1 + np.exp(-(centre + half)))
    return float(min(low, value)), float(max(high, value))
