"""What the records of both sides say by themselves: features, the blind baseline, copies across the split."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.estimate import Estimate
from memguard.errors import MemguardError, MemguardWarning
from memguard.probes.blind import blind_baseline
from memguard.probes.sides import Side
from memguard.records.content import RecordContent
from memguard.records.splits import content_overlap
from memguard.records.surrogate import ContentFeatures, content_features

__all__ = ["Contents"]

Ints = NDArray[np.int64]


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
        self._features: tuple[tuple[int, int], ContentFeatures] | None = None
        self._blind: tuple[tuple[int, int], Estimate | None] | None = None

    @property
    def known(self) -> tuple[int, int]:
        """How many records of each side have been seen."""
        return self.members.store.n_observed, self.held_out.store.n_observed

    def features(self) -> ContentFeatures | None:
        """Content features of all records, NaN for records not seen; ``None`` where contents are unknown."""
        known = self.known
        if min(known) == 0:
            return None
        if self._features is None or self._features[0] != known:
            inside, rows = _observed(self.members)
            outside, columns = _observed(self.held_out)
            self.copies = content_overlap(inside, outside).records
            part = content_features(inside, self.members.patients.code[rows], outside, seed=self.seed)
            self._features = (
                known,
                ContentFeatures(
                    kind=part.kind,
                    train=_scatter(part.train, rows, len(self.members.tokens)),
                    held_out=_scatter(part.held_out, columns, len(self.held_out.tokens)),
                    names=part.names,
                ),
            )
        return self._features[1]

    def blind(self) -> Estimate | None:
        """AUC of a classifier that sees the records and not the model; ``None`` without contents."""
        known = self.known
        if min(known) == 0:
            return None
        if self._blind is None or self._blind[0] != known:
            inside, rows = _observed(self.members)
            outside, columns = _observed(self.held_out)
            ours, theirs = self.members.patients.code[rows], self.held_out.patients.code[columns]
            found = None
            try:  # the sides are numbered apart: the same code on both is not the same patient
                found = blind_baseline(inside, outside, ours, -1 - theirs, seed=self.seed)
            except MemguardError as error:
                warning = MemguardWarning(
                    f"no blind baseline ({error})", "whether the split itself is fair is not known", ""
                )
                warnings.warn(warning, stacklevel=2)
            self._blind = known, found
        return self._blind[1]


def _observed(side: Side) -> tuple[RecordContent, Ints]:
    content = side.store.content()
    rows = np.flatnonzero(content.observed)
    return content.take(rows), rows


def _scatter(part: NDArray[np.float64], rows: Ints, n: int) -> NDArray[np.float64]:
    whole = np.full((n, part.shape[1]), np.nan)
    whole[rows] = part
    return whole
