"""Whom an audit is about: the records of both sides, numbered through, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.records.content import Ragged, RecordContent

__all__ = ["Subject"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """N records that the model was trained on, then M that it never saw.

    Attributes:
        n_members: N.
        patient: ``(N + M,)`` codes of patients; the sides share none.
        content: Of all N + M records.
        names: Name of each token (``DIAGNOSIS//ICD//10//F1020``); empty where unknown.
        static: ``(N + M,)`` how many leading tokens of a sequence say who the patient is (begin, age, sex); they
            are what an attacker with demographics knows.
        strata: Name -> ``(N + M,)`` whether the record belongs to it; strata may overlap.
        unit: ``"patient"``, or ``"record"`` where no ids were found.

    Raises:
        DataError: If lengths differ or the sides share a patient.

    Example:
        >>> codes = Ragged.from_lists([[1, 2], [1, 3], [2, 3]])
        >>> subject = Subject(n_members=2, patient=np.array([0, 0, 7]), content=RecordContent.from_codes(codes))
        >>> subject.member.tolist(), subject.n_patients(True), subject.sequences[2].tolist()
        ([True, True, False], 1, [2, 3])
    """

    n_members: int
    patient: Ints
    content: RecordContent
    names: tuple[str, ...] = ()
    static: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    strata: Mapping[str, Bools] = field(default_factory=dict)
    unit: str = "patient"

    def __post_init__(self) -> None:
        n = len(self.content)
        if self.static.size == 0:
            object.__setattr__(self, "static", np.zeros(n, np.int64))
        sizes = {"patient": self.patient, "static": self.static, **self.strata}
        for name, values in sizes.items():
            if np.shape(values) != (n,):
                raise DataError(
                    f"{name} of shape {np.shape(values)} for {n} records",
                    "facts would be given to the wrong record",
                    f"pass one value of {name} for each record, members first",
                )
        if not 0 <= self.n_members <= n:
            raise DataError(
                f"{self.n_members} members among {n} records", "sides would be mixed up", "count them"
            )
        if np.intersect1d(self.patient[: self.n_members], self.patient[self.n_members :]).size:
            raise DataError(
                "a patient on both sides",
                "a held-out patient must be a stranger to the model",
                "split by patient",
            )

    def __len__(self) -> int:
        return len(self.content)

    @property
    def member(self) -> Bools:
        """``(N + M,)`` which records the model was trained on."""
        return np.arange(len(self)) < self.n_members

    @property
    def sequences(self) -> Ragged:
        """The N + M code sequences.

        Raises:
            DataError: If the records are feature vectors.
        """
        if self.content.codes is None:
            raise DataError("records of features", "there are no codes to ask for", "audit a next-code model")
        return self.content.codes

    def n_patients(self, member: bool) -> int:
        """How many patients of one side."""
        return int(np.unique(self.patient[self.member == member]).size)
