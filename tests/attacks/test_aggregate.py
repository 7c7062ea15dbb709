"""Patient totals against a dictionary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from memguard.attacks import Estimate, by_patient
from memguard.errors import MemguardError


@pytest.mark.parametrize("named", [False, True])
def test_totals_equal_a_dictionary(named):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, size=200) * 7
    patient = np.array([f"p{i:03d}" for i in ids]) if named else ids
    nats, tokens = rng.random(200), rng.integers(1, 9, size=200)
    want = {}
    for p, a, b in zip(patient.tolist(), nats, tokens, strict=True):
        x = want.get(p, (0.0, 0, 0))
        want[p] = (x[0] + a, x[1] + b, x[2] + 1)
    got = by_patient(patient, nats, tokens)
    assert got.patient.tolist() == sorted(want)
    rows = zip(got.patient.tolist(), got.nats, got.tokens, got.records, strict=True)
    for p, a, b, c in rows:
        assert (a, b, c) == pytest.approx(want[p])
    assert got.nats_per_token == pytest.approx(got.nats / got.tokens)
    assert got.bits == pytest.approx(got.nats / math.log(2))
    assert by_patient(patient, nats).tokens.tolist() == got.records.tolist()


def test_missing_records_are_refused_or_dropped():
    nats = [1.0, math.nan, math.nan, 2.0]
    with pytest.raises(MemguardError, match="2 of 4 values in nats"):
        by_patient([1, 1, 2, 3], nats)
    got = by_patient([1, 1, 2, 3], nats, missing="drop")
    assert (got.patient.tolist(), got.records.tolist()) == ([1, 3], [1, 1])
    assert by_patient([], []).patient.shape == (0,)


def test_refuses_bad_input():
    with pytest.raises(MemguardError, match="shapes"):
        by_patient([1, 2], [1.0])
    with pytest.raises(MemguardError, match="1 negative"):
        by_patient([1, 2], [1.0, 2.0], [1, -1])
    empty = by_patient([1], [1.0], [0])
    assert np.isnan(empty.nats_per_token[0])


def test_estimate_formats():
    e = Estimate(value=math.nan, low=0.0, high=1.0, n=0, method="none")
    assert str(e) == "n/a"
    assert f"{Estimate(value=2.0, low=1.0, high=3.0, n=4, method='m'):.0f}" == "2 [1, 3]"
