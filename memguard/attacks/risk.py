"""Risk of a model as a whole, from its own losses: no reference model, no attack on single patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from memguard.attacks._checks import finite, labels, patient_codes, share
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import required_held_out, tpr_at_fpr
from memguard.errors import ResolutionError

__all__ = ["tnr_at_fnr"]


def tnr_at_fnr(
    loss: ArrayLike,
    member: ArrayLike,
    fnr: float,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Share of held-out records whose loss lies above that of almost all members.

    The loss attack calls a record a non-member if its loss is above a threshold. At a low false negative rate
    the threshold leaves at most a share ``fnr`` of the members above it; the true negative rate is the share of
    held-out records above it. Records without any memory of them have a long tail of large losses; a model
    that has learned its hard patients by heart has taken them out of that tail, and the held-out ones stay
    there alone.

    It is :func:`~memguard.attacks.membership.tpr_at_fpr` with the classes in each other's place and the loss as
    the score: the same empirical curve without interpolation, the same two exact parts of the interval.

    Args:
        loss: ``(N,)`` losses (any score that is small when the model knows the record).
        member: ``(N,)`` booleans.
        fnr: False negative rate, in (0, 1): share of members that may lie above the threshold.
        groups: Patient of each record ``(N,)``; each record its own patient if omitted.
        confidence: Coverage of the interval.

    Returns:
        The true negative rate; ``n`` counts patients of both classes. With nothing memorized it is ``fnr``.

    Raises:
        ResolutionError: if there are fewer than ``ceil(1 / fnr)`` member patients.
        PatientOverlapError: if a patient has records of both classes.
        MemguardError: for NaN or infinite losses, wrong shapes, or a missing class.

    Guarantees:
        The interval is one for the true negative rate itself. That this rate goes along with the true positive
        rate of a likelihood-ratio attack with many reference models is what the source found over its data
        sets and models: a correlate and no bound. Noise in the losses, members that are easier than the held-out
        ones for another reason (see the blind baseline), or augmentation can part the two. It says nothing
        about any one patient.

    References:
        Dodd, Krco, Shilov, de Montjoye, The Tail Tells All, arXiv 2510.19773.

    Example:
        >>> import numpy as np
        >>> loss = np.r_[np.linspace(0.0, 1.0, 1000), np.linspace(0.0, 2.0, 1000)]
        >>> print(tnr_at_fnr(loss, np.repeat([True, False], 1000), 0.01))
        0.505 [0.473, 0.537]
    """
    x = finite(loss, "loss")
    truth = labels(member, len(x))
    share(confidence, "confidence")
    needed = required_held_out(share(fnr, "fnr"))
    n_members = len(np.unique(patient_codes(groups, len(x))[0][truth]))
    if n_members < needed:
        raise ResolutionError(
            f"{n_members} member patients for a false negative rate of {fnr:g}",
            "less than one of them may lie above the threshold, so the rate would be a guess",
            f"pass the losses of at least {needed} members, or ask for a higher rate",
        )
    found = tpr_at_fpr(x, ~truth, fnr, groups=groups, confidence=confidence)
    return replace(found, method=f"{found.method}, classes exchanged")
