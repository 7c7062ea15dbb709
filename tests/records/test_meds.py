from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from memguard.errors import DataError, PatientOverlapError
from memguard.records.meds import read_meds

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def frame(rows, schema=SCHEMA):
    return pl.DataFrame(rows, schema=schema, orient="row")


def day(n):
    return datetime(2020, 1, n)


ROWS = [
    (1, None, "GENDER//F", None),
    (1, day(1), "A", None),
    (1, day(2), "LAB", 2.5),
    (2, None, "GENDER//M", None),
    (2, day(1), "A", None),
]


def write(root, shards, splits=None, codes=None):
    for name, table in shards.items():
        file = root / "data" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(file)
    (root / "metadata").mkdir(exist_ok=True)
    if splits is not None:
        splits.write_parquet(root / "metadata" / "subject_splits.parquet")
    if codes is not None:
        codes.write_parquet(root / "metadata" / "codes.parquet")
    return root


def splits(**members):
    rows = [(i, name) for name, ids in members.items() for i in ids]
    return pl.DataFrame(rows, schema={"subject_id": pl.Int64, "split": pl.String}, orient="row")


def test_shards_splits_and_other_columns(tmp_path):
    wide = frame([(3, day(4), "B", 1.0)]).with_columns(
        ward=pl.lit("x"), numeric_value=pl.lit(1.0, pl.Float64)
    )
    narrow = frame([(4, day(4), "C", None)]).drop("numeric_value")
    untyped = frame([(5, day(4), "D", None)]).with_columns(numeric_value=pl.lit(None))
    root = write(
        tmp_path,
        {"train/0": frame(ROWS), "train/1": wide, "tuning/deep/0": narrow, "held_out/0": untyped},
        splits(train=[1, 2, 3], tuning=[4], held_out=[5, 77]),
        pl.DataFrame({"code": ["A"], "description": ["a"]}),
    )
    data = read_meds(root)
    assert data.split_names == ("held_out", "train", "tuning")
    assert len(data.shards) == 4
    assert isinstance(data.events(), pl.LazyFrame)
    events = data.events().collect()
    assert dict(events.schema) == SCHEMA
    assert len(events) == 8
    assert data.subjects().tolist() == [1, 2, 3, 4, 5]
    assert data.subjects("train").tolist() == [1, 2, 3]
    assert data.subjects("held_out").tolist() == [5]  # 77 has no events
    assert data.events("train").collect().equals(events.filter(pl.col("subject_id") <= 3))
    assert data.events(subjects=[2, 5]).collect()["subject_id"].to_list() == [5, 2, 2]
    assert data.events("train", subjects=np.array([2, 5])).collect()["subject_id"].to_list() == [2, 2]
    assert data.codes()["description"].to_list() == ["a"]
    data.validate()


def test_without_metadata(tmp_path):
    data = read_meds(write(tmp_path, {"0": frame(ROWS)}))
    assert data.split_names == ()
    assert data.subjects().tolist() == [1, 2]
    assert len(data.codes()) == 0
    with pytest.raises(DataError, match="no metadata/subject_splits"):
        data.events("train")


def test_an_unknown_split_is_named(tmp_path):
    data = read_meds(write(tmp_path, {"0": frame(ROWS)}, splits(train=[1], tuning=[2])))
    with pytest.raises(DataError, match="no split 'val' among train, tuning"):
        data.events("val")


def test_empty_shards_are_passed_over(tmp_path):
    nothing = frame([])
    untyped = pl.DataFrame({name: pl.Series([], dtype=pl.Null) for name in SCHEMA})
    data = read_meds(write(tmp_path, {"0": nothing, "1": untyped, "2": frame(ROWS)}))
    assert len(data.shards) == 1
    assert len(data.events().collect()) == 5
    data.validate()
    hollow = read_meds(write(tmp_path / "hollow", {"0": nothing}))
    assert len(hollow.events().collect()) == 0
    assert hollow.subjects().tolist() == []
    hollow.validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("subject_id").cast(pl.String), "'subject_id' of data/0.parquet is String and not Int64"),
        (pl.col("subject_id").cast(pl.Float64), "is Float64 and not Int64"),
        (pl.col("time").cast(pl.Date), "'time' of data/0.parquet is Date"),
        (pl.col("time").cast(pl.Datetime("ns")), "is Datetime"),
        (pl.col("time").dt.replace_time_zone("UTC"), "is Datetime"),
        (pl.col("code").cast(pl.Categorical), "'code' of data/0.parquet is Categorical"),
        (pl.col("numeric_value").cast(pl.String), "not Float32 or Float64"),
    ],
)
def test_wrong_types_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read_meds(write(tmp_path, {"0": frame(ROWS).with_columns(change)}))


@pytest.mark.parametrize("column", ["subject_id", "time", "code"])
def test_missing_columns_are_refused(tmp_path, column):
    with pytest.raises(DataError, match=f"has no column '{column}'"):
        read_meds(write(tmp_path, {"0": frame(ROWS).drop(column)}))


def test_no_data_and_broken_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no data"):
        read_meds(tmp_path / "nowhere")
    root = write(tmp_path, {"0": frame(ROWS)})
    (root / "data" / "1.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="cannot be read"):
        read_meds(root)


def test_broken_splits_are_refused(tmp_path):
    with pytest.raises(PatientOverlapError, match="2 subjects are in more than one split"):
        read_meds(write(tmp_path / "a", {"0": frame(ROWS)}, splits(train=[1, 2, 3], held_out=[1, 2])))
    read_meds(write(tmp_path / "b", {"0": frame(ROWS)}, splits(train=[1, 1])))  # said twice, the same
    with pytest.raises(DataError, match="empty cells"):
        read_meds(write(tmp_path / "c", {"0": frame(ROWS)}, splits(train=[1, None])))
    with pytest.raises(DataError, match="has no column 'split'"):
        read_meds(write(tmp_path / "d", {"0": frame(ROWS)}, splits(train=[1]).drop("split")))
    odd = splits(train=[1]).cast({"subject_id": pl.Int32})
    with pytest.raises(DataError, match="is Int32 and not Int64"):
        read_meds(write(tmp_path / "e", {"0": frame(ROWS)}, odd))


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ({"0": frame(ROWS[::-1])}, "3 events earlier than the one before"),
        ({"0": frame([ROWS[0], ROWS[3], ROWS[1]])}, "1 subjects in more than one place"),
        ({"0": frame(ROWS[:2]), "1": frame(ROWS[2:])}, "1 subjects have events in several files"),
        ({"0": frame([(None, day(1), "A", None)])}, "1 events of data/0.parquet have no subject_id"),
        ({"0": frame([(1, day(1), None, None)])}, "have no code"),
    ],
)
def test_validate_reads_what_schemas_cannot_show(tmp_path, shards, message):
    data = read_meds(write(tmp_path, shards))
    with pytest.raises(DataError, match=message):
        data.validate()
