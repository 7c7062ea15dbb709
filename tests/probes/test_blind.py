"""The blind baseline is at chance on a random split and sees a shift; it never recognises a patient."""

from __future__ import annotations

import time

import numpy as np
import pytest

from memguard.errors import HeldOutError, MemguardError, PatientOverlapError
from memguard.probes.blind import blind_baseline
from memguard.records.content import Ragged, RecordContent

VOCABULARY = 400


def cohort(rng, patients, records=1, *, shift=0.0, length=25, swap=False):
    """Sequences with a taste of their own per patient; ``shift`` changes how common the codes are."""
    base = 1.0 / np.arange(1, VOCABULARY + 1)
    base *= np.exp(shift * np.random.default_rng(99).normal(size=VOCABULARY))
    patient = np.repeat(np.arange(patients), records)
    lengths = rng.poisson(length, len(patient)) + 2
    codes = rng.choice(VOCABULARY, size=lengths.sum(), p=base / base.sum())
    owner = np.repeat(patient, lengths)
    taste = rng.integers(0, VOCABULARY, (patients, 4))
    own = rng.random(len(codes)) < 0.4
    codes[own] = taste[owner[own], rng.integers(0, 4, own.sum())]
    if swap:  # same codes, other order: only pairs of neighbours tell
        codes = np.concatenate([np.sort(r) for r in np.split(codes, np.cumsum(lengths)[:-1])])
    return RecordContent.from_codes(Ragged.from_lengths(codes, lengths)), patient


@pytest.mark.parametrize(("members", "held_out", "records"), [(300, 100, 1), (150, 60, 4)])
def test_covers_one_half_on_random_splits(members, held_out, records):
    covered = above = 0
    runs = 40
    for seed in range(runs):
        content, patient = cohort(np.random.default_rng(seed), members + held_out, records)
        inside = patient < members
        e = blind_baseline(
            content.take(inside), content.take(~inside), patient[inside], patient[~inside], seed=seed
        )
        covered += e.covers(0.5)
        above += e.low > 0.5
        assert e.n == members + held_out
    assert covered / runs >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / runs)
    assert above / runs <= 0.025 + 2 * np.sqrt(0.025 / runs)


@pytest.mark.parametrize("kind", ["period", "order", "length"])
def test_sees_another_period_order_or_length(kind):
    rng = np.random.default_rng(1)
    change = {"period": {"shift": 0.6}, "order": {"swap": True}, "length": {"length": 40}}[kind]
    a, pa = cohort(rng, 600)
    b, pb = cohort(rng, 200, **change)
    e = blind_baseline(a, b, pa, 600 + pb)
    assert e.low > 0.55


def test_features_their_squares_gaps_and_labels():
    rng = np.random.default_rng(2)
    ids = np.arange(400), 400 + np.arange(300)

    def run(x, z, y=None, v=None):
        return blind_baseline(RecordContent.from_features(x, y), RecordContent.from_features(z, v), *ids)

    x, z = rng.normal(size=(400, 20)), rng.normal(size=(300, 20))
    assert run(x, z).covers(0.5)
    assert run(x, z + 0.3).low > 0.6
    assert run(x, 2 * z).low > 0.6
    gaps = np.where(rng.random(z.shape) < 0.3, np.nan, z)
    assert run(x, gaps).low > 0.6
    assert run(x, z, rng.random(400) < 0.2, rng.random(300) < 0.7).low > 0.6
    wide = rng.normal(size=(700, 6000)).astype(np.float32)
    assert 0.3 < run(wide[:400], wide[400:]).value < 0.7


def test_only_observed_records_count_and_the_draw_is_capped():
    rng = np.random.default_rng(3)
    a, pa = cohort(rng, 300)
    b, pb = cohort(rng, 300)
    seen = np.arange(300) < 120
    half = RecordContent.from_codes(b.codes, seen)
    assert blind_baseline(a, half, pa, 300 + pb).n == 420
    assert blind_baseline(a, b, pa, 300 + pb, max_records=200).n == 200
    same = blind_baseline(a, b, [f"a{i:03d}" for i in pa], [f"b{i:03d}" for i in pb], seed=4)
    assert same == blind_baseline(a, b, pa, 1000 + pb, seed=4)


def test_four_thousand_records_are_quick():
    rng = np.random.default_rng(4)
    (a, pa), (b, pb) = cohort(rng, 6000), cohort(rng, 2500)
    start = time.process_time()
    e = blind_baseline(a, b, pa, 6000 + pb)
    assert time.process_time() - start < 1.0  # bar .3 s; slack for a busy machine
    assert e.n == 4000


def test_refuses_bad_input():
    rng = np.random.default_rng(5)
    (a, pa), (b, pb) = cohort(rng, 30), cohort(rng, 30)
    with pytest.raises(PatientOverlapError, match="30 of 30"):
        blind_baseline(a, b, pa, pb)
    with pytest.raises(MemguardError, match="ids for 30 records"):
        blind_baseline(a, b, pa[:5], pb + 30)
    with pytest.raises(HeldOutError, match="3 patients with observed records among the held-out"):
        blind_baseline(a, b.take([0, 1, 2]), pa, pb[:3] + 30)
    features = RecordContent.from_features(np.zeros((30, 2)))
    with pytest.raises(MemguardError, match="codes for members and features"):
        blind_baseline(a, features, pa, pb + 30)
    with pytest.raises(MemguardError, match="2 features for members and 3"):
        blind_baseline(features, RecordContent.from_features(np.zeros((30, 3))), pa, pb + 30)
    with pytest.raises(MemguardError, match="folds"):
        blind_baseline(a, b, pa, pb + 30, folds=1)
    nothing = RecordContent.from_codes(b.codes, np.zeros(30, bool))
    with pytest.raises(HeldOutError, match="0 patients"):
        blind_baseline(a, nothing, pa, pb + 30)
