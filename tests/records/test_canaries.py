"""Canaries: plausible, never a copy, secrets drawn alike, coins that are fair, a file that keeps all of it."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from memguard.attacks import epsilon_one_run, exposure
from memguard.errors import DataError
from memguard.records import Ragged
from memguard.records._canary_draws import secrets
from memguard.records.canaries import (
    Canaries,
    FeatureCanaries,
    coin_flips,
    make_canaries,
    make_feature_canaries,
)

NAMES = [
    "PAD",
    "AGE//30-40",
    "AGE//40-50",
    "GENDER//F",
    "GENDER//M",
    "GAP//1-7",
    *(f"LAB//{i}" for i in range(60)),
]
FIRST = 6


def _records(n: int = 80, seed: int = 0) -> Ragged:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        events = FIRST + np.minimum(rng.geometric(0.08, rng.integers(8, 20)), 60) - 1
        gaps = np.where(rng.random(len(events)) < 0.3, 5, 0)
        body = np.column_stack([gaps, events]).ravel()
        rows.append([int(rng.integers(1, 3)), int(rng.integers(3, 5)), *body[body > 0].tolist()])
    return Ragged.from_lists(rows)


RECORDS = _records()


def test_what_a_canary_is_made_of():
    made = make_canaries(RECORDS, 40, names=NAMES, n_alternatives=9, seed=3)
    assert len(made) == 40 and made.n_alternatives == 9
    carriers = np.array([len({i for i in range(80) if t in RECORDS[i]}) for t in range(66)])
    rare = np.flatnonzero((carriers > 0) & (np.arange(66) >= FIRST))
    rare = set(rare[np.argsort(carriers[rare], kind="stable")[:64]].tolist())
    members = {RECORDS[i].tobytes() for i in range(80)}
    for i in range(40):
        row, (who, one, other) = made.sequences[i], made.donor[i]
        np.testing.assert_array_equal(row[:2], RECORDS[who][:2])
        assert len(row) == len(RECORDS[other])  # both prefixes are two long
        at, body = made.place[i], len(row) - 2
        assert np.all(np.diff(at) > 0) and np.all(at >= 2 + body // 2)
        assert set(made.secret[i].tolist()) <= rare and len(set(made.secret[i].tolist())) == 3
        left = np.setdiff1d(np.arange(2, len(row)), at)
        shorter = min(len(RECORDS[one]), len(RECORDS[other])) - 2

        def source(p: int, cut: int, one=one, other=other) -> int:
            return int(RECORDS[one if p - 2 < cut else other][p])

        cuts = [cut for cut in range(1, shorter) if all(row[p] == source(p, cut) for p in left)]
        assert cuts, "the events are not those of the two donors"
        assert row.tobytes() not in members
    assert len({made.sequences[i].tobytes() for i in range(40)}) == 40


def test_alternatives_differ_in_the_secret_alone_and_come_once():
    made = make_canaries(RECORDS, 12, names=NAMES, n_alternatives=30)
    every = made.alternatives()
    assert len(every) == 360
    for i in range(12):
        secrets_of = {tuple(made.secret[i].tolist())}
        for j in range(30):
            other = every[30 * i + j]
            differ = np.flatnonzero(other != made.sequences[i])
            assert set(differ.tolist()) <= set(made.place[i].tolist())
            secrets_of.add(tuple(other[made.place[i]].tolist()))
        assert len(secrets_of) == 31
    some = made.alternatives([5, 2])
    np.testing.assert_array_equal(some.take(np.arange(30)).values, every.take(np.arange(150, 180)).values)


def test_every_secret_is_equally_likely():
    first, rest = np.array([50, 51]), np.arange(4)
    space = {(a, *b) for a in (50, 51) for b in permutations(range(4), 2)}
    drawn = secrets(first, rest, 3, len(space), np.random.default_rng(0))
    assert set(map(tuple, drawn.tolist())) == space
    rng = np.random.default_rng(1)
    counts = dict.fromkeys(space, 0)
    for _ in range(4000):
        counts[tuple(secrets(first, rest, 3, 1, rng)[0].tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_large_spaces_draw_no_secret_twice():
    drawn = secrets(np.zeros(0, np.int64), np.arange(200), 6, 3000, np.random.default_rng(0))
    assert len(np.unique(drawn, axis=0)) == 3000
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    assert stats.chisquare(np.bincount(drawn[:, 4], minlength=200)).pvalue > 1e-3


def test_a_sensitive_code_in_each():
    made = make_canaries(RECORDS, 20, names=NAMES, sensitive=[40, 41], planted=2, n_alternatives=5)
    assert np.isin(made.secret[:, 0], [40, 41]).all() and not np.isin(made.secret[:, 1], [40, 41]).any()
    assert np.isin(made.others[..., 0], [40, 41]).all()
    assert made.space == 2 * len(set(range(FIRST, 66)) & set(RECORDS.values.tolist()) - {40, 41})


def test_events_code_by_code_hold_no_piece_of_a_record():
    made = make_canaries(RECORDS, 200, names=NAMES, events="codes", planted=1, n_alternatives=0, n_rare=4)
    assert np.all(made.donor[:, 1:] == -1)
    secret = (made.sequences.offsets[:-1, None] + made.place).ravel()
    own = np.delete(made.sequences.values, secret)
    share = np.mean(own == 5) / np.mean(RECORDS.values == 5)
    assert 0.9 < share < 1.25  # gaps come as often as they do; the secret takes the place of events
    np.testing.assert_allclose(made.sequences.lengths.mean(), RECORDS.lengths.mean(), rtol=0.1)


def test_coins_are_fair_seeded_and_of_their_own():
    assert stats.binomtest(int(coin_flips(10_000, 5).sum()), 10_000).pvalue > 1e-3
    a, b = (make_canaries(RECORDS, 30, names=NAMES, planted=p, seed=8) for p in (2, 3))
    np.testing.assert_array_equal(a.included, b.included)
    again = make_canaries(RECORDS, 30, names=NAMES, planted=3, seed=8)
    np.testing.assert_array_equal(again.sequences.values, b.sequences.values)
    np.testing.assert_array_equal(b.planted[0], b.sequences[int(np.flatnonzero(b.included)[0])])
    assert len(b.planted) == b.included.sum()


def test_a_file_for_the_owner_alone(tmp_path):
    made = make_canaries(RECORDS, 10, names=NAMES, n_alternatives=4)
    path = made.save(tmp_path / "deep" / "canaries.npz")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["canaries.npz"]
    back = Canaries.load(path)
    for name in ("included", "place", "secret", "others", "donor"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    np.testing.assert_array_equal(back.sequences.values, made.sequences.values)
    assert (back.space, back.seed) == (made.space, made.seed)
    assert made.save(path) == path  # the same ones again, as when a run is resumed
    with pytest.raises(DataError, match="other canaries"):
        make_canaries(RECORDS, 10, names=NAMES, n_alternatives=4, seed=1).save(path)
    with pytest.raises(DataError, match="not canaries of features"):
        FeatureCanaries.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        Canaries.load(tmp_path / "none.npz")
    (tmp_path / "no.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        Canaries.load(tmp_path / "no.npz")


def test_scores_for_the_bound_and_losses_for_exposure():
    made = make_canaries(RECORDS, 300, names=NAMES, n_alternatives=20)
    rng = np.random.default_rng(0)
    difficulty = rng.normal(60, 15, 300)
    other = difficulty[:, None] + rng.normal(0, 1, (300, 20))
    loss = difficulty + rng.normal(0, 1, 300) - 6 * made.included
    with_others = epsilon_one_run(made.scores(loss, other), made.included, delta=1e-5).epsilon
    assert with_others > 2 > epsilon_one_run(-loss, made.included, delta=1e-5).epsilon
    found = exposure(loss, other, space=made.space).value
    assert found[made.included].mean() > 4 and abs(found[~made.included].mean() - 1.44) < 0.4
    np.testing.assert_allclose(made.scores(loss, other.ravel()), made.scores(loss, other))
    with pytest.raises(DataError, match="300 canaries with 20"):
        made.scores(loss, other[:, :3])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"m": 0}, "m = 0"),
        ({"planted": 0}, "planted = 0"),
        ({"events": "words"}, "'words'"),
        ({"planted": 30}, "records with 60 events"),
        ({"rare": [7, 8], "planted": 2}, "2 equally likely secrets"),
        ({"rare": [7, 8]}, "2 rare tokens for secrets of 3"),
        ({"rare": [1, 7, 8, 9]}, "some are no events"),
        ({"sensitive": [900]}, "some are no events"),
        ({"sensitive": []}, "empty sensitive="),
        ({"static": [1, 2]}, "static of shape"),
    ],
)
def test_bad_input(change, said):
    given = {"m": 10, "names": NAMES, "n_alternatives": 10, **change}
    with pytest.raises(DataError, match=said):
        make_canaries(RECORDS, given.pop("m"), **given)


def test_copies_are_never_given_out():
    # Three records of two codes: whatever is planted, some draws are copies, and few sequences are possible.
    few = Ragged.from_lists([[1, 1], [1, 2], [2, 1], [2, 2]])
    with pytest.raises(DataError, match="no canary"):
        make_canaries(few, 1, planted=1, n_alternatives=0)


def test_arrays_that_do_not_fit_are_refused():
    made = make_canaries(RECORDS, 5, names=NAMES, n_alternatives=2)
    parts = {name: getattr(made, name) for name in made.__dataclass_fields__}
    with pytest.raises(DataError, match="included of shape"):
        Canaries(**{**parts, "included": made.included[:3]})
    with pytest.raises(DataError, match="not where it should be"):
        Canaries(**{**parts, "secret": made.secret + 1})


X = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)


def test_mislabelled_rows():
    made = make_feature_canaries(X, Y, m=50, n_alternatives=100, seed=2)
    np.testing.assert_array_equal(made.x, X[made.donor])
    assert np.all(made.y == 1 - Y[made.donor]) and len(set(made.donor.tolist())) == 50
    assert made.x.dtype == np.float32 and made.y.dtype == np.int64 and made.other_x.shape == (100, 5)
    np.testing.assert_array_equal(made.included, coin_flips(50, 2))
    assert made.content().x.shape == (50, 5)


def test_shuffled_rows_keep_each_column_and_break_what_goes_together():
    x = np.column_stack([X[:, 0], X[:, 0] * 2]).reshape(400, 2, 1)
    made = make_feature_canaries(x, m=200, kind="shuffled", n_alternatives=100)
    assert made.x.shape == (200, 2, 1) and made.y.size == 0 and np.all(made.donor == -1)
    assert np.isin(made.x[:, 0, 0], x[:, 0, 0]).all()
    assert abs(np.corrcoef(made.x[:, 0, 0], made.x[:, 1, 0])[0, 1]) < 0.25
    assert np.corrcoef(x[:, 0, 0], x[:, 1, 0])[0, 1] > 0.99


def test_features_in_a_file(tmp_path):
    made = make_feature_canaries(X, Y, m=20, n_alternatives=10)
    back = FeatureCanaries.load(made.save(tmp_path / "f.npz"))
    for name in ("x", "y", "included", "other_x", "other_y", "donor"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))
    assert (back.kind, back.seed) == (made.kind, made.seed)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": X, "y": Y, "m": 300}, "555 rows are given a label"),
        ({"x": X, "m": 3}, "0 different labels"),
        ({"x": X, "y": np.zeros(400), "m": 3}, "1 different labels"),
        ({"x": X, "y": Y[:3], "m": 3}, "labels of shape"),
        ({"x": X, "y": Y, "m": 3, "kind": "noise"}, "'noise'"),
        ({"x": np.zeros((50, 2)), "m": 3, "kind": "shuffled", "n_alternatives": 0}, "no copies"),
    ],
)
def test_bad_tables(given, said):
    with pytest.raises(DataError, match=said):
        make_feature_canaries(**given)
