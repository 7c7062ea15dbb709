"""Draws of several processes: one patient may be in one of them only, by coins that know nothing of each other."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from memguard.errors import PrivacyError
from memguard.privacy.guards.finding import FALSE_ALARM, Finding, Verdict

__all__ = ["Ranks", "rank_masks"]


@dataclass(frozen=True, kw_only=True)
class Ranks(Verdict):
    """What :func:`rank_masks` found.

    Attributes:
        twice: Patients, summed over steps, who were drawn by more than one rank in the same step.
        agreement: With shards, the largest number of common inclusions of two ranks, over what independent draws give.
        p_value: Chance of that, Bonferroni over pairs; 1 where not tested.
    """

    twice: int
    agreement: float
    p_value: float


def rank_masks(
    included: ArrayLike, rate: float | ArrayLike, *, sharded: bool = False, false_alarm: float = FALSE_ALARM
) -> Ranks:
    """Compare the draws that several processes made for the same steps.

    Args:
        included: ``(W, T, P)`` booleans, ranks by steps by patients. P numbers the same patients on every rank, or,
            where ``sharded``, the first, second, ... of each rank's own.
        rate: At which a patient is drawn, one or ``(P,)``; used where ``sharded``.
        sharded: Whether every rank has patients of its own. Then draws must be independent; otherwise the ranks must
            split one draw, so that nobody is in two of them.
        false_alarm: Chance, at most, of a finding with independent shards. Whether a patient was drawn twice is no
            matter of chance.

    Returns:
        The verdict. Whether the union of the ranks is Poisson is
        :func:`~memguard.privacy.guards.inclusion.inclusion_variance` of ``included.any(axis=0)``.

    Raises:
        PrivacyError: For another shape, or fewer than two ranks.

    Guarantees:
        A patient on two ranks contributes up to 2 C to a step in which C is accounted. Equal draws on shards make
        patients' coins depend on each other, for which no amplification is shown. Nothing found says nothing of other
        dependence.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mask = rng.random((50, 40)) < 0.2
        >>> rank_masks([mask, mask], 0.2).finding.id  # the same seed on both
        'ranks/twice'
        >>> half = np.arange(40) % 2 == 0
        >>> rank_masks([mask & half, mask & ~half], 0.2).ok
        True
    """
    table = np.asarray(included)
    if table.ndim != 3 or len(table) < 2 or table.dtype != np.bool_:
        raise PrivacyError(
            f"draws of shape {table.shape} and type {table.dtype}",
            "those of at least two ranks are compared",
            "pass booleans, ranks by steps by patients",
        )
    if not sharded:
        twice = int(np.maximum(table.sum(axis=0) - 1, 0).sum())
        return Ranks(finding=_twice(twice, table) if twice else None, twice=twice, agreement=0.0, p_value=1.0)
    q = np.broadcast_to(np.asarray(rate, dtype=np.float64), table.shape[2:])
    steps = table.shape[1]
    expected = steps * float((q**2).sum())
    pairs = list(itertools.combinations(range(len(table)), 2))
    common = [int((table[a] & table[b]).sum()) for a, b in pairs]
    # Common inclusions are a sum of independent coins; for unequal rates the binomial at their mean has the heavier
    # upper tail (Hoeffding 1956, Theorem 4).
    mean = float((q**2).mean())
    p = min(1.0, len(pairs) * float(stats.binom.sf(max(common) - 1, steps * len(q), mean)))
    finding = None
    if p <= false_alarm:
        finding = Finding(
            "ranks/equal",
            f"two ranks drew the same positions {max(common)} times where independent draws give {expected:.0f}",
            "patients of different ranks are then in or out together, and amplification by sampling is lost",
            "seed each rank's sampler differently, or let the ranks split one draw",
        )
    return Ranks(finding=finding, twice=0, agreement=max(common) / expected, p_value=p)


def _twice(twice: int, table: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Finding:
    same = bool((table == table[0]).all())
    return Finding(
        "ranks/twice",
        f"{twice} times a patient was drawn by two ranks in one step"
        + (", since all ranks made the same draws" if same else ""),
        "he contributes up to C on each of them, where C is accounted for all",
        "let one stream of random numbers draw for all ranks, and give every rank its part of the draw",
    )
