"""Do two splits share a patient, or the record of one?

A held-out patient whose other records were trained on is no non-member: every rate measured against them
would be too kind to the model.
"""

from __future__ import annotations

import hashlib
import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError, MemguardWarning, PatientOverlapError
from memguard.records._hashing import scramble
from memguard.records.content import RecordContent
from memguard.records.patients import PatientMap

__all__ = ["ContentOverlap", "check_disjoint", "content_overlap"]

_KEY = secrets.token_bytes(16)


def _hashed(patient: Any) -> str:
    """Told apart within this process and meaningless outside it: a short id is guessed from a bare hash."""
    return hashlib.blake2b(repr(patient).encode(), digest_size=4, key=_KEY).hexdigest()


def check_disjoint(
    train: PatientMap, held_out: PatientMap, *, hash_id: Callable[[Any], str] | None = None
) -> bool:
    """Refuse splits that share a patient.

    Args:
        train: The patients trained on.
        held_out: The patients that stand for non-members.
        hash_id: How an id is written in the message; a keyed hash by default, never the id.

    Returns:
        True where the splits were compared and share nobody; False where one of them has no patient ids, so
        that nothing could be compared.

    Raises:
        PatientOverlapError: They share patients.
        DataError: One side has numbers for ids and the other strings: they cannot be compared.

    Example:
        >>> one, two = (PatientMap.from_ids(ids, source="a list") for ids in ([1, 2, 2], [3, 4]))
        >>> check_disjoint(one, two)
        True
    """
    if train.unit == "record" or held_out.unit == "record":
        return False
    ours, theirs = train.records_per_patient() > 0, held_out.records_per_patient() > 0
    one, other = train.ids[ours], held_out.ids[theirs]
    if len(one) and len(other) and _kinds(one).isdisjoint(_kinds(other)):
        raise DataError(
            f"training patients have ids of type {_names(one)} and held-out patients of type {_names(other)}",
            "whether a patient stands on both sides cannot be told",
            "give both splits the same kind of id, with record_to_patient=",
        )
    shared = _shared(one, other)
    if len(shared) == 0:
        return True
    write = hash_id or _hashed
    examples = ", ".join(write(patient) for patient in shared[:5].tolist())
    records = int(np.sum(held_out.records_per_patient()[theirs][_positions(other, shared)]))
    raise PatientOverlapError(
        f"{len(shared):,} of {len(other):,} held-out patients are also trained on, "
        f"with {records:,} held-out records (hashed ids: {examples}{', ...' if len(shared) > 5 else ''})",
        "their records are not those of non-members, so leakage would look smaller than it is",
        "split by patient, or pass heldout= with patients that are not trained on",
    )


def _kinds(ids: NDArray[Any]) -> set[type]:
    return {int} if ids.dtype.kind == "i" else set(map(type, ids))


def _names(ids: NDArray[Any]) -> str:
    return " and ".join(sorted(kind.__name__ for kind in _kinds(ids)))


def _shared(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    if one.dtype.kind == other.dtype.kind == "i":
        both_sides: NDArray[Any] = np.intersect1d(one, other, assume_unique=True)
        return both_sides
    both = set(one.tolist())
    keep: NDArray[Any] = other[np.array([patient in both for patient in other.tolist()], dtype=bool)]
    return keep


def _positions(ids: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.int64]:
    known = set(wanted.tolist())
    return np.flatnonzero([patient in known for patient in ids.tolist()])


@dataclass(frozen=True, kw_only=True)
class ContentOverlap:
    """Held-out records that are equal, code by code, to a record trained on.

    Attributes:
        records: How many.
        compared: Out of how many long enough to be told apart.
        held_out: int64 ``(records,)`` positions of them.
        train: int64 ``(records,)`` position of one record equal to each.
    """

    records: int
    compared: int
    held_out: NDArray[np.int64]
    train: NDArray[np.int64]

    @property
    def share(self) -> float:
        """Of the held-out records compared; 0 where none could be."""
        return self.records / self.compared if self.compared else 0.0


def content_overlap(
    train: RecordContent, held_out: RecordContent, *, min_length: int = 8, warn: bool = True
) -> ContentOverlap:
    """Look for held-out records that are exact copies of training records, whatever their ids say.

    Every record is hashed to 64 bits, order included: with 10^6 records a side, chance makes two unequal
    ones look equal in fewer than one run in 10^7. Short records are skipped, as equal ones are common there.

    Args:
        train: N records.
        held_out: M records of the same kind.
        min_length: Fewest codes (or features) of a record that is compared.
        warn: Whether to warn where copies are found.

    Returns:
        The copies.

    Example:
        >>> from memguard.records.content import Ragged
        >>> one = RecordContent.from_codes(Ragged.from_lists([[1, 2], [3, 4]]))
        >>> two = RecordContent.from_codes(Ragged.from_lists([[3, 4], [4, 3]]))
        >>> content_overlap(one, two, min_length=2, warn=False).held_out.tolist()
        [0]
    """
    if train.kind != held_out.kind:
        raise DataError(
            f"training records are {train.kind} and held-out records {held_out.kind}",
            "they cannot be compared",
            "pass content of one kind",
        )
    known, position = _fingerprints(train, min_length)
    asked, where = _fingerprints(held_out, min_length)
    unique, first = np.unique(known, return_index=True)
    slot = np.searchsorted(unique, asked)
    hit = np.zeros(len(asked), dtype=bool)
    inside = slot < len(unique)
    hit[inside] = unique[slot[inside]] == asked[inside]
    found = ContentOverlap(
        records=int(hit.sum()),
        compared=len(asked),
        held_out=where[hit],
        train=position[first[slot[hit]]],
    )
    if warn and found.records:
        warnings.warn(
            MemguardWarning(
                f"{found.records:,} of {found.compared:,} held-out records are equal to a training record",
                "they may be the same patient under two ids, and make leakage look smaller than it is",
                "remove copies, or give their patients one id with record_to_patient=",
            ),
            stacklevel=2,
        )
    return found


def _fingerprints(content: RecordContent, min_length: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A 64-bit hash of each record that is long enough, and its position."""
    if content.codes is not None:
        values, lengths = content.codes.values.astype(np.int64).view(np.uint64), content.codes.lengths
        start = content.codes.offsets[:-1]
    else:
        assert content.x is not None
        x = np.ascontiguousarray(content.x) + np.float32(0)  # -0.0 and 0.0 are equal
        values = x.view(np.uint32).astype(np.uint64).reshape(-1)
        lengths = np.full(len(x), x.shape[1], np.int64)
        start = np.arange(len(x), dtype=np.int64) * x.shape[1]
    place = np.arange(len(values), dtype=np.int64) - np.repeat(start, lengths)
    mixed = scramble(values ^ scramble(place.astype(np.uint64) + np.uint64(1)))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    fingerprint = scramble(total[start + lengths] - total[start])  # modulo 2^64, so differences of sums hold
    keep = content.observed & (lengths >= min_length)
    return fingerprint[keep], np.flatnonzero(keep)
