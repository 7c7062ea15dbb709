"""By what is the sum divided? The number must be known before anybody is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memguard.errors import PrivacyError
from memguard.privacy.guards.finding import Finding, Verdict
from memguard.privacy.guards.sensitivity import flat

__all__ = ["Denominator", "Frozen", "denominator", "frozen"]


@dataclass(frozen=True, kw_only=True)
class Denominator(Verdict):
    """What :func:`denominator` found.

    Attributes:
        values: By what each sum was divided; NaN for a sum of zero.
        expected: What was claimed.
        spread: Largest relative difference between two of the values.
    """

    values: tuple[float, ...]
    expected: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class Frozen(Verdict):
    """What :func:`frozen` found.

    Attributes:
        changed: Names of the constants that did not stay, with the values they had.
    """

    changed: dict[str, tuple[Any, ...]]


def denominator(
    sums: Sequence[Tensor | Sequence[Tensor]],
    updates: Sequence[Tensor | Sequence[Tensor]],
    expected: float,
    *,
    tolerance: float = 1e-3,
) -> Denominator:
    """Find out by what clipped sums were divided, from batches of different size, without noise.

    Args:
        sums: Clipped sums of several batches, without noise.
        updates: What the optimizer got for them, without noise.
        expected: Number of patients that a draw holds on average, the public constant to divide by.
        tolerance: What rounding may add, as a share. There is no chance in this test.

    Returns:
        The verdict.

    Raises:
        PrivacyError: For no sums, sums that are all zero, or lists of different length.

    Guarantees:
        A denominator that moves with the batch refutes that one patient changes the update by C / B at most: each
        draw's size is private, and it scales everybody else's contribution and the noise. One that stays is evidence
        about these batches. A constant other than ``expected`` keeps epsilon only if the noise is divided by it too.

    References:
        Opacus issue 571; Cebere et al., arXiv 2602.17454.

    Example:
        >>> s = [torch.ones(3), 4 * torch.ones(3)]
        >>> denominator(s, [x / 2 for x in s], expected=2).ok
        True
        >>> found = denominator(s, [s[0] / 1, s[1] / 4], expected=2)
        >>> found.finding.id, found.values
        ('denominator/moves', (1.0, 4.0))
    """
    if not sums or len(sums) != len(updates) or not expected > 0:
        raise PrivacyError(
            f"{len(sums)} sums, {len(updates)} updates, {expected} expected",
            "each sum is compared with the update made of it",
            "pass as many updates as sums, from batches of different size, and the number expected",
        )
    values, straight = zip(
        *(_divided(flat(s), flat(u)) for s, u in zip(sums, updates, strict=True)), strict=True
    )
    known = [v for v in values if not math.isnan(v)]
    if not known:
        raise PrivacyError(
            "sums that are all zero",
            "nothing can be told of a division of zero",
            "pass batches with patients",
        )
    spread = (max(known) - min(known)) / max(abs(v) for v in known)
    finding = None
    why = "what one patient changes in the update is then not C over the constant that the noise was made for"
    fix = "divide by the expected number of patients, the sample rate times their number, frozen before training"
    if not spread <= tolerance:
        seen = f"sums divided by {min(known):.4g} to {max(known):.4g}"
        finding = Finding("denominator/moves", seen, why, fix)
    elif not abs(known[0] / expected - 1) <= tolerance:
        finding = Finding(
            "denominator/other", f"sums divided by {known[0]:.4g}, not {expected:.4g}", why, fix
        )
    elif not max(straight) <= tolerance:
        seen = f"updates that are no multiple of their sums (off by {max(straight):.2g} of their norm)"
        finding = Finding(
            "denominator/crooked", seen, why, "give the optimizer the sum over the constant, unchanged"
        )
    return Denominator(finding=finding, values=tuple(values), expected=expected, spread=spread)


def frozen(constants: Sequence[Mapping[str, Any]]) -> Frozen:
    """Have the public constants of a run stayed as they were, at every start and resume?

    Args:
        constants: What was in force at each start: number of patients, sample rates, expected patients, C, sigma.

    Returns:
        The verdict; a name that one start lacks has changed.

    Guarantees:
        A constant that is computed again from the data (the expected batch from their number) is no constant: it
        differs between neighbouring data sets. That it stayed between starts is necessary and not sufficient.

    References:
        Opacus issues 571 and 819.

    Example:
        >>> frozen([{"n": 100, "C": 1.0}, {"n": 99, "C": 1.0}]).changed
        {'n': (100, 99)}
    """
    names = sorted({name for each in constants for name in each})
    changed = {}
    for name in names:
        values = tuple(each.get(name) for each in constants)
        if any(value != values[0] for value in values):
            changed[name] = values
    finding = None
    if changed:
        finding = Finding(
            "constants/changed",
            "; ".join(f"{name} was {' then '.join(map(str, values))}" for name, values in changed.items()),
            "the accountant and the noise were given one value for the whole run",
            "take the constants of the first start from the ledger, or begin a new run",
        )
    return Frozen(finding=finding, changed=changed)


def _divided(total: Tensor, update: Tensor) -> tuple[float, float]:
    """The divisor, and how far the update is from that multiple."""
    size = float(total @ total)
    if not size:
        return math.nan, float(torch.linalg.vector_norm(update) > 0)
    along = float(total @ update)
    if not along:
        return math.inf, 0.0
    divisor = size / along
    norm = float(torch.linalg.vector_norm(update))
    return divisor, float(torch.linalg.vector_norm(update - total / divisor)) / norm
