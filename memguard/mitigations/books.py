"""Who counted for less than one, and by how much: in an epoch, and ever."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Books", "Epoch"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Epoch(NamedTuple):
    """What an epoch did.

    Attributes:
        patients: How many have a record that counted for less than one in some step.
        mean_weight: Over the training records seen, each with its smallest weight of the epoch; 1 where none was seen.
    """

    patients: int
    mean_weight: float


class Books:
    """Weights below one, by record and patient.

    Args:
        patient: ``(N,)`` code of each training record's patient.

    Attributes:
        ever: ``(N,)`` records that ever had a weight below one.

    Example:
        >>> books = Books([0, 0, 1])
        >>> books.close([(np.array([1, 2]), np.array([0.5, 1.0]))], np.ones(3, bool))
        Epoch(patients=1, mean_weight=0.8333333333333334)
        >>> books.ever.tolist(), books.patients
        ([False, True, False], 1)
    """

    def __init__(self, patient: ArrayLike) -> None:
        self.patient = np.asarray(patient, np.int64)
        self.ever: Bools = np.zeros(self.patient.size, np.bool_)

    @property
    def patients(self) -> int:
        """How many patients have a record that ever counted for less than one."""
        return int(np.unique(self.patient[self.ever]).size)

    def with_open(self, parts: Iterable[tuple[Ints, NDArray[Any]]]) -> Bools:
        """``ever`` with the steps of an epoch that is under way, ``(N,)``."""
        ever = self.ever.copy()
        for at, weights in parts:
            ever[at[weights < 1]] = True
        return ever

    def close(self, parts: Iterable[tuple[Ints, NDArray[Any]]], seen: Bools) -> Epoch:
        """An epoch is over.

        Args:
            parts: Positions ``(B,)`` and weights ``(B,)`` of each weighed step.
            seen: ``(N,)`` training records seen so far.
        """
        weights = np.ones(self.patient.size)
        for at, given in parts:
            np.minimum.at(weights, at, given)
        below = weights < 1
        self.ever |= below
        mean = float(weights[seen].mean()) if seen.any() else 1.0
        return Epoch(int(np.unique(self.patient[below]).size), mean)
