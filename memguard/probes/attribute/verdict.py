"""From evidence of codes to patients: p-values against never-trained patients, and four classes on two axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.conformal import benjamini_hochberg, conformal_p_values
from memguard.attacks.difference import mean_difference
from memguard.attacks.estimate import Estimate

__all__ = ["CLASSES", "Judged", "judge", "needed", "p_values_of_kinds"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLASSES = ("memorized", "inferable", "both", "neither")


def needed(alpha: float) -> int:
    """Never-trained patients without which no p-value can be as small as ``alpha``.

    Example:
        >>> needed(0.05), needed(0.01)
        (19, 99)
    """
    return math.ceil(1.0 / alpha - 1e-9) - 1


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Patients of both sides, each by its strongest code. Arrays are ``(P,)``.

    Attributes:
        patient: Codes of patients.
        member: Side.
        strongest: The code, as a position among those judged.
        score: Its score.
        p: P-value of the score against never-trained patients; theirs against each other.
        memorized: ``p <= alpha``.
        inferable: Of the strongest code.
        flagged: Members chosen by Benjamini-Hochberg.
        n_null: Never-trained patients.
    """

    patient: Ints
    member: Bools
    strongest: Ints
    score: Floats
    p: Floats
    memorized: Bools
    inferable: Bools
    flagged: Bools
    n_null: int

    @property
    def decided(self) -> bool:
        """Whether there were never-trained patients enough to call anybody memorized; if not, nobody is cleared."""
        return bool(np.isfinite(self.p).any())

    @property
    def classes(self) -> Ints:
        """``(P,)`` position in `CLASSES`."""
        found: Ints = np.where(
            self.memorized, np.where(self.inferable, 2, 0), np.where(self.inferable, 1, 3)
        ).astype(np.int64)
        return found

    def counts(self, member: bool) -> tuple[int, ...]:
        """Patients of one side in each of `CLASSES`."""
        found = np.bincount(self.classes[self.member == member], minlength=4)
        return tuple(int(n) for n in found)

    def share(self, name: str, confidence: float = 0.95) -> Estimate | None:
        """Share of members in a class less that of never-trained patients; ``None`` where a side is missing."""
        if not self.member.any() or self.member.all():
            return None
        inside = self.classes == CLASSES.index(name)
        return mean_difference(inside, self.patient, self.member, confidence=confidence)


def judge(
    score: Floats, patient: Ints, member: Bools, inferable: Bools, *, alpha: float, rate: float
) -> Judged:
    """One verdict a patient, by the code with the highest score.

    A never-trained patient has as many codes to be judged by as a member, so that the highest of them is comparable:
    an error rate of ``alpha`` is one of patients, however many sensitive codes they have.

    Args:
        score: ``(n,)`` of codes, finite.
        patient: ``(n,)``.
        member: ``(n,)``.
        inferable: ``(n,)`` whether the code can be inferred.
        alpha: Share of never-trained patients that may be called memorized.
        rate: False-discovery rate of the flags.

    Returns:
        P-values are NaN and nobody is memorized where there are fewer never-trained patients than `needed`.

    Example:
        >>> score = np.r_[9.0, np.zeros(19)]
        >>> found = judge(score, np.arange(20), np.arange(20) < 1, np.zeros(20, bool), alpha=.05, rate=.1)
        >>> found.p[0], found.counts(True), found.counts(False)
        (np.float64(0.05), (1, 0, 0, 0), (0, 0, 0, 19))
    """
    order = np.lexsort((-score, patient))
    first = np.unique(patient[order], return_index=True)[1]
    strongest = order[first]
    best, side = score[strongest], member[strongest]
    null = best[~side]
    p = np.full(len(best), np.nan)
    flagged = np.zeros(len(best), np.bool_)
    if len(null) >= needed(alpha):
        p[side] = conformal_p_values(best[side], null) if side.any() else p[side]
        p[~side] = _among(null)
        flagged[side] = benjamini_hochberg(p[side], rate)
    with np.errstate(invalid="ignore"):
        memorized = p <= alpha
    return Judged(
        patient=patient[strongest],
        member=side,
        strongest=strongest,
        score=best,
        p=p,
        memorized=memorized,
        inferable=inferable[strongest],
        flagged=flagged,
        n_null=len(null),
    )


def p_values_of_kinds(
    score: Floats, patient: Ints, member: Bools, category: Ints, *, enough: int
) -> tuple[Floats, dict[int, tuple[int, bool]]]:
    """P-value of each code against never-trained patients with a code of the same category.

    A category with fewer than ``enough`` of them is compared with those of all such categories together. A patient
    counts once in a null, with its highest score there.

    Args:
        score: ``(n,)`` finite.
        patient: ``(n,)``.
        member: ``(n,)``.
        category: ``(n,)``.
        enough: Never-trained patients.

    Returns:
        ``(n,)`` p-values, NaN without a null; those of never-trained patients leave themselves out. And for each
        category, how many patients are in its null and whether it was pooled.
    """
    p = np.full(len(score), np.nan)
    sizes = {int(c): len(np.unique(patient[(category == c) & ~member])) for c in np.unique(category)}
    small = [c for c, n in sizes.items() if n < enough]
    said: dict[int, tuple[int, bool]] = {}
    for group in [[c] for c in sizes if c not in small] + ([small] if small else []):
        mine = np.isin(category, group)
        outside = mine & ~member
        ids, at = np.unique(patient[outside], return_inverse=True)
        null = np.full(len(ids), -np.inf)
        np.maximum.at(null, at, score[outside])
        said |= {c: (len(ids), len(group) > 1) for c in group}
        if len(null) < 2:
            continue
        if (mine & member).any():
            p[mine & member] = conformal_p_values(score[mine & member], null)
        ranked = np.sort(null)
        at_least = len(null) - np.searchsorted(ranked, score[outside], side="left")
        itself = null[at] >= score[outside]
        p[outside] = (1.0 + at_least - itself) / len(null)
    return p, said


def _among(null: Floats) -> Floats:
    """P-value of each never-trained patient against the others: valid as that of a member is."""
    at_least = len(null) - np.searchsorted(np.sort(null), null, side="left")
    found: Floats = at_least / len(null)  # itself is counted, as the one that conformal p-values add
    return found
