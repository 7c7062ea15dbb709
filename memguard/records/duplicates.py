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
        one, other = _candidates(counts, *_bands(threshold, n_hashes), rng)
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


def _candidates(
    counts: sparse.csr_array, bands: int, rows: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of patients whose signatures agree in a band, each once, the lower number first."""
    n = counts.shape[0]
    # A code that occurs k times is k different items, so that sets of items are bags of codes.
    repeat = np.diff(np.concatenate([[0], np.cumsum(counts.data)]))
    item = np.repeat(counts.indices.astype(np.uint64) << np.uint64(20), repeat)
    ends = np.cumsum(repeat)
    item += (np.arange(len(item)) - np.repeat(ends - repeat, repeat)).astype(np.uint64) & np.uint64(
        (1 << 20) - 1
    )
    start = np.concatenate([[0], ends])[counts.indptr[:-1]]
    item = scramble(item)
    found: list[NDArray[np.int64]] = []
    buffer = np.empty_like(item)
    tie = _lowest(item, start, rng, buffer)
    for _ in range(bands):
        key = np.zeros(n, np.uint64)
        for _ in range(rows):
            key = scramble(key ^ _lowest(item, start, rng, buffer))
        order = np.lexsort((tie, key))
        sorted_key = key[order]
        for reach in range(1, _REACH + 1):
            same = np.flatnonzero(sorted_key[reach:] == sorted_key[:-reach])
            if len(same) == 0:
                break
            left, right = order[same], order[same + reach]
            found.append(np.minimum(left, right) * np.int64(n) + np.maximum(left, right))
    pairs = np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique hashes, which takes many times as long here
    return pairs // n, pairs % n


def _lowest(
    item: NDArray[np.uint64], start: NDArray[np.int64], rng: np.random.Generator, buffer: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """The smallest of each patient's items in a new random order of all items."""
    salt, factor = (np.uint64(one) for one in rng.integers(0, 2**63, 2))
    np.bitwise_xor(item, salt, out=buffer)
    np.multiply(buffer, factor * np.uint64(2) + np.uint64(1), out=buffer)  # odd: nothing is lost, modulo 2^64
    return np.asarray(np.minimum.reduceat(buffer, start), dtype=np.uint64)


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
