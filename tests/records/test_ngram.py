"""The n-gram features against a naive oracle that really leaves each patient out."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from memguard.errors import DataError
from memguard.records.content import Ragged
from memguard.records.ngram import ngram_features

START = None


def naive(rows: list[list[int]], others: list[list[int]], size: int) -> dict[str, list[float]]:
    """Features of ``rows`` under counts over ``others``, code by code."""
    counts: dict[str, Counter] = {key: Counter() for key in ("1", "c1", "2", "c2", "3", "cs", "s")}
    for row in others:
        padded = [START, START, *row]
        for i, code in enumerate(row, start=2):
            a, b = padded[i - 2], padded[i - 1]
            for key, gram in (("1", code), ("c1", b), ("2", (b, code)), ("c2", (a, b)), ("3", (a, b, code))):
                counts[key][gram] += 1
            counts["cs"][a] += 1
            counts["s"][a, code] += 1
    total = sum(counts["1"].values())
    out: dict[str, list[float]] = {}
    for row in rows:
        padded = [START, START, *row]
        each: dict[str, list[float]] = {}
        for i, code in enumerate(row, start=2):
            a, b = padded[i - 2], padded[i - 1]
            p1 = (counts["1"][code] + 0.5) / (total + 0.5 * size)
            p2 = (counts["2"][b, code] + 5 * p1) / (counts["c1"][b] + 5)
            p3 = (counts["3"][a, b, code] + 5 * p2) / (counts["c2"][a, b] + 5)
            skip = (counts["s"][a, code] + 5 * p1) / (counts["cs"][a] + 5)
            new = code not in row[: i - 2]
            values = {
                "unigram": -np.log(p1),
                "bigram": -np.log(p2),
                "trigram": -np.log(p3),
                "lag2": -np.log(skip),
                "new_codes": float(new),
                "new_surprise": -np.log(p1) * new,
            }
            for name, value in values.items():
                each.setdefault(name, []).append(value)
        each["log_length"] = [np.log1p(len(row))]
        for name, value in each.items():
            out.setdefault(name, []).append(float(np.mean(value)))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_against_the_naive_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 9, rng.integers(1, 8)).tolist() for _ in range(40)]
    held = [rng.integers(0, 11, rng.integers(1, 8)).tolist() for _ in range(10)]
    patient = rng.integers(0, 15, 40)
    x, y, names = ngram_features(Ragged.from_lists(rows), patient, Ragged.from_lists(held), lags=2)
    size = 1 + max(code for row in rows + held for code in row)
    expected = naive(held, rows, size)
    for column, name in enumerate(names):
        assert np.allclose(y[:, column], expected[name]), name
    for i, row in enumerate(rows):
        others = [other for other, p in zip(rows, patient, strict=True) if p != patient[i]]
        alone = naive([row], others, size)
        for column, name in enumerate(names):
            assert np.isclose(x[i, column], alone[name][0]), (name, i)


def test_a_patient_does_not_vouch_for_itself() -> None:
    rng = np.random.default_rng(0)
    common = [rng.integers(0, 5, 6).tolist() for _ in range(50)]
    strange = [[90, 91, 92, 93]] * 4
    codes = Ragged.from_lists(common + strange)
    joined = ngram_features(codes, [*range(50), 50, 50, 50, 50], codes.take([0]))[0]
    apart = ngram_features(codes, None, codes.take([0]))[0]
    assert np.all(joined[50:, 1] > apart[50:, 1] + 1)


def test_keys_too_large_for_one_word_are_renumbered() -> None:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 40, size=(60, 6))
    large = small * 50_000_000 + 3  # three codes and a patient do not fit in 64 bits
    a = ngram_features(Ragged.from_padded(small), None, Ragged.from_padded(small[:9]))
    b = ngram_features(Ragged.from_padded(large), None, Ragged.from_padded(large[:9]))
    # The size of the vocabulary enters the smoothing alone; the order by any feature stays.
    for column in range(4):
        rank_a, rank_b = (np.argsort(np.argsort(f[0][:, column])) for f in (a, b))
        assert np.corrcoef(rank_a, rank_b)[0, 1] > 0.9


def test_blocks_are_populations_of_their_own_and_keep_patients_together() -> None:
    rng = np.random.default_rng(2)
    codes = Ragged.from_lists([np.minimum(rng.geometric(0.3, 6), 12).tolist() for _ in range(400)])
    patient = rng.integers(0, 150, 400)
    whole = ngram_features(codes, patient, codes.take(np.arange(80)))
    parts = ngram_features(codes, patient, codes.take(np.arange(80)), block=700)
    assert parts[2] == whole[2]
    assert np.isfinite(parts[0]).all()
    assert np.corrcoef(parts[0][:, 0], whole[0][:, 0])[0, 1] > 0.9
    assert abs(parts[0][:, 1].mean() - parts[1][:, 1].mean()) < 0.2  # both sides from blocks of one size
    copies = Ragged.from_lists([[1, 2, 3]] * 60 + [[k, k + 1, k + 2] for k in range(10, 70)])
    one = np.array([0] * 60 + list(range(1, 61)))
    assert np.all(ngram_features(copies, one, copies.take([0]), block=60)[0][:60, 1] > 3)


def test_empty_records_and_bad_input() -> None:
    codes = Ragged.from_lists([[1, 2], [], [3]])
    x, y, _ = ngram_features(codes, None, Ragged.from_lists([[], [7]]))
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()
    with pytest.raises(DataError, match="one patient per record"):
        ngram_features(codes, [0, 1], codes)
    with pytest.raises(DataError, match="negative"):
        ngram_features(Ragged.from_lists([[-1]]), None, codes)
    with pytest.raises(DataError, match="no codes"):
        ngram_features(Ragged.from_lists([[]]), None, codes)


def test_time_grows_linearly() -> None:
    rng = np.random.default_rng(0)

    def seconds(n: int) -> float:
        codes = Ragged.from_lengths(rng.integers(0, 300, n * 16).astype(np.int32), np.full(n, 16))
        began = time.process_time()
        ngram_features(codes, None, codes.take(np.arange(100)))
        return time.process_time() - began

    seconds(2000)
    assert seconds(40_000) < 80 * seconds(2000) + 2
