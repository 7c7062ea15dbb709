"""Patients who are nearly the same as another patient.

Copies of a record strengthen each other: the model learns well what they share, and yet it loses little
when one of them is missing, so that a counterfactual score looks low (arXiv 2506.20481 finds the same).
They need a search of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from memguard.errors import DataError
from memguard.records._hashing import scramble
from memguard.records.content import RecordContent
from memguard.records.incidence import incidence
from memguard.records.patients import PatientMap

__all__ = ["NearDuplicates", "near_duplicates"]

_RECALL = 0.99  # chance that a pair at the threshold shares a band
_REACH = 8  # neighbours within a band that are compared
_CHUNK = 1 << 18
_BLOCK = 1 << 13
_SKETCH = 64
_LOW = np.uint64((1 << 24) - 1)
_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """The nearest other patient of each of ``P`` patients, where there is one above the threshold.

    Attributes:
        ids: ``(P,)`` the patients.
        cluster: int64, number of the patient's cluster; a chain of near-duplicates is one cluster.
        cluster_size: int64, patients in it; 1 where nobody is near.
        similarity: float64, to the nearest patient that was found; 0 where nobody is near.
        partner: int64, position of that patient in `ids`; -1 where nobody is near.
        threshold: The similarity asked for.
    """

    ids: NDArray[Any]
    cluster: NDArray[np.int64]
    cluster_size: NDArray[np.int64]
    similarity: NDArray[np.float64]
    partner: NDArray[np.int64]
    threshold: float

    def __len__(self) -> int:
        return len(self.ids)

    def frame(self) -> pl.DataFrame:
        """One row a patient; `partner` is null where nobody is near."""
        near = self.partner >= 0
        partner = [self.ids[p] if ok else None for p, ok in zip(self.partner, near, strict=True)]
        return pl.DataFrame(
            {
                "patient": pl.Series(self.ids.tolist(), strict=False),
                "cluster_size": self.cluster_size,
                "similarity": self.similarity,
                "partner": pl.Series(partner, strict=False),
            }
        )


def near_duplicates(
    content: RecordContent,
    patient: PatientMap | ArrayLike,
    *,
    threshold: float = 0.8,
    n_hashes: int = 64,
    min_codes: int = 8,
    seed: int = 0,
) -> NearDuplicates:
    """Find patients whose codes are nearly those of another patient.

    Similarity is the Jaccard index of two bags of codes, repeats counted: codes in common divided by codes
    in either. Order does not matter to it. Candidates come from MinHash signatures cut in bands (Broder
    1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4) that find a pair at the
    threshold with probability at least .99 and a closer one with more; every candidate is then compared
    exactly, so that no reported similarity is an estimate. Where more than a handful of patients agree in a
    band, each is compared with the next few in the order of another hash: the patients of a large cluster
    are found, but not each one's very nearest.

    Args:
        content: N records; for features, columns as codes and continuous ones in 20 quantile bins.
        patient: The patient of each record, a map or N ids; all codes of a patient count together.
        threshold: Least similarity, above 0 and up to 1.
        n_hashes: Length of a signature; more of them leave fewer candidates to compare.
        min_codes: Patients with fewer codes are compared with nobody: short records are alike by chance.
        seed: Of the hashes.

    Returns:
        One row a patient. Time and memory are linear in the codes (and in patients times `n_hashes`).

    Raises:
        DataError: The numbers of records differ, or the threshold is out of range.

    Example:
        >>> from memguard.records.content import Ragged
        >>> rows = [range(10), range(20, 30), [*range(9), 50]]
        >>> found = near_duplicates(RecordContent.from_codes(Ragged.from_lists(rows)), ["a", "b", "c"])
        >>> found.cluster_size.tolist(), found.partner.tolist(), found.similarity.round(2).tolist()
        ([2, 1, 2], [2, -1, 0], [0.82, 0.0, 0.82])
    """
    if not 0 < threshold <= 1 or n_hashes < 1:
        raise DataError(
            f"threshold={threshold} with n_hashes={n_hashes}",
            "every pair or none would be near",
            "give 0 < threshold <= 1 and at least one hash",
        )
    table = incidence(content, patient, continuous_bins=20)
    size = np.asarray(table.counts.sum(axis=1)).reshape(-1)
    members = np.flatnonzero(size >= max(min_codes, 1))
    best, partner = np.zeros(len(table.ids)), np.full(len(table.ids), -1, np.int64)
    links = np.zeros((2, 0), np.int64)
    if len(members) > 1:
        counts = table.counts[members]
        rng = np.random.default_rng(seed)
        one, other = _candidates(counts, threshold, n_hashes, rng)
        similarity = _jaccard(counts, one, other)
        near = similarity >= threshold
        one, other, similarity = members[one[near]], members[other[near]], similarity[near]
        links = np.stack([one, other])
        # Both ways round, the most similar last, so that it is the one that stays.
        order = np.argsort(similarity, kind="stable")
        for left, right in ((one[order], other[order]), (other[order], one[order])):
            better = similarity[order] > best[left]
            last = _last(left[better])
            best[left[better][last]] = similarity[order][better][last]
            partner[left[better][last]] = right[better][last]
    graph = sparse.coo_array(
        (np.ones(links.shape[1], np.int8), (links[0], links[1])), shape=(len(table.ids),) * 2
    )
    _, cluster = connected_components(graph, directed=False)
    return NearDuplicates(
        ids=table.ids,
        cluster=cluster.astype(np.int64),
        cluster_size=np.bincount(cluster, minlength=1)[cluster].astype(np.int64),
        similarity=best,
        partner=partner,
        threshold=threshold,
    )


def _last(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of the last occurrence of each distinct value."""
    _, back = np.unique(values[::-1], return_index=True)
    return (len(values) - 1 - back).astype(np.int64)


def _bands(threshold: float, n_hashes: int) -> tuple[int, int]:
    """Bands, and rows in each: as many rows as still find a pair at the threshold."""
    for rows in range(n_hashes, 0, -1):
        bands = n_hashes // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return n_hashes, 1


def _signatures(
    counts: sparse.csr_array, bands: int, rows: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """MinHash signatures, each band in one 64-bit key, and a sketch of one bit from each of the first 64 hashes.

    Args:
        counts: ``(P, V)`` bags of codes, none of them empty.
        bands: How many keys.
        rows: Hashes in each.
        rng: Of the hashes.

    Returns:
        Keys ``(bands, P)``, the first hash of the first and of the last band ``(2, P)``, sketches ``(P,)``.
    """
    salt = rng.integers(0, 2**63, (bands, rows), dtype=np.uint64)
    factor = rng.integers(0, 2**63, (bands, rows), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    n = counts.shape[0]
    keys, firsts, sketch = (np.zeros(shape, np.uint64) for shape in ((bands, n), (2, n), (n,)))
    indptr = counts.indptr.astype(np.int64)
    for low in range(0, n, _BLOCK):  # a block of items stays in the cache
        high = min(low + _BLOCK, n)
        entry = slice(indptr[low], indptr[high])
        item, first = _items(counts.indices[entry], counts.data[entry])
        start = first[indptr[low:high] - indptr[low]]
        buffer = np.empty_like(item)
        for band in range(bands):
            for row in range(rows):
                # Multiplying by an odd number is a permutation modulo 2^64.
                np.bitwise_xor(item, salt[band, row], out=buffer)
                np.multiply(buffer, factor[band, row], out=buffer)
                # Scrambled, so that the bit kept depends on the hash and not on the item alone.
                lowest = scramble(np.asarray(np.minimum.reduceat(buffer, start), dtype=np.uint64))
                keys[band, low:high] = scramble(keys[band, low:high] ^ lowest)
                if row == 0 and band in (0, bands - 1):
                    firsts[-1 if band else 0, low:high] = lowest
                if band * rows + row < _SKETCH:
                    sketch[low:high] |= (lowest & np.uint64(1)) << np.uint64(band * rows + row)
    return keys, firsts, sketch


def _items(code: NDArray[np.int32], count: NDArray[np.int32]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A code that occurs k times as k different items, hashed, and where the first item of each code is."""
    ends = np.cumsum(count, dtype=np.int64)
    first = ends - count
    time = np.arange(int(ends[-1]), dtype=np.int64) - np.repeat(first, count)
    item = np.repeat(code.astype(np.uint64), count) << np.uint64(32)
    return scramble(item | time.astype(np.uint64)), first


def _candidates(
    counts: sparse.csr_array, threshold: float, n_hashes: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of patients who agree in a band and whose sketches do not tell them apart, each pair once."""
    n = counts.shape[0]
    bands, rows = _bands(threshold, n_hashes)
    keys, firsts, sketch = _signatures(counts, bands, rows, rng)
    # One hash in common gives one bit in common, any other two half a bit: fewer than this is 3.5 deviations off.
    bits, agree = min(bands * rows, _SKETCH), (1 + threshold) / 2
    fewest = bits * agree - 3.5 * np.sqrt(bits * agree * (1 - agree))
    found = [np.zeros(0, np.int64)]
    for number, key in enumerate(keys):
        # Patients of one band stand in the order of a hash of another: the likeliest pairs next to each other.
        mixed = (key & ~_LOW) | (firsts[-1 if number < bands - 1 else 0] & _LOW)
        order = np.argsort(mixed)
        band = mixed[order] & ~_LOW
        for reach in range(1, min(_REACH, n - 1) + 1):
            same = np.flatnonzero(band[reach:] == band[:-reach])
            if len(same) == 0:
                break
            left, right = order[same], order[same + reach]
            near = bits - _ones(sketch[left] ^ sketch[right]) >= fewest
            left, right = left[near], right[near]
            found.append(np.minimum(left, right) * np.int64(n) + np.maximum(left, right))
    pairs = np.sort(np.concatenate(found))
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique hashes, which takes many times as long here
    return pairs // n, pairs % n


def _ones(x: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of ones among the bits of each number (numpy has a function for it from 2.0 on)."""
    halves = np.ascontiguousarray(x).view(np.uint16).reshape(-1, 4)
    return np.asarray(_ONES[halves].sum(axis=1), dtype=np.int64)


def _jaccard(
    counts: sparse.csr_array, one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Exact similarity of each pair: sum of minima over sum of maxima."""
    size = np.asarray(counts.sum(axis=1)).reshape(-1).astype(np.float64)
    shared = np.zeros(len(one))
    for start in range(0, len(one), _CHUNK):  # bounds the memory, not the count of pairs
        part = slice(start, start + _CHUNK)
        shared[part] = np.asarray(counts[one[part]].minimum(counts[other[part]]).sum(axis=1)).reshape(-1)
    return shared / (size[one] + size[other] - shared)
