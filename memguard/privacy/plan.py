"""The public constants of a private training, fixed once before the first step.

Nothing here may depend on who is in a batch, and what depends on the data set (its number of patients) is stated as
public. A resumed run keeps the plan of the run that it resumes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memguard.errors import PrivacyError
from memguard.privacy.draws import expected_draw, n_chunks
from memguard.records.patients import PatientMap

__all__ = ["EVERYBODY", "Plan", "fingerprint_of", "make_plan"]

EVERYBODY = "everybody"  # the one stratum of a run without individual budgets
Unit = Literal["patient", "record"]


@dataclass(frozen=True)
class Plan:
    """How owners are drawn and what a step is divided by.

    Attributes:
        unit: What one contribution belongs to: ``"patient"`` or ``"record"``.
        n_owners: P, patients (or records), taken as public.
        n_records: N, records.
        most_records: Largest number of records that one patient owns in the data set; ``None`` where patients are not
            known.
        max_records: At most so many records of a patient are used in a step; ``None``, all.
        sample_rate: Probability with which an owner is in a step, averaged over owners.
        expected_owners: What the noisy sum is divided by: ``sample_rate * n_owners``.
        steps_per_epoch: Optimizer steps in an epoch.
        parts: Physical batches of a step.
        fingerprint: Of the data set: whose records, in which order.
        stratum: Name of the stratum of each owner, ``(P,)``, where budgets differ.
    """

    unit: Unit
    n_owners: int
    n_records: int
    most_records: int | None
    max_records: int | None
    sample_rate: float
    expected_owners: float
    steps_per_epoch: int
    parts: int
    fingerprint: str
    stratum: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    def counts(self) -> dict[str, int]:
        """Owners in each stratum."""
        if self.stratum is None:
            return {EVERYBODY: self.n_owners}
        names, counts = np.unique(self.stratum, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def rates(self, by_stratum: Mapping[str, float]) -> float | NDArray[np.float64]:
        """The rate of each owner ``(P,)``, or the one rate of all."""
        if self.stratum is None:
            return by_stratum[EVERYBODY]
        return np.asarray([by_stratum[str(name)] for name in self.stratum.tolist()], dtype=np.float64)

    def facts(self) -> dict[str, Any]:
        """For the ledger: numbers and words."""
        return {
            "unit": self.unit,
            "n_owners": self.n_owners,
            "n_records": self.n_records,
            "most_records": self.most_records,
            "max_records": self.max_records,
            "sample_rate": self.sample_rate,
            "expected_owners": self.expected_owners,
            "steps_per_epoch": self.steps_per_epoch,
            "strata": self.counts(),
            "strata_fingerprint": None if self.stratum is None else _digest(self.stratum),
        }


def make_plan(
    patients: PatientMap,
    *,
    unit: Unit,
    batch_size: int,
    sample_rate: float | None = None,
    expected_batch_size: float | None = None,
    max_records: int | None = None,
    physical_batch_size: int | None = None,
    strata: Mapping[Any, str] | Sequence[str] | None = None,
) -> Plan:
    """Fix the plan of a run.

    Args:
        patients: Whose record each is.
        unit: ``"patient"`` or ``"record"``.
        batch_size: Records that the user's loader puts into an optimizer step (accumulation and processes counted).
        sample_rate: Probability with which an owner is in a step; by default such that an epoch has as many steps as
            without privacy.
        expected_batch_size: Owners in a step on average, instead of ``sample_rate``.
        max_records: At most so many records of a patient in a step.
        physical_batch_size: Records in one forward pass at most, save for a patient who has more.
        strata: Stratum of each patient: by id, or one name a patient in the order of ``patients.ids``.

    Raises:
        PrivacyError: If patients are not known, or numbers make no plan.

    Example:
        >>> patients = PatientMap.from_ids([1, 1, 2, 3, 4, 4, 5, 6], source="a list")
        >>> plan = make_plan(patients, unit="patient", batch_size=4)
        >>> plan.n_owners, plan.steps_per_epoch, plan.sample_rate, plan.expected_owners
        (6, 2, 0.5, 3.0)
    """
    _check(patients, unit, batch_size, sample_rate, expected_batch_size, max_records, physical_batch_size)
    owner = patients.code if unit == "patient" else np.arange(len(patients), dtype=np.int64)
    per_owner = np.bincount(owner).astype(np.int64)
    n_owners = len(per_owner)
    if expected_batch_size is not None:
        sample_rate = min(1.0, expected_batch_size / n_owners)
    if sample_rate is None:
        sample_rate = 1.0 / max(1, math.ceil(len(patients) / batch_size))
    mean, deviation = expected_draw(sample_rate, per_owner, max_records)
    physical = 2 * batch_size if physical_batch_size is None else physical_batch_size
    stratum = None
    if strata is not None:
        if unit == "record":
            raise PrivacyError(
                'budgets= with unit="record"', "budgets are promised to patients", 'pass unit="patient"'
            )
        stratum = _strata(patients, strata)
    return Plan(
        unit=unit,
        n_owners=n_owners,
        n_records=len(patients),
        most_records=int(patients.records_per_patient().max(initial=0))
        if patients.unit == "patient"
        else None,
        max_records=max_records,
        sample_rate=float(sample_rate),
        expected_owners=float(sample_rate * n_owners),
        steps_per_epoch=max(1, round(1 / sample_rate)),
        parts=n_chunks(mean, deviation, physical),
        fingerprint=fingerprint_of(patients),
        stratum=stratum,
    )


def fingerprint_of(patients: PatientMap) -> str:
    """Tells whether two runs trained on the same records in the same order; says nothing of the ids.

    Example:
        >>> one = PatientMap.from_ids([1, 1, 2], source="a list")
        >>> fingerprint_of(one) == fingerprint_of(one.take([0, 1]))
        False
    """
    digest = hashlib.blake2b(f"{patients.unit} {len(patients)}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(patients.code).tobytes())
    for one in patients.ids.tolist() if patients.unit == "patient" else ():
        digest.update(f"{one}\0".encode())
    return digest.hexdigest()


def _digest(stratum: NDArray[Any]) -> str:
    """Tells whether every owner is in the stratum that he was in."""
    return hashlib.blake2b("\0".join(stratum.tolist()).encode(), digest_size=16).hexdigest()


def _strata(patients: PatientMap, strata: Mapping[Any, str] | Sequence[str]) -> NDArray[Any]:
    if isinstance(strata, Mapping):
        missing = [one for one in patients.ids.tolist() if one not in strata]
        if missing:
            raise PrivacyError(
                f"{len(missing)} of {patients.n_patients} patients have no stratum",
                "their budget is not known",
                "name a stratum for every patient in strata=",
            )
        return np.asarray([str(strata[one]) for one in patients.ids.tolist()])
    if len(strata) != patients.n_patients:
        raise PrivacyError(
            f"{len(strata)} strata for {patients.n_patients} patients",
            "a budget would be promised to the wrong patient",
            "pass a mapping patient id -> stratum, or one name a patient in ascending order of ids",
        )
    return np.asarray([str(one) for one in strata])


def _check(
    patients: PatientMap,
    unit: str,
    batch_size: int,
    sample_rate: float | None,
    expected_batch_size: float | None,
    max_records: int | None,
    physical_batch_size: int | None,
) -> None:
    if unit not in ("patient", "record"):
        raise PrivacyError(
            f"unit={unit!r}", "it names who is promised privacy", 'pass unit="patient" or unit="record"'
        )
    if unit == "patient" and patients.unit != "patient":
        raise PrivacyError(
            f"no patient ids ({patients.source})",
            "a promise to patients needs to know which records are whose",
            'pass record_to_patient=, or unit="record" for a weaker promise',
        )
    if unit == "patient" and not patients.complete:
        raise PrivacyError(
            f"{int((patients.code < 0).sum())} records whose patient is not known",
            "their patient could contribute twice to a step",
            "pass record_to_patient= with an id for every record",
        )
    if len(patients) == 0:
        raise PrivacyError("a training set without records", "there is nobody to sample", "")
    if (patients.n_patients if unit == "patient" else len(patients)) < 2:
        raise PrivacyError(
            f"a training set of one {unit}",
            "without that one nothing would be left, so a model that is nearly the same could only be one of noise",
            "train on several, or pass record_to_patient= if these are several patients",
        )
    if sample_rate is not None and expected_batch_size is not None:
        raise PrivacyError(
            f"sample_rate={sample_rate} and expected_batch_size={expected_batch_size}",
            "one follows from the other",
            "pass one of them",
        )
    if sample_rate is not None and not 0 < sample_rate <= 1:
        raise PrivacyError(f"sample_rate={sample_rate}", "it is a probability", "pass a number in (0, 1]")
    sizes = {
        "batch_size": batch_size,
        "expected_batch_size": expected_batch_size,
        "max_records_per_patient": max_records,
        "physical_batch_size": physical_batch_size,
    }
    for name, size in sizes.items():
        if size is not None and not size >= 1:
            raise PrivacyError(f"{name}={size}", "it counts people or records", "pass a number from 1")
