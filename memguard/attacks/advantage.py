"""Membership advantage: by how much members are called members more often than non-members are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from memguard.attacks._checks import finite, labels, patient_codes, share
from memguard.attacks._intervals import clopper_pearson, effective_records
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import _class_sizes, roc
from memguard.errors import MemguardError

__all__ = ["membership_advantage"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def membership_advantage(
    scores: ArrayLike,
    member: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    threshold: float | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """TPR minus FPR of the attack that calls everybody from a threshold on a member.

    Without ``threshold`` it is the largest difference over all thresholds (the one-sided Kolmogorov-Smirnov
    distance of the two samples). That threshold is chosen on the scores that it is judged on, so the value
    leans upward: with nothing to find it is about ``0.63 * sqrt(1 / m + 1 / n)`` for m members and n
    non-members. The interval allows for every threshold at once. Both empirical distributions stay within
    the bounds of Dvoretzky, Kiefer and Wolfowitz with Massart's constant (Ann. Probab. 18, 1990, Theorem 1),
    and since the two samples are independent, the law of the sum of their two deviations is what counts; that
    is about a quarter narrower than to split the error between them.

    With ``threshold`` (fixed before these scores were seen: from theory, or from other patients) the value is
    unbiased and the interval joins two Clopper-Pearson intervals by the square-and-add rule (Zou and Donner,
    Stat. Med. 27, 2008).

    Args:
        scores: ``(N,)``, larger = more likely a member.
        member: ``(N,)`` booleans.
        groups: Patient of each record ``(N,)``; each record its own patient if omitted.
        threshold: A record is called a member if its score is at least this; the best one if omitted.
        confidence: Coverage of the interval.

    Returns:
        The advantage over records, in [0, 1], or in [-1, 1] at a given threshold; ``n`` counts patients.

    Raises:
        PatientOverlapError: if a patient has records of both classes.
        MemguardError: for NaN or infinite scores, wrong shapes, a missing class, or a threshold that is NaN.

    Guarantees:
        The interval over all thresholds holds for every sample size and every law of the scores where
        records are independent. With ``groups`` it holds for many patients, and records of one patient are
        counted as if they all said the same (Kish's number of them), which is too careful where they do not. A
        training with pure epsilon-differential privacy has an advantage of at most ``exp(epsilon) - 1``
        (Theorem 1 of the source); a small advantage shows no privacy, as it is an average over patients, and
        one attack's.

    References:
        Yeom, Giacomelli, Fredrikson, Jha, arXiv 1709.01604, Definition 4.

    Example:
        >>> import numpy as np
        >>> member = np.repeat([True, False], 500)
        >>> scores = np.where(member, 0.8, 0.0) + np.sin(np.arange(1000))
        >>> print(membership_advantage(scores, member))
        0.440 [0.338, 0.542]
        >>> print(membership_advantage(scores, member, threshold=0.4))
        0.270 [0.208, 0.330]
    """
    s = finite(scores, "scores")
    truth = labels(member, len(s))
    share(confidence, "confidence")
    code, n_patients = patient_codes(groups, len(s))
    n_in, n_out = _class_sizes(code, n_patients, truth)
    if threshold is None:
        curve = roc(s, truth)
        value = float(np.max(curve.tpr - curve.fpr))
        half = _joint_deviation(_kish(code[truth]), _kish(code[~truth]), (1.0 - confidence) / 2)
        low, high = max(value - half, 0.0), min(value + half, 1.0)
        method = "best threshold, Dvoretzky-Kiefer-Wolfowitz"
    else:
        if math.isnan(threshold):
            raise MemguardError("threshold is NaN", "no score is at least NaN", "pass a number or infinity")
        hit = s >= threshold
        rates = [float(hit[side].mean()) for side in (truth, ~truth)]
        (low_in, high_in), (low_out, high_out) = (
            clopper_pearson(rate, effective_records(hit[side], code[side]), confidence)
            for rate, side in zip(rates, (truth, ~truth), strict=True)
        )
        tpr, fpr = rates
        value = tpr - fpr
        low = value - math.hypot(tpr - low_in, high_out - fpr)
        high = value + math.hypot(high_in - tpr, fpr - low_out)
        method = "given threshold, Clopper-Pearson"
    return Estimate(value=value, low=low, high=high, n=n_in + n_out, method=method, confidence=confidence)


def _kish(code: NDArray[np.int64]) -> float:
    sizes = np.bincount(code).astype(np.float64)
    return float(len(code) ** 2 / np.sum(sizes**2))


def _joint_deviation(m: float, n: float, alpha: float) -> float:
    """What the deviations of two independent samples, each one-sided, add up to with probability ``alpha``."""
    far = math.sqrt(math.log(2.0 / alpha) / 2.0)
    most = far * (1.0 / math.sqrt(m) + 1.0 / math.sqrt(n))
    return float(optimize.brentq(lambda x: _exceeds(x, m, n) - alpha, 0.0, most, xtol=1e-9))


def _exceeds(x: float, m: float, n: float) -> float:
    """Bound for P(D + E > x), where P(D > d) is at most ``exp(-2 m d**2)`` once that is below 1/2, E alike."""
    least_d, least_e = (math.sqrt(math.log(2.0) / (2.0 * size)) for size in (m, n))
    if x <= least_d + least_e:
        return 1.0
    # D is at its least with probability 1/2 and has a density above it; beyond x - least_e, E always suffices
    reach = x - least_e - least_d
    d = least_d + 0.5 * reach * (1.0 + _NODES)
    density = 4.0 * m * d * np.exp(-2.0 * m * d**2)
    between = 0.5 * reach * float(np.sum(_WEIGHTS * density * np.exp(-2.0 * n * (x - d) ** 2)))
    at_least = 0.5 * math.exp(-2.0 * n * (x - least_d) ** 2)
    return at_least + between + math.exp(-2.0 * m * (x - least_e) ** 2)
