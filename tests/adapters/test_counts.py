"""Counts answer as a model does, and only when they know whom to leave out."""

from __future__ import annotations

import numpy as np
import pytest
from _sequence_models import V, sequences

from memguard.adapters import CountsAdapter, ModelAdapter
from memguard.errors import AbilityError, DataError
from memguard.records.content import Ragged
from memguard.records.next_code import NextCodeCounts


def test_answers_are_those_of_the_counts_without_the_patient():
    train, patient = sequences(0, 30, 12), np.arange(30) // 3
    adapter = CountsAdapter(train, patient, vocabulary=V)
    assert (
        isinstance(adapter, ModelAdapter) and adapter.abilities == {"log_probs"} and adapter.longest is None
    )
    for one in (0, 4):
        left = NextCodeCounts(train.take(patient != one), vocabulary=V)
        own, nobody = train.take(patient == one), np.full(3, -1)
        expected = left.log_probs(own, nobody)
        expected[own.offsets[:-1][own.lengths > 0]] = np.nan
        np.testing.assert_allclose(adapter.log_probs(own, patient=np.full(3, one)), expected, atol=1e-12)
        np.testing.assert_allclose(
            adapter.next_log_probs(own, patient=np.full(3, one)), left.next_log_probs(own, nobody), atol=1e-12
        )
    assert CountsAdapter(train).vocabulary == train.values.max() + 1


def test_without_a_patient_nothing_is_said():
    adapter = CountsAdapter(sequences(0, 5, 9), vocabulary=V)
    prompt = Ragged.from_lists([[1, 2]])
    for ask in (adapter.log_probs, adapter.next_log_probs):
        with pytest.raises(AbilityError, match="no patient="):
            ask(prompt)
        with pytest.raises(DataError, match="one patient for each sequence"):
            ask(prompt, patient=np.zeros(2, np.int64))
    with pytest.raises(AbilityError):
        adapter.generate(prompt, 3)
    with pytest.raises(AbilityError):
        adapter.embed(prompt)
    assert adapter.code_vectors() is None
    with pytest.raises(DataError, match="no codes to count"):
        CountsAdapter()
    other = NextCodeCounts(sequences(1, 5, 9), vocabulary=V)
    assert adapter.of(other).counts is other
    with pytest.raises(AbilityError, match="pass NextCodeCounts"):
        adapter.of(object())
