"""Two axes: did training on the patient raise the probability of a code, and do the other codes explain it?

References never saw the patient. What the target knows beyond them is memorized; what they know beyond the patient's
demographics can be inferred. The two do not exclude each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.probes.prompts import mean_over_out

__all__ = ["FLOOR", "comparable_out", "inference_p_values", "likelihood_ratio"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FLOOR = -50.0  # nats: a smaller log-probability is raised to it, so that no difference is infinite


def comparable_out(out: Bools, member: Bools, seed: int = 0) -> Bools:
    """Leave out references of one side until both sides are compared with as many.

    References that were trained on halves of the members alone never saw a held-out patient: a mean over all of them
    is steadier than the mean over half of them which a member has, and the sides would differ without any leak.

    Args:
        out: ``(K, n)`` whether reference k never saw the patient.
        member: ``(n,)``.
        seed: Of the draw.

    Returns:
        ``(K, n)``; ``out`` itself where the sides are compared with equally many on average.

    Example:
        >>> out = np.array([[True, True], [False, True]])
        >>> comparable_out(out, np.array([True, False])).sum(0).tolist()
        [1, 1]
    """
    count = out.sum(0)
    tested = count > 0  # a record without any is not tested, and says nothing of the others
    inner, outer = count[tested & member], count[tested & ~member]
    if not len(inner) or not len(outer):
        return out
    spread = np.sqrt(inner.var() / len(inner) + outer.var() / len(outer))
    if abs(inner.mean() - outer.mean()) <= 3.0 * spread + 1e-9:
        return out
    rng = np.random.default_rng([seed, 37])
    fuller = ~member if outer.mean() > inner.mean() else member
    wanted = np.where(fuller, rng.choice(count[~fuller & tested], len(count)), count)
    turn = np.argsort(np.where(out, rng.random(out.shape), 2.0), axis=0)
    kept = np.zeros_like(out)
    np.put_along_axis(kept, turn, np.arange(len(out))[:, None] < wanted, axis=0)
    both: Bools = kept & out
    return both


def likelihood_ratio(target: Floats, reference: Floats, out: Bools, inside: Bools) -> tuple[Floats, str]:
    """What to rank by: how much likelier the target's log-probability is if it saw the patient than if it did not.

    Log-probabilities of references are taken as normal about the mean of those that saw the patient, or of those that
    did not, with one variance; then the ratio is linear in the target's, and what references could not memorize
    counts less. The gap between the means is not taken below half of its mean over all codes, so that a rise always
    counts as evidence. Where no gap is found, or fewer than nine in ten codes have references of both kinds, the
    difference to the mean of the references that did not see the patient is taken.

    Args:
        target: ``(n,)`` log-probabilities.
        reference: ``(K, n)``.
        out: ``(K, n)`` references that never saw the patient, to be compared with.
        inside: ``(K, n)`` references that did.

    Returns:
        ``(n,)`` scores, NaN without a reference in ``out``; and how they were made, in words.

    References:
        Carlini et al., arXiv 2112.03570 (the ratio, there of a record's loss).

    Example:
        >>> reference = np.array([[-6.0, -5.0], [-2.0, -1.0]])
        >>> out = np.array([[True, True], [False, False]])
        >>> likelihood_ratio(np.array([-2.0, -5.0]), reference, out, ~out)[0].tolist()
        [4.0, -4.0]
    """
    n_out, n_in = out.sum(0), inside.sum(0)
    known = n_out > 0
    middle = np.where(out, reference, 0.0).sum(0) / np.maximum(n_out, 1)
    plain: Floats = np.where(known, target - middle, np.nan)
    both = known & (n_in > 0)
    if not known.any() or both.sum() < 0.9 * known.sum():
        return plain, "difference to the mean of the references that never saw the patient"
    gap = np.where(inside, reference, 0.0).sum(0) / np.maximum(n_in, 1) - middle
    usual = float(gap[both].mean())
    if usual <= 0.0:
        return plain, "difference to the mean of the references that never saw the patient"
    gap = np.maximum(np.where(n_in > 0, gap, usual), usual / 2)
    noise = 1.0 + 0.5 / np.maximum(n_out, 1) + 0.5 / np.maximum(n_in, 1)
    squares = (
        np.where(out, (reference - middle) ** 2, 0.0).sum()
        + np.where(inside, (reference - middle - gap) ** 2, 0.0).sum()
    )
    free = float(np.maximum(n_out - 1, 0).sum() + np.maximum(n_in - 1, 0).sum())
    variance = max(float(squares) / free, 1e-6) if free >= 1 and squares > 0 else 1.0
    ratio: Floats = np.where(known, (plain - gap / 2) * gap / (variance * noise), np.nan)
    return ratio, "likelihood ratio of references that saw the patient and that did not"


def inference_p_values(
    evidence: Floats, category: Ints, code: Ints, null: Floats, tokens: Ints, usable: Bools
) -> tuple[Floats, Ints]:
    """P-value of the inference evidence of each code against records of patients without such a code.

    Args:
        evidence: ``(n,)`` by how much the known codes raise the references' log-probability of the code.
        category: ``(n,)`` of the code.
        code: ``(n,)`` the code.
        null: ``(B, U)`` the same rise in B records of others for each of U codes; NaN where not known.
        tokens: ``(U,)`` those codes, ascending.
        usable: ``(B, C)`` whether the patient of record b is without codes of category c.

    Returns:
        ``(n,)`` p-values, ``(1 + #{null >= evidence}) / (1 + B)``, NaN without evidence or null; and ``(n,)`` how
        many records were compared with.

    Raises:
        DataError: If a code is not among ``tokens``.

    Example:
        >>> null = np.zeros((19, 1))
        >>> p, n = inference_p_values(
        ...     np.array([2.0, 0.0]), np.zeros(2, int), np.array([7, 7]), null, np.array([7]), np.ones((19, 1), bool))
        >>> p.tolist(), n.tolist()
        ([0.05, 1.0], [19, 19])
    """
    at = np.searchsorted(tokens, code)
    if len(code) and (at.max() >= len(tokens) or np.any(tokens[at] != code)):
        raise DataError("a code without a null", "its p-value would be another code's", "ask the null for it")
    p, size = np.full(len(code), np.nan), np.zeros(len(code), np.int64)
    for c in np.unique(category):
        for u in np.unique(at[category == c]):
            mine = np.flatnonzero((category == c) & (at == u))
            others = null[usable[:, c], u]
            others = np.sort(others[np.isfinite(others)])
            size[mine] = len(others)
            here = mine[np.isfinite(evidence[mine])]
            if len(others):
                at_least = len(others) - np.searchsorted(others, evidence[here], side="left")
                p[here] = (1.0 + at_least) / (1.0 + len(others))
    return p, size


def rise(log_p: Floats, base: Floats, out: Bools) -> Floats:
    """Logarithm of the ratio of two mean probabilities over the references that never saw the patient, ``(n,)``."""
    found: Floats = mean_over_out(log_p, out) - mean_over_out(base, out)
    return found
