from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from memguard.errors import DataError
from memguard.records.meds import read_meds
from memguard.records.vocabulary import Vocabulary

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def day(n):
    return datetime(2020, 1, n)


def frame(rows):
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def splits(**members):
    rows = [(i, name) for name, ids in members.items() for i in ids]
    return pl.DataFrame(rows, schema={"subject_id": pl.Int64, "split": pl.String}, orient="row")


def write(root, shards, listed=None):
    (root / "data").mkdir(parents=True)
    (root / "metadata").mkdir()
    for name, table in shards.items():
        table.write_parquet(root / "data" / f"{name}.parquet")
    if listed is not None:
        listed.write_parquet(root / "metadata" / "subject_splits.parquet")
    return root


def words(vocabulary, found, i):
    return [vocabulary.names[token] for token in found.tokens[i]]


def test_a_sequence_by_hand(tmp_path):
    rows = [
        (7, None, "GENDER//F", None),
        (7, datetime(1980, 1, 1), "MEDS_BIRTH", None),
        (7, day(1), "A", None),
        (7, day(1), "LAB", 1.0),
        (7, day(9), "LAB", 2.0),
        (7, day(9), "SECRET", None),
        (7, day(9), "LAB", None),
        (8, day(3), "A", None),
        (8, datetime(2020, 1, 3, 12), "B", None),
    ]
    data = read_meds(write(tmp_path, {"0": frame(rows)}))
    vocabulary = Vocabulary.fit(data, None, exclude="^SECRET$", min_values=2)
    assert vocabulary.names[0] == "PAD"
    assert vocabulary.names[17:] == ("A", "B", "GENDER//F", "LAB", "LAB//Q01", "LAB//Q02")
    found = data.sequences(vocabulary)
    assert found.subject_ids.tolist() == [7, 8]
    assert found.events.tolist() == [4, 2]
    assert words(vocabulary, found, 0) == [
        "AGE//40-50",
        "GENDER//F",
        "A",
        "LAB//Q01",
        "GAP//7-30",
        "LAB//Q02",
        "LAB",
    ]
    assert words(vocabulary, found, 1) == ["A", "B"]  # birth unknown, half a day is no gap
    cut = data.sequences(vocabulary, max_tokens=5, min_events=3)
    assert words(vocabulary, cut, 0)[-1] == "GAP//7-30"
    assert len(cut) == 1
    # Another subject's odd value falls into the outermost bin, a code without a token is left out.
    bare = Vocabulary.fit(data, None, include="^LAB", gap_days=(), age_years=(), min_values=2)
    assert bare.names == ("PAD", "LAB", "LAB//Q01", "LAB//Q02")
    assert [words(bare, data.sequences(bare), i) for i in range(1)] == [["LAB//Q01", "LAB//Q02", "LAB"]]


def naive(vocabulary, rows, min_events, max_tokens):
    """One subject and one event at a time, from the text of `vocabulary.py`."""
    number = {name: i for i, name in enumerate(vocabulary.names)}
    result = {}
    for subject in sorted({row[0] for row in rows}):
        mine = [row for row in rows if row[0] == subject]
        birth = next((row[1] for row in mine if row[2] == "MEDS_BIRTH"), None)
        mine = sorted(mine, key=lambda row: row[1] or datetime(1, 1, 1))
        events = []
        for _, time, code, value in mine:
            name = code
            if value is not None and not np.isnan(value) and code in vocabulary.edges:
                name = f"{code}//Q{1 + sum(np.float32(value) >= vocabulary.edges[code]):02d}"
            if name in number:
                events.append((time, number[name]))
        dated = [time for time, _ in events if time]
        if len(dated) < min_events:
            continue
        tokens, before = [], None
        if birth and dated:
            age = (dated[0] - birth).days / 365.2425
            tokens.append(number["AGE//0-30"] + sum(age >= one for one in vocabulary.age_years))
        for time, token in events:
            band = (
                sum((time - before) / timedelta(days=1) >= one for one in vocabulary.gap_days)
                if before and time
                else 0
            )
            if band:
                tokens.append(number["GAP//1-7"] + band - 1)
            tokens.append(token)
            before = time
        result[subject] = tokens[:max_tokens]
    return result


@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_naive_reading_of_unsorted_shards(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for subject in rng.permutation(40).tolist():
        if rng.random() < 0.8:
            rows.append((subject, datetime(int(rng.integers(1920, 2000)), 5, 1), "MEDS_BIRTH", None))
        if rng.random() < 0.8:
            rows.append((subject, None, "GENDER//F", None))
        for _ in range(rng.integers(0, 12)):
            hours = int(rng.integers(0, 40000))
            code = str(rng.choice(["A", "B", "LAB//x", "LAB//y", "MEDS_DEATH", "RARE"]))
            value = float(np.float32(rng.normal())) if code.startswith("LAB") and rng.random() < 0.9 else None
            rows.append((subject, datetime(2010, 1, 1) + timedelta(hours=hours), code, value))
    rows[5] = (*rows[5][:3], float("nan"))
    rng.shuffle(rows)
    shards = {str(i): frame(rows[i::3]) for i in range(3)}
    data = read_meds(write(tmp_path, shards, splits(train=range(0, 40, 2), held_out=range(1, 40, 2))))
    with pytest.raises(DataError):
        data.validate()
    vocabulary = Vocabulary.fit(data, n_bins=5, min_values=10, exclude="^MEDS_|RARE")
    values = [r[3] for r in rows if r[2] == "LAB//x" and r[0] % 2 == 0 and r[3] is not None]
    assert np.allclose(
        vocabulary.edges["LAB//x"], np.quantile(np.float32(values).astype(float), [0.2, 0.4, 0.6, 0.8])
    )
    in_files = [row for i in range(3) for row in rows[i::3]]
    for min_events, max_tokens, split in ((1, 9, None), (4, None, "held_out"), (0, 3, "train")):
        found = vocabulary.sequences(data, split, min_events=min_events, max_tokens=max_tokens)
        wanted = naive(
            vocabulary,
            [r for r in in_files if split is None or r[0] % 2 == (split == "held_out")],
            min_events,
            max_tokens,
        )
        wanted = {subject: tokens for subject, tokens in wanted.items() if tokens}
        assert found.subject_ids.tolist() == list(wanted)
        assert [found.tokens[i].tolist() for i in range(len(found))] == list(wanted.values())


def test_bins_of_equal_values_and_thin_codes(tmp_path):
    rows = [(i, day(1), "SMOKES", float(i % 2)) for i in range(50)]
    rows += [(i, day(1), "TIES", 0.0 if i < 45 else float(i)) for i in range(50)]
    rows += [(i, day(1), "FEW", float(i)) for i in range(3)]
    rows += [(i, day(1), "SAME", 1.0) for i in range(50)]
    data = read_meds(write(tmp_path, {"0": frame(rows)}))
    vocabulary = Vocabulary.fit(data, None, n_bins=4, min_values=20)
    assert vocabulary.edges["SMOKES"].tolist() == [1.0]
    assert vocabulary.edges["SAME"].tolist() == []
    assert vocabulary.edges["TIES"].tolist() == []  # quartiles of 45 zeros and 5 others are all zero
    assert "FEW" in vocabulary.names
    assert "FEW//Q01" not in vocabulary.names
    found = vocabulary.sequences(data)
    assert words(vocabulary, found, 1) == ["SMOKES//Q02", "TIES//Q01", "FEW", "SAME//Q01"]
    assert len(Vocabulary.fit(data, None, min_subjects=10, gap_days=(), age_years=())) == 4


def test_tails_give_extreme_values_a_token_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=2000).astype(np.float32)
    data = read_meds(
        write(tmp_path, {"0": frame([(i, day(1), "LAB", float(v)) for i, v in enumerate(values)])})
    )
    even = Vocabulary.fit(data, None, n_bins=10)
    tailed = Vocabulary.fit(data, None, n_bins=10, tails=True)
    assert set(even.edges["LAB"]) <= set(tailed.edges["LAB"])
    held = np.bincount(tailed.sequences(data).tokens.values, minlength=len(tailed))[
        tailed.names.index("LAB//Q01") :
    ]
    assert held.sum() == 2000
    assert 1 <= held[0] <= 3
    assert 1 <= held[-1] <= 3
    assert held.min() >= 1


def test_what_cannot_be_a_vocabulary_is_refused(tmp_path):
    data = read_meds(write(tmp_path / "a", {"0": frame([(1, day(1), "A", None), (1, day(1), None, None)])}))
    with pytest.raises(DataError, match="have no code"):
        Vocabulary.fit(data, None)
    data = read_meds(write(tmp_path / "b", {"0": frame([(1, day(1), "A", None)])}))
    with pytest.raises(DataError, match="none of the codes"):
        Vocabulary.fit(data, None, include="B")
    vocabulary = Vocabulary.fit(data, None)
    broken = read_meds(write(tmp_path / "c", {"0": frame([(None, day(1), "A", None)])}))
    with pytest.raises(DataError, match="have no subject_id"):
        vocabulary.sequences(broken)
    nobody = vocabulary.sequences(data, subjects=[5])
    assert len(nobody) == 0
    assert len(nobody.tokens) == 0
    clash = [(1, day(1), "A//Q01", None), *((1, day(1), "A", float(i)) for i in range(9))]
    with pytest.raises(DataError, match="share a token"):
        Vocabulary.fit(read_meds(write(tmp_path / "d", {"0": frame(clash)})), None, min_values=2)
