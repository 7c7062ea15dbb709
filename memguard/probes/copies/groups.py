"""Which records have copies: among members, within one patient, and across the split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from memguard.probes.subject import Subject
from memguard.records.duplicates import near_duplicates

__all__ = ["Groups", "find_groups"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Records that are nearly the same as another record.

    Attributes:
        copied: ``(N + M,)`` members' records with a near copy among the members.
        between: ``(N + M,)`` of those, the ones whose group holds several patients (near-duplicates).
        within: ``(N + M,)`` of those, the ones whose group holds another record of the same patient (repeats).
        unit: ``(N + M,)`` what is independent of the rest: patients and groups that hang together, by one number.
        group: ``(N + M,)`` number of the group of near copies among members; -1 for records without.
        size: ``(N + M,)`` records of the group, 1 without copies.
        across: ``(N + M,)`` never-trained patients' records that are near copies of a member's.
        similarity: ``(N + M,)`` to the nearest other record of either side that was found; 0 where nobody is near.
    """

    copied: Bools
    between: Bools
    within: Bools
    unit: Ints
    group: Ints
    size: Ints
    across: Bools
    similarity: Floats

    def counts(self, subject: Subject, which: Bools) -> tuple[int, int, int]:
        """Groups, records and patients among these records."""
        return (
            int(np.unique(self.group[which]).size),
            int(which.sum()),
            int(np.unique(subject.patient[which]).size),
        )


def find_groups(subject: Subject, *, threshold: float, min_codes: int, seed: int) -> Groups:
    """Search all records of members, and of both sides together, for near copies.

    The search compares records, not patients: a patient's two visits that are nearly the same strengthen each
    other just as two patients do. See `memguard.records.near_duplicates` for what it finds and what it may miss.

    Args:
        subject: The records; codes count with their repeats, their order does not.
        threshold: Least Jaccard similarity of two records.
        min_codes: Records with fewer codes are compared with nobody.
        seed: Of the hashes.

    Example:
        >>> from memguard.records.content import Ragged, RecordContent
        >>> rows = [range(10), [*range(9), 50], range(20, 30), range(20, 30), range(60, 70), range(10)]
        >>> subject = Subject(n_members=5, patient=np.array([0, 1, 2, 2, 3, 4]),
        ...                   content=RecordContent.from_codes(Ragged.from_lists(rows)))
        >>> groups = find_groups(subject, threshold=0.7, min_codes=8, seed=0)
        >>> groups.copied.tolist(), groups.between.tolist()
        ([True, True, True, True, False, False], [True, True, False, False, False, False])
        >>> groups.within.tolist(), groups.across.tolist()
        ([False, False, True, True, False, False], [False, False, False, False, False, True])
    """
    n, inside = len(subject), np.arange(subject.n_members)
    found = near_duplicates(
        subject.content.take(inside), inside, threshold=threshold, min_codes=min_codes, seed=seed
    )
    both = near_duplicates(subject.content, np.arange(n), threshold=threshold, min_codes=min_codes, seed=seed)
    group, size = np.full(n, -1, np.int64), np.ones(n, np.int64)
    several = found.cluster_size > 1
    group[inside[several]], size[inside] = found.cluster[several], found.cluster_size
    copied = group >= 0
    _, patient = np.unique(subject.patient, return_inverse=True)
    patient = patient.reshape(-1).astype(np.int64)
    # how many records of each patient, and how many patients, a group holds
    pair, back, records = np.unique(
        np.stack([group[copied], patient[copied]]), axis=1, return_inverse=True, return_counts=True
    )
    patients = np.bincount(pair[0].astype(np.int64), minlength=int(group.max(initial=-1)) + 1)
    within, between = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    within[copied] = records[back.reshape(-1)] > 1
    between[copied] = patients[group[copied]] > 1
    member_cluster = np.zeros(int(both.cluster.max(initial=-1)) + 1, np.bool_)
    member_cluster[both.cluster[: subject.n_members]] = True
    return Groups(
        copied=copied,
        between=between,
        within=within,
        unit=_units(patient, group),
        group=group,
        size=size,
        across=~subject.member & member_cluster[both.cluster],
        similarity=both.similarity,
    )


def _units(patient: Ints, group: Ints) -> Ints:
    """Number of the connected part of patients and groups that each record belongs to."""
    n_patients = int(patient.max(initial=-1)) + 1
    linked = group >= 0
    width = n_patients + int(group.max(initial=-1)) + 1
    graph = sparse.coo_array(
        (np.ones(int(linked.sum()), np.int8), (patient[linked], n_patients + group[linked])),
        shape=(width, width),
    )
    _, part = connected_components(graph, directed=False)
    return np.asarray(part[patient], dtype=np.int64)
