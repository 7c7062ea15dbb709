"""Names of tokens are read where they say what they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard.errors import DataError
from memguard.records import Ragged
from memguard.records.codes import parse_codes, static_prefix


@pytest.mark.parametrize(
    ("name", "system", "version", "code", "suffix"),
    [
        ("DIAGNOSIS//ICD//10//F1020", "ICD10CM", "10", "F1020", ""),
        ("DIAGNOSIS//ICD//10//F10.20", "ICD10CM", "10", "F1020", ""),
        ("DIAGNOSIS//ICD//9//30500", "ICD9CM", "9", "30500", ""),
        ("DIAGNOSIS//ICD//9//V08", "ICD9CM", "9", "V08", ""),
        ("DIAGNOSIS//ICD//9//E9503", "ICD9CM", "9", "E9503", ""),
        ("HOSPITAL_DIAGNOSIS//ICD//10//B20", "ICD10CM", "10", "B20", ""),
        ("PROCEDURE//ICD//9//5185", "ICD9Proc", "9", "5185", ""),
        ("PROCEDURE//ICD//10//04LK3DZ", "ICD10PCS", "10", "04LK3DZ", ""),
        ("PROCEDURE_ICD//ICD9CM//54.11", "ICD9Proc", "9", "5411", ""),
        ("ICD10CM/F1020", "ICD10CM", "10", "F1020", ""),
        ("ICD10CM/F10.20", "ICD10CM", "10", "F1020", ""),
        ("ICD9CM/305.00", "ICD9CM", "9", "30500", ""),
        ("ICD9Proc/88.54", "ICD9Proc", "9", "8854", ""),
        ("ICD9CM//V10.60", "ICD9CM", "9", "V1060", ""),
        ("DIAGNOSIS//ICD10CM//f10.20", "ICD10CM", "10", "F1020", ""),
        ("ICD-10-CM:F10.20", "ICD10CM", "10", "F1020", ""),
        ("ICD10_F1020", "ICD10", "10", "F1020", ""),
        ("DIAGNOSIS//KCD8//I251", "ICD10", "10", "I251", ""),
        ("ICD10GM/B20.9*", "ICD10", "10", "B209", ""),
        ("ICD//CM//F10", "ICD10CM", "10", "F10", ""),
        ("ICD//CM//10//F1020", "ICD10CM", "10", "F1020", ""),
        ("ICD//CM//9//30500", "ICD9CM", "9", "30500", ""),
        ("ICD//CM//3-6//20", "ICD10CM", "10", "", "20"),
        ("ICD//CM//ALCOHOL_RELATED_DISORDERS", "ICD10CM", "10", "", ""),
        ("ICD//PCS//H", "ICD10PCS", "10", "", ""),
        ("SNOMED/86406008", "SNOMED", "", "86406008", ""),
        ("LOINC/5803-2", "LOINC", "", "5803-2", ""),
        ("OMOP_CONCEPT//LOINC//5803-2//Q10", "LOINC", "", "5803-2", "Q10"),
        ("RxNorm/6813", "RxNorm", "", "6813", ""),
        ("ATC//N07BC01", "ATC", "", "N07BC01", ""),
        ("ATC//PSYCHOLEPTICS", "ATC", "", "", ""),
        ("HCPCS//Musculoskeletal system", "HCPCS", "", "", ""),
        # A bin of a code and a code that looks like a bin
        ("DIAGNOSIS//ICD//10//Q01", "ICD10CM", "10", "Q01", ""),
        ("DIAGNOSIS//ICD//10//Q90//Q01", "ICD10CM", "10", "Q90", "Q01"),
        ("ICD10CM/F10.20//value_[1.0,2.0)", "ICD10CM", "10", "F1020", "value_[1.0,2.0)"),
        ("LAB//50912//mg/dL//value_[1.1,1.4)", "", "", "", "value_[1.1,1.4)"),
        ("LAB//220045//bpm//Q07", "", "", "", "Q07"),
        # Never guessed
        ("F10.20", "", "", "", ""),
        ("DIAGNOSIS//F1020", "", "", "", ""),
        ("DIAGNOSIS//ICD//F1020", "", "", "", ""),
        ("ICD", "", "", "", ""),
        ("UNIT//10//F10", "", "", "", ""),
        ("HOSPITAL_ADMISSION//EU OBSERVATION//WALK-IN/SELF REFERRAL", "", "", "", ""),
        ("DIAGNOSIS//ICD//9//F1020", "ICD9CM", "9", "", ""),  # not the form of ICD-9
        ("DIAGNOSIS//ICD//9//42", "ICD9CM", "9", "", ""),  # a leading zero was lost: 042 or 420?
        ("DIAGNOSIS//ICD//10//30500", "ICD10CM", "10", "", ""),
        ("ICD10CM/F10-F19", "ICD10CM", "10", "", ""),
        ("", "", "", "", ""),
    ],
)
def test_dialects(name, system, version, code, suffix):
    found = parse_codes([name])
    assert (found.system[0], found.version[0], found.code[0], found.suffix[0]) == (
        system,
        version,
        code,
        suffix,
    )
    assert bool(found.event[0]) and found.read[0] == (code != "")


PERSON = (
    "MEDS_BIRTH AGE//30-40 AGE//90+ age:45 GENDER//F Gender/F SEX//M RACE//WHITE Race/5 ETHNICITY//HISPANIC "
    "MARITAL_STATUS//SINGLE MARITAL//SINGLE LANGUAGE//ENGLISH INSURANCE//Medicaid"
)
BEGIN = "PAD [PAD] <pad> [CLS] <s> <|begin_of_text|> TIMELINE//START"
TIME = "GAP//1-7 TIMELINE//DELTA//years//value_[0.1,0.2) [W_0] 15m-1h =6mt"
FORM = "</s> UNK [UNK] TIMELINE//END Q7 _Q_3"


@pytest.mark.parametrize("name", PERSON.split())
def test_who_somebody_is(name):
    found = parse_codes([name])
    assert found.demographic[0] and not found.structural[0] and not found.event[0]


@pytest.mark.parametrize(
    ("name", "begin", "time"),
    [
        *((name, True, False) for name in BEGIN.split()),
        *((name, False, True) for name in TIME.split()),
        *((name, False, False) for name in FORM.split()),
    ],
)
def test_what_is_of_the_form_alone(name, begin, time):
    found = parse_codes([name])
    assert found.structural[0] and (found.begin[0], found.time[0]) == (begin, time)


@pytest.mark.parametrize("name", ["S", "LANGUAGE_THERAPY", "AGENT//X", "SEXUAL_HISTORY//X", "TIMER", "D3"])
def test_what_is_an_event_all_the_same(name):
    assert parse_codes([name]).event[0]


NAMES = ["PAD", "AGE//30-40", "GENDER//F", "GAP//1-7", "ICD10CM/I10", "MEDS_BIRTH", "TIMELINE//START"]


def _naive(row: list[int]) -> int:
    names = [NAMES[token] for token in row]
    static = {"PAD", "AGE//30-40", "GENDER//F", "MEDS_BIRTH", "TIMELINE//START"}
    n = 0
    while n < len(names) and names[n] in static:
        n += 1
    if n < len(names) and names[n].startswith("GAP") and "MEDS_BIRTH" in names[:n]:
        n += 1
        while n < len(names) and names[n] in static:
            n += 1
    return n


@given(st.lists(st.lists(st.integers(0, len(NAMES) - 1), max_size=6), max_size=6))
def test_the_prefix_is_that_of_a_loop(rows):
    assert static_prefix(Ragged.from_lists(rows), NAMES).tolist() == [_naive(row) for row in rows]


def test_the_dialect_of_our_own_vocabulary():
    # AGE, then static codes, then events; a gap before the first event does not exist
    rows = Ragged.from_lists([[1, 2, 4, 3, 4], [2, 3, 4], [4, 2]])
    np.testing.assert_array_equal(static_prefix(rows, parse_codes(NAMES)), [2, 1, 0])


def test_bad_input():
    with pytest.raises(DataError, match="token name of type int"):
        parse_codes(["PAD", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="2 names"):
        static_prefix(Ragged.from_lists([[0, 2]]), ["PAD", "A"])
