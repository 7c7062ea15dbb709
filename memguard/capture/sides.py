"""Whose records these are, of members and of held-out patients, and whether the two can be compared at all."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from memguard.capture.heldout import HeldOutSource
from memguard.capture.order import has_own_order
from memguard.capture.session import Capture
from memguard.errors import HeldOutError, IndexTrackingError, MemguardWarning
from memguard.records.patients import PatientMap, resolve_patients
from memguard.records.splits import check_disjoint
from memguard.records.surrogate import MIN_HELD_OUT

__all__ = ["FEWEST_HELD_OUT", "batch_key", "check_sides", "fingerprint", "two_sides"]

FEWEST_HELD_OUT = 20  # an AUC against fewer patients has an interval that says nothing


def batch_key(record_to_patient: Any) -> str | None:
    """The entry of the batch that names the patient, if that is how patients are told.

    Example:
        >>> batch_key("auto"), batch_key("subject_id"), batch_key([1, 2])
        (None, 'subject_id', None)
    """
    return record_to_patient if isinstance(record_to_patient, str) and record_to_patient != "auto" else None


def two_sides(
    capture: Capture, source: HeldOutSource, record_to_patient: Any, *, strict: bool = True
) -> tuple[PatientMap, PatientMap]:
    """Resolve the patients of both sides and refuse what cannot be compared.

    Args:
        capture: Installed in the run.
        source: Of the held-out patients.
        record_to_patient: As the monitor takes it.
        strict: Whether to refuse too few held-out patients.

    Returns:
        Record -> patient of the training set, and of the held-out one.

    Raises:
        HeldOutError: Without held-out patients, or with fewer than 20.
        PatientOverlapError: If a patient is on both sides.
        DataError: If ids do not fit the records.
    """
    mapping = record_to_patient if isinstance(record_to_patient, Mapping) else None
    ours = record_to_patient if mapping is None else mapping.get("train", "auto")
    theirs = _for_held_out(record_to_patient) if mapping is None else mapping.get("held_out", "auto")
    tracker = capture.tracker
    if not hasattr(tracker.dataset("train"), "__getitem__") or not hasattr(
        tracker.dataset("train"), "__len__"
    ):
        raise IndexTrackingError(
            f"a training dataset of type {type(tracker.dataset('train')).__name__} without __getitem__ and __len__",
            "a sample of members is read again at each look, and coverage is a share of all records",
            "use a map-style dataset",
        )
    _check_order(capture, source)
    members = resolve_patients(tracker.dataset("train"), tracker.n_records("train"), ours)
    n_held_out = source.n_records
    if n_held_out == 0:
        raise HeldOutError(
            "a held-out data set without records",
            "membership is measured against patients that the model never saw",
            "pass heldout= with at least 100 patients",
        )
    held_out = resolve_patients(source.dataset, n_held_out, theirs)
    if batch_key(record_to_patient) is None:
        check_sides(members, held_out, strict=strict)
    return members, held_out


def _check_order(capture: Capture, source: HeldOutSource) -> None:
    """Refuse a collate function that sorts: a row would be taken for the record that was asked for there."""
    if capture.tracker.record_ids is not None:
        return
    sides = {
        "training": (
            lambda rows: capture.fetch("train", rows, batch_size=2),
            capture.tracker.n_records("train"),
        )
    }
    if source.n_records:
        sides["held-out"] = (lambda rows: source.windows(np.asarray(rows)), source.n_records)
    for name, (batch_of, n_records) in sides.items():
        if has_own_order(batch_of, n_records):
            raise IndexTrackingError(
                f"a collate function of the {name} loader that makes the same batch of two records in either order",
                "it sorts them, so a loss would be given to the wrong record",
                "keep the order of the samples and sort inside the module, or pass record_ids= with the name of an "
                "entry of the batch that holds the positions",
            )


def check_sides(members: PatientMap, held_out: PatientMap, *, strict: bool = True) -> None:
    """Refuse an overlap and too few held-out patients; warn where nothing can be checked."""
    if not check_disjoint(members, held_out):
        which = [
            name for name, side in (("training", members), ("held-out", held_out)) if side.unit == "record"
        ]
        warnings.warn(
            MemguardWarning(
                f"no patient ids for the {' and '.join(which)} records",
                "each record counts as a patient of its own, and nobody can check that no patient is on both sides",
                "pass record_to_patient=, or give the data set an attribute patient_ids",
            ),
            stacklevel=2,
        )
    n = held_out.n_patients
    if n < FEWEST_HELD_OUT and strict:
        raise HeldOutError(
            f"{n} held-out {held_out.unit}s",
            "an AUC against so few has an interval that says nothing",
            f"hold out at least {FEWEST_HELD_OUT}, better {MIN_HELD_OUT} or more",
        )
    if n < MIN_HELD_OUT:
        warnings.warn(
            MemguardWarning(
                f"{n} held-out {held_out.unit}s",
                f"no patient is ranked or flagged, since the expected loss is fitted on at least {MIN_HELD_OUT}",
                f"hold out {MIN_HELD_OUT} or more",
            ),
            stacklevel=2,
        )


def _for_held_out(record_to_patient: Any) -> Any:
    """A sequence or a function is about the training records: held-out ones are resolved by themselves."""
    simple = record_to_patient is None or isinstance(record_to_patient, str)
    return record_to_patient if simple else "auto"


def fingerprint(members: PatientMap, held_out: PatientMap) -> str:
    """Tells whether a resumed run has the same records in the same order; says nothing of the ids."""
    digest = hashlib.blake2b(digest_size=8)
    for side in (members, held_out):
        digest.update(f"{len(side)} {side.n_patients} {side.unit}".encode())
        digest.update(np.ascontiguousarray(side.code).tobytes())
    return digest.hexdigest()
