"""Which sensitive codes are asked about: the first of each category in each record of either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.probes.prompts import Asking, first_places
from memguard.probes.subject import Subject
from memguard.records.sensitivity import SensitivityTable

__all__ = ["Categories", "categories_of", "drawn_patients", "sensitive_items"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Categories:
    """C kinds of sensitive codes over V tokens.

    Attributes:
        keys: Names, as in the keys of numbers.
        tiers: ``(C,)`` how much harm disclosure may do, 1 to 3; 0 where unknown.
        member: ``(V, C)`` which tokens belong to which.
        notes: What the reader must know of them.
    """

    keys: tuple[str, ...]
    tiers: tuple[int, ...]
    member: Bools
    notes: tuple[str, ...] = ()


def categories_of(
    subject: Subject,
    vocabulary: int,
    sensitive: Any = None,
    keys: Sequence[str] = (),
    tiers: Sequence[int] = (),
) -> Categories:
    """The kinds that were given, or those of memguard's own table.

    Args:
        subject: Whose names are read where nothing is given.
        vocabulary: V of the model.
        sensitive: ``None`` for memguard's table; a `SensitivityTable`; what one said of the names; or ``(V, C)``
            truth values.
        keys: Names of the C kinds, with truth values.
        tiers: Of the C kinds, with truth values.

    Returns:
        Only kinds with at least one token.

    Raises:
        DataError: If tokens and truth values, or names and kinds, differ in number.

    Example:
        >>> from memguard.records.content import Ragged, RecordContent
        >>> records = RecordContent.from_codes(Ragged.from_lists([[1, 2], [2, 1]]))
        >>> names = ("PAD", "ICD10CM/B20", "ICD10CM/I10")
        >>> who = Subject(n_members=1, patient=np.arange(2), content=records, names=names)
        >>> categories_of(who, 3).keys
        ('hiv',)
        >>> categories_of(who, 3, np.array([[0], [0], [1]]), ("pressure",)).member[:, 0].tolist()
        [False, False, True]
    """
    if sensitive is None:
        sensitive = SensitivityTable.default()
    if isinstance(sensitive, SensitivityTable):
        if not subject.names:
            return Categories(keys=(), tiers=(), member=np.zeros((vocabulary, 0), np.bool_))
        sensitive = sensitive.label(subject.names)
    if hasattr(sensitive, "categories"):
        found = Categories(
            keys=tuple(sensitive.categories),
            tiers=tuple(int(tier) for tier in sensitive.tiers),
            member=np.asarray(sensitive.member, dtype=np.bool_),
            notes=tuple(sensitive.notes),
        )
    else:
        member = np.asarray(sensitive).astype(np.bool_)
        member = member[:, None] if member.ndim == 1 else member
        n = member.shape[1]
        found = Categories(
            keys=tuple(keys) or tuple(f"category_{i}" for i in range(n)),
            tiers=tuple(tiers) or (0,) * n,
            member=member,
        )
    sizes = found.member.shape[1], len(found.keys), len(found.tiers)
    if found.member.shape[0] != vocabulary or len(set(sizes)) > 1:
        raise DataError(
            f"{found.member.shape} truth values, {sizes[1]} names and {sizes[2]} tiers for {vocabulary} tokens",
            "codes would be taken for sensitive that are not",
            "pass sensitive= with one row for each token and one column for each of categories=",
        )
    some = np.flatnonzero(found.member.any(0))
    return Categories(
        keys=tuple(found.keys[i] for i in some),
        tiers=tuple(found.tiers[i] for i in some),
        member=found.member[:, some],
        notes=found.notes,
    )


def drawn_patients(patient: Ints, member: Bools, most: int | None, seed: int) -> Bools:
    """Records of at most so many patients of each side, drawn at random, ``(n,)``.

    Example:
        >>> patient, member = np.array([0, 0, 1, 2, 3]), np.array([1, 1, 1, 0, 0], bool)
        >>> drawn_patients(patient, member, 1, 0).sum() in (2, 3), drawn_patients(patient, member, None, 0).sum()
        (True, np.int64(5))
    """
    keep = np.ones(len(patient), np.bool_)
    if most is None:
        return keep
    rng = np.random.default_rng([seed, 31])
    for side in (member, ~member):
        ids = np.unique(patient[side])
        if len(ids) > most:
            keep[side] = np.isin(patient[side], rng.permutation(ids)[:most])
    return keep


def sensitive_items(
    subject: Subject, categories: Categories, *, patients: int | None = None, seed: int = 0
) -> tuple[Asking, Ints]:
    """The first code of each category in each record, its static tokens left out, and its category.

    Args:
        subject: Both sides.
        categories: C kinds of codes.
        patients: At most so many patients of each side, drawn among those who have any.
        seed: Of the draw.

    Returns:
        n codes and the number ``(n,)`` of the category of each.
    """
    parts = []
    for c in range(len(categories.keys)):
        place = first_places(subject.sequences, subject.static, categories.member[:, c])
        row = np.flatnonzero(place >= 0)
        parts.append((row, place[row], np.full(len(row), c)))
    row, place, category = (
        np.concatenate([part[i] for part in parts]) if parts else np.zeros(0, np.int64) for i in range(3)
    )
    keep = drawn_patients(subject.patient[row], subject.member[row], patients, seed)
    row, place, category = row[keep], place[keep], category[keep]
    code = subject.sequences.values[subject.sequences.offsets[row] + place].astype(np.int64)
    return Asking(row=row, place=place, code=code), category
