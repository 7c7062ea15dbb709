"""From records to patients: one loss, one row of reference losses and one mask for each patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.aggregate import by_patient
from memguard.probes.asked import Asked
from memguard.probes.subject import Subject

__all__ = ["Units", "drawn_rows", "patient_units"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Units:
    """What is known of each of P patients whose loss was measured.

    Attributes:
        patient: ``(P,)`` codes as in the `Subject`, ascending.
        member: ``(P,)`` whether the model was trained on the patient.
        loss: ``(P,)`` nats per token over all records of the patient; per record where that is the unit.
        reference: ``(K, P)`` the same of each reference that was measured at all; NaN where it was not.
        in_mask: ``(K, P)`` whether reference k was trained on any record of the patient.
        records_left_out: Records whose loss is not a number.
        references_left_out: References without any loss.
    """

    patient: Ints
    member: Bools
    loss: Floats
    reference: Floats
    in_mask: Bools
    records_left_out: int = 0
    references_left_out: int = 0

    def __len__(self) -> int:
        return len(self.patient)

    @property
    def measured(self) -> Bools:
        """``(P,)`` patients whom every reference was asked about; all of them without references."""
        return np.asarray(np.isfinite(self.reference).all(axis=0), dtype=np.bool_)

    @property
    def two_sided(self) -> bool:
        """Whether most patients of either side have references that were trained on them and others that were not.

        Only then can a score with IN models be computed for held-out patients as for members.
        """
        inside = self.in_mask.sum(axis=0)
        both = (inside > 0) & (inside < len(self.in_mask)) & self.measured
        return all(bool(both[self.member == side].mean() > 0.5) for side in (True, False))

    def left_out(self, seed: int) -> Bools:
        """``(K, P)`` which references must not speak of a patient.

        Those that were trained on the patient; where held-out patients are in no reference and members are in some,
        each held-out patient leaves out the references of a member drawn at random. Otherwise the average over OUT
        models would be taken over more models for held-out patients than for members, and its smaller scatter alone
        would tell them apart.
        """
        mask = self.in_mask.copy()
        if mask.size and mask[:, self.member].any() and not mask[:, ~self.member].any():
            members = np.flatnonzero(self.member)
            drawn = np.random.default_rng(seed).choice(members, np.count_nonzero(~self.member))
            mask[:, ~self.member] = mask[:, drawn]
        return mask


def drawn_rows(subject: Subject, patients: int | None, seed: int) -> Ints:
    """Positions of the records of at most so many patients of each side, drawn at random, ascending.

    Example:
        >>> from memguard.records.content import Ragged, RecordContent
        >>> content = RecordContent.from_codes(Ragged.from_lists([[1]] * 6))
        >>> subject = Subject(n_members=4, patient=np.array([0, 0, 1, 2, 3, 4]), content=content)
        >>> drawn_rows(subject, None, 0).tolist(), drawn_rows(subject, 1, 0).size in (2, 3)
        ([0, 1, 2, 3, 4, 5], True)
    """
    if patients is None:
        return np.arange(len(subject), dtype=np.int64)
    rng = np.random.default_rng(seed)
    kept = []
    for side in (True, False):
        codes = np.unique(subject.patient[subject.member == side])
        kept.append(rng.permutation(codes)[:patients])
    return np.flatnonzero(np.isin(subject.patient, np.concatenate(kept))).astype(np.int64)


def patient_units(subject: Subject, asked: Asked, rows: Ints) -> Units:
    """Add up the losses of each patient, of the target and of every reference over the same records.

    Args:
        subject: N + M records.
        asked: Their losses; without ``tokens`` the records of a patient weigh the same.
        rows: Records to use.

    Returns:
        The patients with a measured loss. A record without a loss of the target is left out; a patient of whom a
        reference lacks a record keeps the loss and has no reference loss.

    Example:
        >>> from memguard.probes.asked import Asked
        >>> from memguard.records.content import Ragged, RecordContent
        >>> class None_:
        ...     kind, in_mask = "none", np.zeros((0, 3), bool)
        >>> subject = Subject(n_members=2, patient=np.array([4, 4, 9]),
        ...                   content=RecordContent.from_codes(Ragged.from_lists([[1]] * 3)))
        >>> asked = Asked(target=None, references=None_(), loss=np.array([1.0, 4.0, 2.0]),
        ...               reference_loss=np.zeros((0, 3)), tokens=np.array([2, 1, 5]))
        >>> found = patient_units(subject, asked, np.arange(3))
        >>> found.patient.tolist(), found.loss.tolist(), found.member.tolist()
        ([4, 9], [2.0, 2.0], [True, False])
    """
    good = rows[np.isfinite(asked.loss[rows])]
    weight = asked.tokens.astype(np.float64) if asked.tokens.size else np.ones(len(subject))
    good = good[weight[good] > 0]
    owner, w = subject.patient[good], weight[good]
    totals = by_patient(owner, asked.loss[good] * w, w)
    known = np.isfinite(asked.reference_loss[:, rows]).any(axis=1)
    code = np.searchsorted(totals.patient, owner)
    p = len(totals.patient)
    reference, mask = np.empty((int(known.sum()), p)), np.zeros((int(known.sum()), p), dtype=np.bool_)
    for k, row in enumerate(np.flatnonzero(known)):
        sums = np.bincount(code, weights=asked.reference_loss[row, good] * w, minlength=p)
        reference[k] = np.where(np.isfinite(sums), sums, np.nan) / totals.tokens
        # any record of the patient, measured or not: one is enough to have seen him
        seen = np.unique(subject.patient[asked.references.in_mask[row]])
        mask[k] = np.isin(totals.patient, seen)
    is_member = np.zeros(p, dtype=np.bool_)
    is_member[code] = subject.member[good]
    return Units(
        patient=totals.patient.astype(np.int64),
        member=is_member,
        loss=totals.nats_per_token,
        reference=reference,
        in_mask=mask,
        records_left_out=len(rows) - len(good),
        references_left_out=int(np.count_nonzero(~known)),
    )
