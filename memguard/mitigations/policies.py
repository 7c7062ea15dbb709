"""How much a record may still teach the model, from its loss and from how far it stands out.

A weight multiplies the record's part of the loss; 1 leaves it as it is, 0 takes the record out of the step. All of
these depend on the data of others (through the expectation, and through who is flagged): with differential privacy
they void the claim, and without it they give no guarantee.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import MemguardError
from memguard.mitigations.arguments import is_number

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "at_worst",
    "drop_weights",
    "flood_weights",
    "floor_weights",
    "reweight",
    "severity_weights",
    "worst",
]

Values = TypeVar("Values", NDArray[Any], "Tensor")


def floor_weights(loss: Values, expected: Values, flagged: Values) -> Values:
    """Zero for a flagged record whose loss is below what a model that never saw it would have; one otherwise.

    Args:
        loss: ``(B,)`` of the step, in nats a token or a record.
        expected: ``(B,)`` loss expected of a model that never saw the record, same unit; NaN where unknown.
        flagged: ``(B,)`` bool.

    Returns:
        ``(B,)`` weights, an array or a tensor as the losses are. A loss or an expectation that is no number gives one.

    Guarantees:
        None. The record is not fitted below its expectation in the steps that are weighed; what was learned before it
        was flagged stays, and the expectation is an estimate.

    Example:
        >>> floor_weights(np.array([1.0, 1.0, 3.0]), np.array([2.0, 2.0, 2.0]), np.array([True, False, True])).tolist()
        [0.0, 1.0, 1.0]
    """
    return 1.0 - 1.0 * (flagged & (loss < expected))


def flood_weights(loss: Values, expected: Values, flagged: Values, *, strength: float = 1.0) -> Values:
    """Below zero for a flagged record whose loss is below what a model that never saw it would have; one otherwise.

    The gradient of such a record is that of ``|loss - expected|``, scaled below the expectation.

    Args:
        loss: ``(B,)`` of the step, in nats a token or a record.
        expected: ``(B,)`` loss expected of a model that never saw the record, same unit; NaN where unknown.
        flagged: ``(B,)`` bool.
        strength: How much a record below the expectation counts.

    Returns:
        ``(B,)`` weights, 1 or ``-strength``. A loss or an expectation that is no number gives one.

    Guarantees:
        None: the expectation is an estimate, and an attacker may know better.

    References:
        Ishida et al. 2020, arXiv:2002.08709, equation 2, there of a batch's mean loss and one constant.

    Example:
        >>> given = np.array([1.0, 1.0, 3.0]), np.array([2.0, 2.0, 2.0]), np.array([True, False, True])
        >>> flood_weights(*given, strength=0.5).tolist()
        [-0.5, 1.0, 1.0]
    """
    return 1.0 - (1.0 + strength) * (flagged & (loss < expected))


def drop_weights(flagged: Values) -> Values:
    """Zero for a flagged record, one otherwise.

    Args:
        flagged: ``(B,)`` bool.

    Returns:
        ``(B,)`` weights.

    Guarantees:
        None: what the model learned of the record before it was flagged stays in it.

    Example:
        >>> drop_weights(np.array([True, False])).tolist()
        [0.0, 1.0]
    """
    return 1.0 - 1.0 * flagged


def reweight(
    score: ArrayLike, *, start: ArrayLike, stop: ArrayLike, lowest: float = 0.0
) -> NDArray[np.float64]:
    """Weights that fall continuously from one to ``lowest`` while a score rises from ``start`` to ``stop``.

    Args:
        score: ``(N,)`` how far each record stands out, larger for more memorized; NaN where unknown.
        start: Score up to which the weight is one; a number or ``(N,)``.
        stop: Score from which on the weight is ``lowest``, above ``start``.
        lowest: Smallest weight.

    Returns:
        ``(N,)`` weights, ``1 - (1 - lowest) * clip((score - start) / (stop - start), 0, 1)``; one where the score is
        unknown.

    Raises:
        MemguardError: If ``stop`` is not above ``start``, or ``lowest`` is not in [0, 1).

    Guarantees:
        None.

    Example:
        >>> reweight([-1.0, 1.5, 9.0, np.nan], start=1, stop=2, lowest=0.5).tolist()
        [1.0, 0.75, 0.5, 1.0]
    """
    low, high = np.asarray(start, np.float64), np.asarray(stop, np.float64)
    if not is_number(lowest) or not 0 <= lowest < 1 or bool((high <= low).any()):
        raise MemguardError(
            f"reweight with start={start!r}, stop={stop!r}, lowest={lowest!r}",
            "weights would not fall as a record stands out more",
            "pass stop= above start=, and lowest= from 0 to below 1",
        )
    share = np.clip((np.asarray(score, np.float64) - low) / (high - low), 0.0, 1.0)
    weights: NDArray[np.float64] = 1.0 - (1.0 - lowest) * np.nan_to_num(share, nan=0.0)
    return weights


def severity_weights(low: ArrayLike, high: ArrayLike, *, lowest: float = 0.0) -> NDArray[np.float64]:
    """`reweight` by how far patients stand out from those who were never trained on.

    The weight is one while the lower end of a patient's severity is not above zero, that is while the gap lies within
    the range of never-trained patients, and ``lowest`` from one such range above it.

    Args:
        low: ``(P,)`` lower ends of the intervals of severity.
        high: ``(P,)`` upper ends.
        lowest: Smallest weight.

    Returns:
        ``(P,)`` weights.

    Guarantees:
        None.

    Example:
        >>> severity_weights([-0.5, 0.5, 4.0], [0.5, 1.5, 5.0]).tolist()
        [1.0, 0.5, 0.0]
    """
    spread = np.maximum(np.asarray(high, np.float64) - np.asarray(low, np.float64), np.finfo(np.float32).tiny)
    return reweight(low, start=0, stop=spread, lowest=lowest)


def at_worst(
    before: ArrayLike, code: ArrayLike, patient: ArrayLike, severity: ArrayLike, flagged: ArrayLike
) -> NDArray[np.float32]:
    """How severe each record's patient was at worst, of all looks at which the patient was flagged.

    Args:
        before: ``(N,)`` up to now; -inf where the patient was never flagged.
        code: ``(N,)`` code of each record's patient; -1 where it is not known yet, as where batches name them.
        patient: ``(P,)`` codes of the patients of a look.
        severity: ``(P,)``.
        flagged: ``(P,)`` bool.

    Returns:
        ``(N,)``, the same for all records of a patient, also of one whose patient was not known before.

    Example:
        >>> at_worst([-np.inf, 3.0, -np.inf], [0, 1, 2], [0, 1, 2], [2.0, 1.0, 9.0], [True, True, False]).tolist()
        [2.0, 3.0, -inf]
    """
    codes, given = np.asarray(code, np.int64), np.asarray(flagged, np.bool_)
    of_patient = np.full(codes.max(initial=-1) + 1, -np.inf)
    of_patient[np.asarray(patient, np.int64)[given]] = np.asarray(severity, np.float64)[given]
    found, known = np.array(before, np.float32), codes >= 0
    np.maximum.at(of_patient, codes[known], found[known])
    found[known] = of_patient[codes[known]]
    return found


def worst(
    severity: ArrayLike, flagged: ArrayLike, most: int, *, of: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """The flagged patients, but no more than a number of them, the most severe first.

    Args:
        severity: ``(N,)``, NaN counting as the least.
        flagged: ``(N,)`` bool.
        most: How many patients at most.
        of: ``(N,)`` code of each record's patient, where there are several records a patient; a patient is as severe as
            the most severe record and comes with all flagged ones.

    Returns:
        ``(N,)`` bool.

    Example:
        >>> worst([3.0, 1.0, 2.0, 9.0], [True, True, True, False], 2).tolist()
        [True, False, True, False]
        >>> worst([3.0, 1.0, 2.0], [True, True, True], 1, of=[7, 7, 8]).tolist()
        [True, True, False]
    """
    given = np.asarray(flagged, np.bool_)
    _, code = np.unique(np.arange(given.size) if of is None else np.asarray(of), return_inverse=True)
    of_patient = np.full(code.max(initial=-1) + 1, -np.inf)
    np.maximum.at(of_patient, code[given], np.nan_to_num(np.asarray(severity, np.float64)[given], nan=-1e300))
    chosen = np.zeros(of_patient.size, np.bool_)
    chosen[np.argsort(-of_patient, kind="stable")[: max(most, 0)]] = True
    kept: NDArray[np.bool_] = given & chosen[code]
    return kept
