"""What the records say by themselves: features, the blind baseline, copies across the split, who stands out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.estimate import Estimate
from memguard.errors import MemguardError, MemguardWarning
from memguard.probes.blind import blind_baseline
from memguard.probes.identifiable import PatientFacts, patient_facts
from memguard.probes.sides import Ints, Side
from memguard.records.content import RecordContent, in_common
from memguard.records.splits import content_overlap
from memguard.records.surrogate import ContentFeatures, content_features

__all__ = ["Contents"]

T = TypeVar("T")


class Contents:
    """Facts that need no model, computed once for as many records as have been seen.

    Args:
        members: The training side.
        held_out: The other one.
        seed: Of the folds.

    Attributes:
        copies: Held-out records that are equal to a training record; 0 until `features` was asked for.

    Example:
        >>> from memguard.records.patients import PatientMap
        >>> nobody = Side.of(PatientMap.of_records(0))
        >>> Contents(nobody, nobody).features() is None
        True
    """

    def __init__(self, members: Side, held_out: Side, *, seed: int = 0) -> None:
        self.members, self.held_out, self.seed = members, held_out, seed
        self.copies = 0
        self._made: dict[str, tuple[tuple[int, int], Any]] = {}

    @property
    def known(self) -> tuple[int, int]:
        """How many records of each side have been seen."""
        return self.members.store.n_observed, self.held_out.store.n_observed

    def features(self) -> ContentFeatures | None:
        """Content features of all records, NaN for records not seen; ``None`` where contents are unknown."""
        return self._once("features", self._content_features)

    def blind(self) -> Estimate | None:
        """AUC of a classifier that sees the records and not the model; ``None`` without contents."""
        return self._once("blind", self._blind_baseline)

    def facts(
        self, *, rare_at_most: int = 3, quasi_identifiers: Sequence[int] | None = None
    ) -> PatientFacts | None:
        """Who could be recognized among the ``P`` members; ``None``, with a warning, where it cannot be known.

        Args:
            rare_at_most: A code that at most so many patients carry is rare.
            quasi_identifiers: Codes (of feature vectors: columns) that somebody else may know.
        """
        if self.members.store.n_observed == 0:
            return None
        try:
            return patient_facts(
                self.members.store.content(),
                self.members.patients,
                rare_at_most=rare_at_most,
                quasi_identifiers=quasi_identifiers,
                seed=self.seed,
            )
        except MemguardError as error:
            _warn(f"no rarity facts ({error})", "who is identifiable is not known")
            return None

    def _once(self, name: str, make: Callable[[], T]) -> T | None:
        """What was made of the records seen so far, made again only when more have been seen."""
        known = self.known
        if min(known) == 0:
            return None
        if name not in self._made or self._made[name][0] != known:
            self._made[name] = known, make()
        found: T = self._made[name][1]
        return found

    def _content_features(self) -> ContentFeatures:
        inside, rows = _observed(self.members)
        outside, columns = _observed(self.held_out)
        inside, outside = in_common(inside, outside)
        self.copies = content_overlap(inside, outside).records
        part = content_features(inside, self.members.patients.code[rows], outside, seed=self.seed)
        return ContentFeatures(
            kind=part.kind,
            train=_scatter(part.train, rows, len(self.members.tokens)),
            held_out=_scatter(part.held_out, columns, len(self.held_out.tokens)),
            names=part.names,
        )

    def _blind_baseline(self) -> Estimate | None:
        inside, rows = _observed(self.members)
        outside, columns = _observed(self.held_out)
        inside, outside = in_common(inside, outside)
        ours, theirs = self.members.patients.code[rows], self.held_out.patients.code[columns]
        try:  # the sides are numbered apart: the same code on both is not the same patient
            return blind_baseline(inside, outside, ours, -1 - theirs, seed=self.seed)
        except MemguardError as error:
            _warn(f"no blind baseline ({error})", "whether the split itself is fair is not known")
            return None


def _warn(seen: str, why: str) -> None:
    warnings.warn(MemguardWarning(seen, why, ""), stacklevel=3)


def _observed(side: Side) -> tuple[RecordContent, Ints]:
    content = side.store.content()
    rows = np.flatnonzero(content.observed)
    return content.take(rows), rows


def _scatter(part: NDArray[np.float64], rows: Ints, n: int) -> NDArray[np.float64]:
    whole = np.full((n, part.shape[1]), np.nan)
    whole[rows] = part
    return whole
