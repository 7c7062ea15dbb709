"""Ragged sequences and the store that gathers them from batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard.errors import DataError
from memguard.records.content import ContentStore, Ragged, RecordContent, in_common


def random_rows(rng: np.random.Generator, n: int) -> list[list[int]]:
    return [rng.integers(0, 50, size=rng.integers(0, 7)).tolist() for _ in range(n)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-5, 90), max_size=6), max_size=12))
def test_padded_round_trip(rows: list[list[int]]) -> None:
    width = max((len(row) for row in rows), default=0)
    tokens = np.full((len(rows), width), -100)
    mask = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    ragged = Ragged.from_padded(tokens, mask)
    assert [ragged[i].tolist() for i in range(len(ragged))] == rows


def test_take_concat_against_lists() -> None:
    rng = np.random.default_rng(3)
    left, right = random_rows(rng, 20), random_rows(rng, 15)
    joined = Ragged.concat([Ragged.from_lists(left), Ragged.from_lists(right)])
    rows = left + right
    pick = rng.integers(0, 35, size=60)
    assert [joined.take(pick)[i].tolist() for i in range(60)] == [rows[j] for j in pick]
    keep = rng.random(35) < 0.5
    assert joined.take(keep).lengths.tolist() == [len(rows[j]) for j in np.flatnonzero(keep)]
    assert joined.rows.tolist() == [i for i, row in enumerate(rows) for _ in row]


@pytest.mark.parametrize("offsets", [[1, 2], [0, 3], [0, 2, 1, 2], []])
def test_bad_offsets_are_refused(offsets: list[int]) -> None:
    with pytest.raises(DataError):
        Ragged(np.arange(2, dtype=np.int32), np.asarray(offsets, dtype=np.int64))


def test_codes_beyond_32_bits_are_refused() -> None:
    with pytest.raises(DataError, match="32 bits"):
        Ragged.from_lists([[2**40]])


@pytest.mark.parametrize("known", [True, False])
def test_store_first_observation_wins(known: bool) -> None:
    rng = np.random.default_rng(0)
    store = ContentStore(40 if known else None)
    first: dict[int, list[int]] = {}
    for _ in range(30):
        positions = rng.integers(0, 40, size=9)
        lengths = rng.integers(1, 6, size=9)
        codes = rng.integers(0, 99, size=(9, 5))
        store.add(positions, codes=codes, mask=np.arange(5) < lengths[:, None])
        for b, position in enumerate(positions.tolist()):
            first.setdefault(position, codes[b, : lengths[b]].tolist())
    content = store.content()
    assert content.codes is not None
    assert store.n_observed == len(first)
    assert np.flatnonzero(content.observed).tolist() == sorted(first)
    assert all(content.codes[i].tolist() == first.get(i, []) for i in range(len(content)))


def test_store_features_and_labels() -> None:
    store = ContentStore(4)
    store.add([3, 1], x=np.arange(12.0).reshape(2, 2, 3), y=[1, 0])
    assert not store.complete
    store.add([0, 2, 3], x=np.ones((3, 2, 3)), y=[1, 1, 0])
    content = store.content()
    assert store.complete
    assert content.kind == "features"
    assert content.x is not None
    assert content.y is not None
    assert content.x.shape == (4, 6)
    assert content.x.dtype == np.float32
    assert content.y.tolist() == [1, 0, 1, 1]
    assert content.x[3].tolist() == [0, 1, 2, 3, 4, 5]
    part = content.take([3, 0])
    assert part.y is not None
    assert part.y.tolist() == [1, 1]


def test_store_refuses_what_it_cannot_place() -> None:
    store = ContentStore(2)
    with pytest.raises(DataError, match="position"):
        store.add([2], codes=[[1]])
    with pytest.raises(DataError, match="one row per position"):
        store.add([0, 1], codes=[[1]])
    with pytest.raises(DataError, match="one row per position"):
        store.add([0])
    store.add([0], codes=[[1]])
    with pytest.raises(DataError, match="one kind"):
        store.add([1], x=[[1.0]])
    with pytest.raises(DataError, match="no batch"):
        ContentStore(2).content()
    with pytest.raises(DataError, match="mask"):
        Ragged.from_padded([[1, 2]], [[1]])


def test_ids_of_a_million_records_are_stored_linearly() -> None:
    n, width, batch = 200_000, 8, 10_000
    codes = np.random.default_rng(0).integers(0, 500, size=(n, width), dtype=np.int32)
    store = ContentStore(n)
    for start in range(0, n, batch):
        store.add(np.arange(start, start + batch), codes=codes[start : start + batch])
    content = store.content()
    assert content.codes is not None
    assert content.codes.values.nbytes == 4 * n * width
    assert np.array_equal(content.codes.values, codes.reshape(-1))


def test_record_content_lengths() -> None:
    content = RecordContent.from_features([[1.0], [2.0]], [0, 1])
    assert len(content) == 2
    assert content.take(np.array([True, False])).x is not None


# -- features of batches that are not alike ---

AGE, LABS, SEEN = ("age", ()), ("labs", (2,)), ("seen", (1,))


def test_entries_that_some_batches_lack_are_left_out() -> None:
    store = ContentStore(4)
    store.add([0], x=[[50, 1, 2, 9]], columns=(AGE, LABS, SEEN))
    store.add([3, 1], x=[[3, 4, 60], [5, 6, 70]], columns=(LABS, AGE))
    content = store.content()
    assert content.columns == (AGE, LABS)
    assert content.x is not None
    assert content.x.tolist() == [[50, 1, 2], [70, 5, 6], [0, 0, 0], [60, 3, 4]]
    assert content.take([1, 0]).columns == content.columns


def test_entries_padded_to_the_longest_record_of_their_batch_are_filled_up() -> None:
    rng = np.random.default_rng(0)
    lengths, store, other = [3, 5, 1], ContentStore(6), ContentStore(6)
    whole = np.zeros((6, 5, 2), dtype=np.float32)
    for k, length in enumerate(lengths):
        part = rng.normal(size=(2, length, 2)).astype(np.float32)
        whole[2 * k : 2 * k + 2, :length] = part
        ages = np.full((2, 1), k)
        store.add(
            [2 * k, 2 * k + 1],
            x=np.concatenate([part.reshape(2, -1), ages], 1),
            columns=(("labs", (length, 2)), AGE),
        )
    other.merge(store.payload())
    for content in (store.content(), other.content()):
        assert content.columns == (("labs", (5, 2)), AGE)
        assert content.x is not None
        assert np.array_equal(content.x[:, :10], whole.reshape(6, -1))
        assert content.x[:, 10].tolist() == [0, 0, 1, 1, 2, 2]


def test_features_of_unnamed_columns_have_one_width() -> None:
    store = ContentStore(4)
    store.add([0], x=[[1, 2]])
    for columns in (None, (AGE, LABS)):
        with pytest.raises(DataError, match="3 features after one with 2"):
            store.add([1], x=[[1, 2, 3]], columns=columns)
    store.add([1], x=[[3, 4]], columns=(LABS,))
    assert store.content().columns is None
    with pytest.raises(DataError, match="for another"):
        ContentStore(1).add([0], x=[[1, 2]], columns=(AGE,))
    named = ContentStore(2)
    named.add([0], x=[[1, 2]], columns=(LABS,))
    with pytest.raises(DataError, match="3 features after one with 2"):
        named.add([1], x=[[1, 2, 3]])
    with pytest.raises(DataError, match="3 features after one with 2"):
        named.merge(
            [{"positions": np.array([1]), "x": np.ones((1, 3)), "codes": None, "y": None, "columns": None}]
        )


def test_labels_that_are_no_property_of_the_record_are_none() -> None:
    store = ContentStore(5)  # of a contrastive loss: one column for each record of the batch
    store.add([0, 1, 2], x=np.ones((3, 1)), y=np.eye(3))
    store.add([3, 4], x=np.ones((2, 1)), y=np.eye(2))
    assert store.content().y is None
    some = ContentStore(2)
    some.add([1], x=[[1.0]])
    some.add([0], x=[[2.0]], y=[7])
    merged = ContentStore(2)
    merged.merge(some.payload())
    assert some.content().y is None
    assert merged.content().y is None
    assert merged.payload()[1]["y"].tolist() == [7]


def test_both_sides_have_the_same_columns() -> None:
    ours, theirs = ContentStore(1), ContentStore(1)
    ours.add([0], x=[[1, 2, 3, 4]], columns=(AGE, LABS, SEEN))
    theirs.add([0], x=[[7, 8]], columns=(("labs", (1,)), AGE))
    found = in_common(ours.content(), theirs.content())
    assert [side.columns for side in found] == [(AGE, LABS)] * 2
    assert [side.x.tolist() for side in found if side.x is not None] == [[[1, 2, 3]], [[8, 7, 0]]]
    other = ContentStore(1)
    other.add([0], x=[[7]], columns=(("0", ()),))
    assert in_common(found[0], other.content())[0] is found[0]
    plain = RecordContent.from_features([[1.0]])
    assert in_common(plain, found[0]) == (plain, found[0])
