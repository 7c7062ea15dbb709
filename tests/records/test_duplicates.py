from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from memguard.errors import DataError
from memguard.records.content import Ragged, RecordContent
from memguard.records.duplicates import near_duplicates


def content(rows):
    return RecordContent.from_codes(Ragged.from_lists([list(row) for row in rows]))


def jaccard(one, other):
    one, other = Counter(one), Counter(other)
    return sum((one & other).values()) / sum((one | other).values())


def cohort(n, n_copies, noise, seed, length=24, codes=600):
    """Records of one phenotype mixture; the last ones copy the first ones, a share of their codes changed."""
    rng = np.random.default_rng(seed)
    x = rng.zipf(1.3, (n, length)) % codes
    x[n - n_copies :] = x[:n_copies]
    changed = rng.random((n_copies, length)) < noise
    x[n - n_copies :][changed] = rng.integers(0, codes, changed.sum())
    return x


def test_planted_copies_are_found_and_nobody_else():
    x = cohort(3000, 300, 0.04, seed=1)
    found = near_duplicates(
        RecordContent.from_codes(Ragged.from_lengths(x.reshape(-1), np.full(3000, 24))), range(3000)
    )
    rows = x.tolist()
    planted = [(i, 2700 + i) for i in range(300)]
    near = np.array([jaccard(rows[i], rows[j]) >= 0.8 for i, j in planted])
    together = np.array([found.cluster[i] == found.cluster[j] for i, j in planted])
    assert near.sum() > 150
    assert together[near].mean() >= 0.99
    # every pair that is reported is exact, and above the threshold
    for i in np.flatnonzero(found.partner >= 0):
        assert found.similarity[i] == pytest.approx(jaccard(rows[i], rows[found.partner[i]]))
        assert found.similarity[i] >= 0.8
    assert (found.partner[found.cluster_size == 1] == -1).all()
    assert (found.similarity[found.cluster_size == 1] == 0).all()
    assert (found.partner[found.cluster_size > 1] >= 0).all()


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
def test_against_all_pairs(threshold):
    rng = np.random.default_rng(5)
    base = [rng.integers(0, 30, rng.integers(1, 14)).tolist() for _ in range(60)]
    rows = base + [row[: len(row) - int(rng.integers(0, 3))] + [99] * int(rng.integers(0, 2)) for row in base]
    patient = rng.permutation(len(rows)).tolist()
    found = near_duplicates(content(rows), patient, threshold=threshold, min_codes=5, n_hashes=128, seed=2)
    of = dict(zip(patient, rows, strict=True))
    pairs = {
        (i, j): jaccard(of[i], of[j])
        for i in range(len(rows))
        for j in range(i)
        if len(of[i]) >= 5 and len(of[j]) >= 5 and jaccard(of[i], of[j]) >= threshold
    }
    joined = [pair for pair in pairs if found.cluster[pair[0]] == found.cluster[pair[1]]]
    assert len(joined) >= 0.95 * len(pairs) > 0
    best = np.zeros(len(rows))
    for (i, j), similarity in pairs.items():
        best[i], best[j] = max(best[i], similarity), max(best[j], similarity)
    np.testing.assert_allclose(found.similarity[found.partner >= 0], best[found.partner >= 0], atol=0.25)
    assert (np.abs(found.similarity - best) < 1e-9).mean() > 0.95
    sizes = Counter(found.cluster.tolist())
    assert found.cluster_size.tolist() == [sizes[one] for one in found.cluster.tolist()]


def test_a_large_cluster_is_found_whole():
    rng = np.random.default_rng(0)
    rows = [list(range(20))] * 500 + [rng.integers(100, 5000, 20).tolist() for _ in range(500)]
    found = near_duplicates(content(rows), [f"p{i:04d}" for i in range(1000)])
    assert (found.cluster_size[:500] == 500).all()
    assert (found.similarity[:500] == 1).all()
    assert (found.cluster_size[500:] == 1).all()
    frame = found.frame()
    assert frame["partner"].null_count() == 500
    assert frame["patient"][0] == "p0000"


def test_records_of_one_patient_count_together():
    rows = [range(5), range(5, 10), range(10), range(50, 60)]
    found = near_duplicates(content(rows), [1, 1, 2, 3])
    assert found.ids.tolist() == [1, 2, 3]
    assert found.partner.tolist() == [1, 0, -1]
    assert found.similarity.tolist() == [1.0, 1.0, 0.0]


def test_short_and_empty_records_are_near_nobody():
    found = near_duplicates(content([[1, 2], [1, 2], [], []]), range(4))
    assert found.cluster_size.tolist() == [1] * 4
    assert near_duplicates(
        content([[1, 2], [1, 2], [], []]), range(4), min_codes=0
    ).cluster_size.tolist() == [2, 2, 1, 1]
    assert len(near_duplicates(content([]), [])) == 0
    assert len(near_duplicates(content([]), []).frame()) == 0
    assert near_duplicates(content([range(9)]), [1]).cluster_size.tolist() == [1]


def test_repeats_count():
    found = near_duplicates(content([[1] * 9 + [2], [1, 2] * 5, [1] * 9 + [3]]), range(3))
    assert found.partner.tolist() == [2, -1, 0]


def test_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20)).astype(np.float32)
    x[399] = x[0]
    x[399, 3] += 5
    found = near_duplicates(RecordContent.from_features(x), range(400))
    assert found.partner[0] == 399
    assert (found.cluster_size > 1).sum() == 2


@pytest.mark.parametrize("options", [{"threshold": 0}, {"threshold": 1.1}, {"n_hashes": 0}])
def test_a_threshold_out_of_range_is_refused(options):
    with pytest.raises(DataError, match="threshold"):
        near_duplicates(content([[1]]), [1], **options)


def test_the_seed_settles_it():
    rows = cohort(500, 100, 0.1, seed=0).tolist()
    one, two = (near_duplicates(content(rows), range(500), seed=3) for _ in range(2))
    assert np.array_equal(one.partner, two.partner)
    assert np.array_equal(one.cluster, two.cluster)


def test_a_hundred_thousand_patients_take_seconds():
    x = cohort(100_000, 2000, 0.04, seed=4)
    data = RecordContent.from_codes(Ragged.from_lengths(x.reshape(-1), np.full(len(x), 24)))
    start = time.process_time()
    found = near_duplicates(data, np.arange(len(x)))
    assert time.process_time() - start < 6
    assert 0.5 < (found.cluster[:2000] == found.cluster[-2000:]).mean() <= 1
