"""Do weights of the loss carry patients into each other's contributions?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from memguard.errors import PrivacyError
from memguard.privacy.guards.finding import Finding, Verdict

__all__ = ["Reweighting", "reweighting"]


@dataclass(frozen=True, kw_only=True)
class Reweighting(Verdict):
    """What :func:`reweighting` found.

    Attributes:
        change: Largest relative change of a patient's weight when another one is left out.
        by: Who was left out then.
        entered: Whether the ledger has an entry about the weights.
    """

    change: float
    by: int | None
    entered: bool


def reweighting(
    weights_of: Callable[[Sequence[int]], ArrayLike],
    owners: Sequence[int],
    *,
    entered: bool = False,
    tolerance: float = 1e-6,
) -> Reweighting:
    """Compute the weights again without each patient: those of the others must stay.

    A weight that depends on its own record and the current parameters alone, applied before clipping, costs nothing.
    One that depends on quantiles, ranks or flags over all patients is a function of everybody's data which the
    accountant does not know; the clipped sum of a batch does not show it, since the weights are computed elsewhere.

    Args:
        weights_of: Patients in the data to one weight for each, in their order; what the loss or the sampler uses.
        owners: At least two.
        entered: Whether the ledger says that such weights were in use.
        tolerance: Relative change that rounding may make. There is no chance in this test.

    Returns:
        The verdict: severity ``"refuse"`` without an entry, ``"ledger"`` with one, since epsilon is false for those
        weights in either case and only the second says so.

    Raises:
        PrivacyError: With fewer than two patients, or not one weight for each.

    Guarantees:
        A change shows that a patient acts on others outside of his own contribution. No change is evidence about
        these patients; a flag near its threshold needs a patient who tips it.

    Example:
        >>> losses = np.array([0.1, 0.5, 2.0, 3.0])
        >>> flagged = lambda who: (losses[list(who)] > np.median(losses[list(who)])).astype(float)
        >>> reweighting(flagged, [0, 1, 2, 3]).finding.id
        'reweighting/population'
        >>> reweighting(lambda who: 1 / (1 + losses[list(who)]), [0, 1, 2, 3]).ok
        True
    """
    members = list(owners)
    if len(members) < 2:
        raise PrivacyError(
            f"{len(members)} patient", "weights are compared with and without one", "pass at least two"
        )
    whole = _weights(weights_of, members)
    change, by = 0.0, None
    scale = max(float(np.abs(whole).max()), 1e-12)
    for i, left_out in enumerate(members):
        rest = members[:i] + members[i + 1 :]
        moved = float(np.abs(_weights(weights_of, rest) - np.delete(whole, i)).max()) / scale
        if not moved <= change:
            change, by = moved if math.isfinite(moved) else math.inf, left_out
    finding = None
    if change > tolerance:
        finding = Finding(
            "reweighting/population",
            f"leaving one patient out changes the weights of others by up to {100 * change:.3g} %",
            "weights are then a function of everybody's data, for which epsilon does not account",
            "let a weight depend on its own record and the current parameters alone, or enter it in the ledger: "
            "the guarantee then does not cover it",
            severity="ledger" if entered else "refuse",
            warn=True,
        )
    return Reweighting(finding=finding, change=change, by=by, entered=entered)


def _weights(weights_of: Callable[[Sequence[int]], ArrayLike], members: list[int]) -> np.ndarray:
    weights = np.asarray(weights_of(members), dtype=np.float64)
    if weights.shape != (len(members),):
        raise PrivacyError(
            f"weights of shape {weights.shape} for {len(members)} patients",
            "weights would be given to the wrong patient",
            "return one weight for each patient, in their order",
        )
    return weights
