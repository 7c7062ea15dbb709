"""Counts without the patient are the counts of a data set without the patient."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from memguard.errors import DataError
from memguard.records.content import Ragged
from memguard.records.next_code import NextCodeCounts
from memguard.records.ngram import ngram_features

V = 9


def records(seed: int, n: int, longest: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, rng.integers(0, longest + 1)).tolist() for _ in range(n)]


def before(row: list[int], t: int, k: int) -> tuple:
    return tuple(row[t - lag] if t >= lag else "start" for lag in range(1, k + 1))


def naive(train: list[list[int]], context: list[int], order: int) -> np.ndarray:
    """The interpolated n-gram by dictionaries, one context at a time."""
    p = np.full(V, 0.5)
    for row in train:
        for code in row:
            p[code] += 1
    p /= p.sum()
    for k in range(1, order):
        here = before(context, len(context), k)
        following = Counter(row[t] for row in train for t in range(len(row)) if before(row, t, k) == here)
        joint = np.array([following[v] for v in range(V)])
        p = (joint + 5.0 * p) / (joint.sum() + 5.0)
    return np.log(p)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_leaving_a_patient_out_equals_counting_the_others(order):
    train, rng = records(0, 40), np.random.default_rng(1)
    patient = rng.integers(0, 12, 40) * 7 + 3  # several records a patient, ids that are not positions
    asked = [*train[:15], *records(2, 5), [], [8]]
    who = np.array([*patient[:15], 1, 1, -1, patient[3], patient[4], patient[0], patient[1]])
    counts = NextCodeCounts(Ragged.from_lists(train), patient, vocabulary=V, order=order)
    ours, whole = (
        counts.log_probs(Ragged.from_lists(asked), who),
        counts.next_log_probs(Ragged.from_lists(asked), who),
    )
    expected = []
    for row, one, found in zip(asked, who, whole, strict=True):
        others = [r for r, p in zip(train, patient, strict=True) if p != one]
        expected += [naive(others, row[:t], order)[row[t]] for t in range(len(row))]
        np.testing.assert_allclose(found, naive(others, row, order), atol=1e-12)
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    np.testing.assert_allclose(np.logaddexp.reduce(whole, 1), 0, atol=1e-12)


def test_it_is_the_trigram_of_the_surrogate():
    train, held_out = records(3, 60), records(4, 20)
    train[0] = [V - 1, 2]  # the features count as many codes as they see
    patient = np.arange(60) // 2
    a, b = Ragged.from_lists(train), Ragged.from_lists(held_out)
    inside, outside, names = ngram_features(a, patient, b)
    counts = NextCodeCounts(a, patient, vocabulary=V)
    for codes, who, feature in ((a, patient, inside), (b, np.full(20, -1), outside)):
        surprise = -counts.log_probs(codes, who)
        full = codes.lengths > 0
        means = np.bincount(codes.rows, surprise, len(codes))[full] / codes.lengths[full]
        np.testing.assert_allclose(means, feature[full, names.index("trigram")], atol=1e-12)


def test_what_cannot_be_counted_is_refused():
    codes = Ragged.from_lists([[1, 2], [3]])
    with pytest.raises(DataError, match="no codes to count"):
        NextCodeCounts(Ragged.from_lists([[]]))
    with pytest.raises(DataError, match=r"codes from 0 to 3 for a vocabulary of 3"):
        NextCodeCounts(codes, vocabulary=3)
    for patient in ([0], [0.0, 1.0], ["a", "b"]):
        with pytest.raises(DataError, match="one integer for each sequence"):
            NextCodeCounts(codes, patient)
    counts = NextCodeCounts(codes)
    with pytest.raises(DataError, match="codes from 0 to 4"):
        counts.log_probs(Ragged.from_lists([[4]]), np.array([0]))
    with pytest.raises(DataError, match="codes from -1"):
        counts.next_log_probs(Ragged.from_lists([[-1]]), np.array([0]))
    with pytest.raises(DataError, match="one patient for each sequence"):
        counts.log_probs(codes, np.array([0]))


def test_many_codes():
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 60, 5000)
    codes = Ragged.from_lengths(rng.zipf(1.3, lengths.sum()) % 8000, lengths)
    counts = NextCodeCounts(codes, vocabulary=8000)
    who = np.arange(5000)
    own, without = counts.log_probs(codes, np.full(5000, -1)), counts.log_probs(codes, who)
    assert without.mean() < own.mean() - 0.3  # what a patient's own record says about it
    prompts = codes.take(np.arange(50))
    after = counts.next_log_probs(prompts, who[:50])
    np.testing.assert_allclose(np.logaddexp.reduce(after, 1), 0, atol=1e-10)
