"""Members minus never-trained patients: one mean difference over patients, with its interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from memguard.attacks._checks import Floats, finite, labels, patient_codes, share
from memguard.attacks._intervals import t_quantile
from memguard.attacks.estimate import Estimate
from memguard.errors import PatientOverlapError

__all__ = ["mean_difference"]


def mean_difference(
    value: ArrayLike, patient: Any, member: ArrayLike, *, confidence: float = 0.95
) -> Estimate:
    """Mean over member patients minus mean over held-out patients; each patient counts once, as its mean.

    Above zero says that the number is larger for patients in the training data than for strangers; where both
    come from one population and were asked alike, it is what training on them did. It says nothing of one patient.

    Args:
        value: ``(N,)`` one number for each record, in any unit; truth values count as 0 and 1.
        patient: ``(N,)`` whose record it is.
        member: ``(N,)`` whether the model was trained on the record.
        confidence: Coverage that the interval aims at.

    Returns:
        The difference in the unit of ``value``; ``n`` counts the patients of both sides. The interval is infinite
        where a side has a single patient, or where nobody differs from anybody and the values are not 0 and 1.

    Raises:
        PatientOverlapError: If a patient is on both sides.
        MemguardError: For NaN or infinite values, wrong shapes, or a missing side.

    Guarantees:
        Numbers: each end is the wider one of Welch's t interval and of Hall's, which allows for skewness; both hold
        for many patients. ``tests/attacks/test_difference.py`` measures the coverage: at a nominal 95 %, at least
        93 % for two like sides of 5 to 100 patients (normal, log-normal, one outlier in ten), and 85 to 92 % where
        one side has 10 patients with a long tail: ten patients do not show a tail.
        Truth values (each patient 0 or 1): Newcombe's interval from Wilson's two, for small numbers too.

    References:
        Hall, J. R. Stat. Soc. B 54, 1992 (the monotone transformation); Newcombe, Stat. Med. 17, 1998 (method 10).

    Example:
        >>> import numpy as np
        >>> member = np.repeat([True, False], 50)
        >>> print(mean_difference(np.where(member, 1.0, 0.0) + np.sin(np.arange(100)), np.arange(100), member))
        0.999 [0.715, 1.282]
        >>> print(mean_difference([1, 1, 0, 1, 0, 0, 0, 0], np.arange(8), [1, 1, 1, 1, 0, 0, 0, 0]))
        0.750 [0.085, 0.954]
    """
    numbers = finite(np.asarray(value, dtype=np.float64), "value")
    side = labels(member, len(numbers))
    share(confidence, "confidence")
    code, n_patients = patient_codes(patient, len(numbers), "patient")
    records = np.bincount(code, minlength=n_patients)
    inside = np.bincount(code, weights=side, minlength=n_patients)
    mixed = int(np.count_nonzero((inside > 0) & (inside < records)))
    if mixed:
        raise PatientOverlapError(
            f"{mixed} patients are on both sides",
            "a held-out patient must be a stranger to the model",
            "pass member with one truth value for all records of a patient",
        )
    mean = np.bincount(code, weights=numbers, minlength=n_patients) / records
    a, b = mean[inside > 0], mean[inside == 0]
    difference = float(a.mean() - b.mean())
    if bool(np.isin(mean, (0.0, 1.0)).all()):
        low, high, method = *_newcombe(a, b, confidence), "Newcombe over patients"
    else:
        low, high, method = *_skewed(a, b, confidence), "Welch t and Hall over patients, the wider"
    return Estimate(value=difference, low=low, high=high, n=n_patients, method=method, confidence=confidence)


def _skewed(a: Floats, b: Floats, confidence: float) -> tuple[float, float]:
    """The wider ends of Welch's interval for the difference of two means and of Hall's."""
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return -math.inf, math.inf
    var_a, var_b = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    variance = var_a + var_b
    if variance <= 0.0:
        return -math.inf, math.inf
    error = math.sqrt(variance)
    quantile = t_quantile(var_a, var_b, len(a), len(b), confidence)
    # skewness of the difference of the means, from unbiased third moments (with two values there is none)
    skew = float((_third(a) - _third(b)) / math.pow(variance, 1.5))
    if abs(skew) < 1e-9:
        return difference - quantile * error, difference + quantile * error

    def back(x: float) -> float:
        """Inverse of ``t + skew t^2 / 3 + skew^2 t^3 / 27 + skew / 6``."""
        return 3.0 / skew * (float(np.cbrt(1.0 + skew * (x - skew / 6.0))) - 1.0)

    low = difference - max(quantile, back(quantile)) * error
    return low, difference - min(-quantile, back(-quantile)) * error


def _third(values: Floats) -> float:
    """Third central moment of the mean of independent values."""
    n = len(values)
    if n < 3:
        return 0.0
    return float(np.sum((values - values.mean()) ** 3)) / ((n - 1) * (n - 2)) / n


def _newcombe(a: Floats, b: Floats, confidence: float) -> tuple[float, float]:
    """Interval for the difference of two proportions by the square-and-add rule."""
    z = t_quantile(1.0, 1.0, 10**9, 10**9, confidence)
    (p, low_p, high_p), (q, low_q, high_q) = (_wilson(float(x.mean()), len(x), z) for x in (a, b))
    return (p - q) - math.hypot(p - low_p, high_q - q), (p - q) + math.hypot(high_p - p, q - low_q)


def _wilson(rate: float, n: int, z: float) -> tuple[float, float, float]:
    centre, half = rate + z**2 / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return rate, (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
