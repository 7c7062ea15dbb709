"""RMIA: is a record's likelihood ratio larger than those of records nobody trained on (arXiv 2312.03262)?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from memguard.attacks._checks import Floats, finite, probabilities
from memguard.attacks.reference import ReferenceScores, blocks, reference_models, table
from memguard.errors import MemguardError

__all__ = ["rmia"]

_LEAST = 1e-300  # stands for a probability of zero, so that ratios stay finite


def rmia(
    target: ArrayLike,
    reference: ArrayLike,
    in_mask: ArrayLike,
    population_target: ArrayLike,
    population_reference: ArrayLike,
    *,
    gamma: float = 2.0,
    offline_a: float | None = None,
    continuous: bool = False,
) -> ReferenceScores:
    """Share of population records z whose likelihood ratio a record beats by ``gamma`` (RMIA).

    The ratio of a record is ``r = p_target / p``: what the audited model gives to its truth over what a model
    gives to it on average. The score is the share of z with ``r_x >= gamma * r_z``, equality included
    (Zarifzadeh, Liu and Shokri, arXiv 2312.03262, eqs. 2 and 3).

    ``p`` of a record is, online, the mean of two means, of its IN and of its OUT models, so that counts may
    differ between and within records. Offline (``offline_a`` given) only OUT models are used, and
    ``p = ((1 + a) p_out + 1 - a) / 2`` (their eq. 10): a linear guess at the mean with IN models; a = 1 trusts
    the OUT models, a = 0.3 was their choice for CIFAR-10; choose it on reference models, not on the target.
    No population record may be in the training data of the target or of any reference model; its p is the
    mean over all K models, put through the same line when offline.

    One target model and one gamma are one order: the score is a step function of ``r_x``. It has only Z + 1
    levels, and all records above the largest ``gamma * r_z`` tie at 1, so that at a false positive rate below
    that of this top level nothing is found. ``continuous=True`` keeps the order inside the steps: it returns
    ``log r_x - log gamma - median_z log r_z``, above zero where the share is above one half (to within one
    population record); its order does not depend on gamma, and it is the order that the share tends to as
    Z grows.

    A large score says that the record is fitted better than its reference models would make one expect,
    compared with unseen records; it is no probability of membership.

    Args:
        target: ``(N,)`` probability that the audited model gives to the truth of each record.
        reference: ``(K, N)`` the same of the reference models.
        in_mask: ``(K, N)`` whether reference model k trained on record n.
        population_target: ``(Z,)`` as ``target``, for records that no model trained on.
        population_reference: ``(K, Z)`` the same of the reference models.
        gamma: Factor by which a record has to beat z, positive. The paper uses 1 to 2.
        offline_a: In [0, 1]; None is online.
        continuous: Return the log ratio against the population instead of the share.

    Returns:
        Scores, NaN, and counted, for a record without an IN model (online) or without an OUT model.
        Memory beyond the inputs is of order N + Z. A probability of 0 counts as 1e-300.

    Raises:
        MemguardError: for NaN, values outside [0, 1], wrong shapes, an empty population, or a mask without
            any IN (online) or OUT model.

    Example:
        >>> found = rmia([0.9, 0.5], [[0.8, 0.6], [0.2, 0.4]], [[1, 0], [0, 1]],
        ...              [0.5, 0.3, 0.2], [[0.4, 0.4, 0.6], [0.6, 0.4, 0.6]])
        >>> found.score
        array([0.66666667, 0.33333333])
    """
    now, scores, mask = reference_models(target, reference, in_mask, needs_in=offline_a is None)
    now_z = finite(population_target, "population_target")
    scores_z = table(population_reference, "population_reference", len(now_z))
    if len(scores_z) != len(scores):
        raise MemguardError(
            f"population_reference has {len(scores_z)} reference models, reference {len(scores)}",
            "ratios of records and of the population would not compare",
            "pass the same reference models, in the same order",
        )
    probabilities(now, "target")
    probabilities(scores, "reference")
    probabilities(now_z, "population_target")
    probabilities(scores_z, "population_reference")
    if not 0.0 < gamma < 1e8:
        raise MemguardError(f"gamma = {gamma!r}", "it is a factor between ratios", "pass gamma in (0, 1e8)")
    if offline_a is not None and not 0.0 <= offline_a <= 1.0:
        raise MemguardError(
            f"offline_a = {offline_a!r}", "it weighs the OUT models against 1", "pass offline_a in [0, 1]"
        )
    n_in, mean_in, mean_out = np.empty(len(now)), np.empty(len(now)), np.empty(len(now))
    for at, x in blocks(scores):
        weight = mask[:, at].astype(np.float64)
        n_in[at] = weight.sum(axis=0)
        mean_in[at] = np.einsum("kn,kn->n", x, weight)
        mean_out[at] = np.einsum("kn,kn->n", x, 1.0 - weight)
    n_out = len(scores) - n_in
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_in /= n_in
        mean_out /= n_out
    mean_z = scores_z.mean(axis=0, dtype=np.float64)
    ratio = _ratio(now, (mean_in + mean_out) / 2 if offline_a is None else _line(mean_out, offline_a))
    ratio_z = _ratio(now_z, mean_z if offline_a is None else _line(mean_z, offline_a))
    if continuous:
        score = np.log(ratio) - np.log(gamma) - np.median(np.log(ratio_z))
    else:
        bars = np.sort(gamma * ratio_z)
        score = np.searchsorted(bars, ratio, side="right") / len(bars)
        score[np.isnan(ratio)] = np.nan
    return ReferenceScores(score=score, n_in=n_in.astype(np.int64), n_out=n_out.astype(np.int64))


def _line(mean_out: Floats, a: float) -> Floats:
    """The offline guess at a record's mean probability."""
    return ((1.0 + a) * mean_out + (1.0 - a)) / 2


def _ratio(now: Floats, mean: Floats) -> Floats:
    return np.maximum(now, _LEAST) / np.maximum(mean, _LEAST)
