"""From records to patients: losses are added up, never averaged over averages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.attacks._checks import Floats, finite
from memguard.errors import MemguardError

__all__ = ["PatientTotals", "by_patient"]


@dataclass(frozen=True, kw_only=True)
class PatientTotals:
    """Sums over the records of each patient.

    Attributes:
        patient: ``(P,)`` ids, sorted, each once.
        nats: ``(P,)`` summed loss (or any other score in nats per record).
        tokens: ``(P,)`` summed number of predicted tokens (of records for a classifier).
        records: ``(P,)`` number of records behind the sums.
    """

    patient: NDArray[Any]
    nats: Floats
    tokens: Floats
    records: NDArray[np.int64]

    @property
    def nats_per_token(self) -> Floats:
        """Loss of each patient per predicted token, ``(P,)``; NaN for a patient without tokens."""
        rate: Floats = np.full(len(self.nats), np.nan)
        np.divide(self.nats, self.tokens, out=rate, where=self.tokens > 0)
        return rate

    @property
    def bits(self) -> Floats:
        """The summed nats in bits, ``(P,)``."""
        bits: Floats = self.nats / math.log(2.0)
        return bits


def by_patient(
    patient: ArrayLike,
    nats: ArrayLike,
    tokens: ArrayLike | None = None,
    *,
    missing: Literal["refuse", "drop"] = "refuse",
) -> PatientTotals:
    """Add up the records of each patient.

    A patient with many records has one total, so that it counts once among the patients; its long records
    weigh more than its short ones, as they do in the training loss per token.

    Args:
        patient: ``(N,)`` patient id of each record (integers or strings).
        nats: ``(N,)`` nats of each record (summed over its tokens, not their mean).
        tokens: ``(N,)`` predicted tokens of each record; 1 each if omitted.
        missing: What to do with records whose ``nats`` is NaN (not yet seen): refuse, or leave them out (a
            patient without any other record is then absent from the result).

    Returns:
        One row per patient, sorted by id.

    Raises:
        MemguardError: for wrong shapes, negative tokens, infinite values, or NaN unless dropped.

    Example:
        >>> totals = by_patient([7, 3, 7], [2.0, 1.0, 4.0], [1, 2, 3])
        >>> totals.patient, totals.nats, totals.nats_per_token, totals.records
        (array([3, 7]), array([1., 6.]), array([0.5, 1.5]), array([1, 2]))
    """
    ids = np.asarray(patient)
    loss = np.asarray(nats, dtype=np.float64)
    count = np.ones(loss.shape) if tokens is None else np.asarray(tokens, dtype=np.float64)
    if ids.shape != loss.shape or count.shape != loss.shape or loss.ndim != 1:
        raise MemguardError(
            f"patient, nats and tokens have shapes {ids.shape}, {loss.shape} and {count.shape}",
            "losses would be given to the wrong patient",
            "pass one value of each per record",
        )
    if missing == "drop":
        seen = ~np.isnan(loss)
        ids, loss, count = ids[seen], loss[seen], count[seen]
    loss = finite(loss, "nats", allow_empty=True)
    count = finite(count, "tokens", allow_empty=True)
    if np.any(count < 0):
        raise MemguardError(
            f"{int(np.count_nonzero(count < 0))} negative numbers of tokens",
            "a loss per token would be wrong",
            "pass the number of predicted tokens of each record",
        )
    unique, code = np.unique(ids, return_inverse=True)
    code = code.reshape(-1)
    return PatientTotals(
        patient=unique,
        nats=np.bincount(code, weights=loss, minlength=len(unique)).astype(np.float64),
        tokens=np.bincount(code, weights=count, minlength=len(unique)).astype(np.float64),
        records=np.bincount(code, minlength=len(unique)).astype(np.int64),
    )
