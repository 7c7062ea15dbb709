"""Subgroups: differences against naive ones, small cells kept back, error rates that hold over all strata."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from memguard.attacks.conformal import conformal_p_values
from memguard.errors import DataError
from memguard.probes.result import Evidence
from memguard.probes.strata import breakdown, default_strata, enrichment, flagged_patients
from memguard.probes.subject import Subject
from memguard.records.content import Ragged, RecordContent

NAMES = ("PAD", "AGE//60-70", "AGE//80-90", "AGE//90+", "GENDER//F", "GENDER//M", "RACE//A", *"abcdefgh")


def cohort(members: int, held_out: int, records: int = 1, codes=None) -> Subject:
    n = (members + held_out) * records
    rows = [[1]] * n if codes is None else codes
    return Subject(
        n_members=members * records,
        patient=np.repeat(np.arange(members + held_out), records),
        content=RecordContent.from_codes(Ragged.from_lists(rows)),
        names=NAMES,
    )


def whole(value, p=None) -> Evidence:
    return Evidence(name="gap, nats", row=np.arange(len(value)), value=np.asarray(value, float), p_value=p)


def test_numbers_are_those_of_naive_means_over_patients():
    rng = np.random.default_rng(0)
    subject = cohort(60, 50, records=3)
    value = rng.normal(size=330) + subject.member
    rare = np.zeros(330, bool)
    rare[[0, 30, 61, 90, 100, 130, 181, 200, 220, 240, 270, 300]] = True  # one record puts the patient in
    found = breakdown(whole(value), subject, {"rare": rare})
    mean = value.reshape(110, 3).mean(axis=1)
    inside = rare.reshape(110, 3).any(axis=1)
    side = np.arange(110) < 60
    own = mean[inside & side].mean() - mean[inside & ~side].mean()
    rest = mean[~inside & side].mean() - mean[~inside & ~side].mean()
    assert found.numbers["rare.minus_held_out"].value == pytest.approx(own)
    assert found.numbers["rare.minus_rest"].value == pytest.approx(own - rest)
    pairs = [(a > b) for a in mean[inside & side] for b in mean[inside & ~side]]
    assert found.numbers["rare.auc"].value == pytest.approx(np.mean(pairs))
    assert found.numbers["everybody.minus_held_out"].n == 110
    row = found.table.rows[0]
    assert row[:3] == ["rare", "6", "6"] and len(row) == len(found.table.columns)


def test_only_some_records_were_asked():
    subject = cohort(30, 30)
    evidence = Evidence(name="x", row=np.arange(10, 50), value=np.arange(40.0))
    found = breakdown(evidence, subject, {})
    assert found.table.rows[0][1:3] == ["20", "20"]


def test_flags_count_a_patient_once():
    subject = cohort(3, 2, records=2)
    p = np.array([0.02, 0.02, 0.04, 0.9, 0.5, 0.6, *[np.nan] * 4])
    assert flagged_patients(whole(np.zeros(10), p), subject, 0.1).tolist() == [
        0
    ]  # 0.04 of two tests is 0.08 > 2/3 * 0.1
    assert flagged_patients(whole(np.zeros(10), p), subject, 0.15).tolist() == [0, 1]
    assert flagged_patients(whole(np.zeros(10)), subject, 0.1).size == 0


def test_share_of_flags_and_enrichment():
    subject = cohort(400, 100)
    unique = np.zeros(500, bool)
    unique[:20] = unique[400:410] = True
    flagged = np.concatenate([np.arange(16), np.arange(100, 108)])
    found = breakdown(
        whole(np.random.default_rng(0).normal(size=500)), subject, {"unique": unique}, flagged=flagged
    )
    assert found.numbers["unique.flag_share"].value == 16 / 20
    rich = found.numbers["unique.enrichment"]
    assert rich.value == pytest.approx((16 / 24) / (20 / 400)) and rich.low > 5 and rich.high <= 20
    assert found.numbers["everybody.flag_share"].value == 24 / 400
    none = breakdown(
        whole(np.zeros(500) + np.arange(500)), subject, {"unique": unique}, flagged=np.zeros(0, np.int64)
    )
    assert none.numbers["unique.flag_share"].value == 0 and "unique.enrichment" not in none.numbers
    assert "unique.flag_share" not in breakdown(whole(np.arange(500.0)), subject, {"unique": unique}).numbers


def test_where_everybody_is_flagged_the_worst_still_tell():
    subject = cohort(200, 50)
    unique = np.zeros(250, bool)
    unique[:8] = unique[200:206] = True
    value = np.arange(250.0)[::-1] + 1000.0 * subject.member
    found = breakdown(whole(value), subject, {"unique": unique}, flagged=np.arange(200))
    assert found.numbers["unique.enrichment"].value == 1.0 and "at most 1.0" in found.table.note
    assert found.numbers["unique.worst_enrichment"].value == pytest.approx((8 / 10) / (8 / 200))
    tied = breakdown(whole(np.ones(250)), subject, {"unique": unique}, flagged=np.arange(200))
    assert tied.numbers["unique.worst_enrichment"].value == 1.0
    some = breakdown(whole(value), subject, {"unique": unique}, flagged=np.arange(4, 8))
    assert some.numbers["unique.worst_enrichment"].value == some.numbers["unique.enrichment"].value == 25


def test_a_stratum_that_scatters_is_not_called_the_worst_where_nothing_was_learned():
    """By rank alone it leads: its values are the largest of both sides."""
    shown = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        subject = cohort(200, 200)
        wild = np.arange(400) % 10 == 0
        value = rng.normal(size=400) * np.where(wild, 5.0, 1.0)
        p = np.full(400, np.nan)
        p[:200] = conformal_p_values(value[:200], value[200:])
        shown += "wild.worst_enrichment" in breakdown(whole(value, p), subject, {"wild": wild}).numbers
    assert stats.binom.sf(shown - 1, 60, 0.1) > 0.005


def test_enrichment_covers_one_where_flags_fall_evenly():
    rng, outside = np.random.default_rng(0), 0
    for _ in range(400):
        k = int(rng.hypergeometric(80, 920, 60))
        outside += not enrichment(k, 60, 80, 1000).covers(1.0)
    assert stats.binom.sf(outside - 1, 400, 0.05) > 0.01


@pytest.mark.parametrize(("members", "held_out"), [(4, 20), (20, 3), (20, 0), (0, 20)])
def test_small_cells(members, held_out):
    subject = cohort(100, 100)
    mask = np.zeros(200, bool)
    mask[:members] = mask[100 : 100 + held_out] = True
    value = np.random.default_rng(1).normal(size=200) + 2.0 * (np.arange(200) < 20)
    found = breakdown(whole(value), subject, {"few": mask})
    row = found.table.rows[0]
    if members < 5:
        assert row[1] == ("<5" if members else "0") and row[3:] == [None] * 6
        assert not any(key.startswith("few.") for key in found.numbers)
        assert str(members) not in found.not_tested[0].why or members == 0
    else:
        assert row[2] == ("all 100 (<5 in it)" if held_out else "all 100 (0 in it)")
        mean = value[:20].mean() - value[100:].mean()
        assert found.numbers["few.minus_held_out"].value == pytest.approx(mean)
        against = found.numbers["few.minus_rest"]
        assert against.value == pytest.approx(value[:20].mean() - value[20:100].mean())
        assert "members alone" in against.method and against.low > 1


def test_a_stratum_that_leaves_few_outside_would_give_them_away():
    subject = cohort(50, 50)
    mask = np.ones(100, bool)
    mask[:3] = False
    found = breakdown(whole(np.arange(100.0)), subject, {"most": mask, "all": np.ones(100, bool)})
    assert "most.minus_held_out" not in found.numbers and found.table.rows[0][3] is None
    assert "all.minus_held_out" in found.numbers and "all.minus_rest" not in found.numbers


@pytest.mark.parametrize("sides", [(3, 50), (50, 1), (0, 9), (9, 0)])
def test_a_side_that_is_too_small_for_anything(sides):
    subject = cohort(*sides)
    found = breakdown(whole(np.arange(float(sum(sides)))), subject, {"all": np.ones(sum(sides), bool)})
    assert not found.numbers and not found.table.rows and "patients were asked" in found.not_tested[0].why


def test_ties_and_equal_values():
    subject = cohort(20, 20)
    found = breakdown(whole(np.full(40, 3.0)), subject, {"half": np.arange(40) % 2 == 0})
    assert found.numbers["half.auc"].value == 0.5
    assert found.numbers["half.minus_held_out"].value == 0 and found.numbers["half.minus_held_out"].low < 0


def test_over_all_strata_the_error_rate_holds():
    """Six overlapping strata, one of them without held-out patients; nothing to find."""
    runs, wrong, wrong_rest = 100, 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        subject = cohort(150, 120)
        strata = {f"s{i}": rng.random(270) < rate for i, rate in enumerate((0.05, 0.1, 0.2, 0.3, 0.5))}
        strata["alone"] = (rng.random(270) < 0.2) & subject.member
        found = breakdown(whole(rng.standard_t(5, 270)), subject, strata)
        pick = [
            e for key, e in found.numbers.items() if key.endswith("minus_held_out") and "every" not in key
        ]
        wrong += any(not e.covers(0) for e in pick)
        wrong_rest += any(not e.covers(0) for key, e in found.numbers.items() if key.endswith("minus_rest"))
        assert all("Bonferroni over 6 strata" in e.method and e.confidence == 0.95 for e in pick)
    for count in (wrong, wrong_rest):
        assert stats.binom.sf(count - 1, runs, 0.05) > 0.005


def test_bad_input():
    subject = cohort(10, 10)
    with pytest.raises(DataError, match="'x' of shape"):
        breakdown(whole(np.zeros(20)), subject, {"x": np.ones(3, bool)})
    with pytest.raises(DataError, match="outside"):
        breakdown(Evidence(name="x", row=np.array([25]), value=np.zeros(1)), subject, {})


def test_default_strata_from_names_and_counts():
    rng = np.random.default_rng(3)
    codes = [
        [int(rng.choice([1, 2, 3])), int(rng.choice([4, 5])), *[7] * int(rng.integers(1, 9))]
        for _ in range(60)
    ]
    codes[0].append(12)  # one member
    codes[1].append(13), codes[2].append(13), codes[50].append(13)  # two members and a held-out patient
    codes[51].append(14)  # one held-out patient
    subject = cohort(25, 5, records=2, codes=codes)
    strata, gaps = default_strata(subject, rare_at_most=1)
    patients = {name: np.unique(subject.patient[mask]).tolist() for name, mask in strata.items()}
    assert patients["unique_code"] == patients["rare_code"] == [0, 25]
    assert np.unique(subject.patient[default_strata(subject, rare_at_most=2)[0]["rare_code"]]).tolist() == [
        0,
        1,
        25,
    ]
    naive = [p for p in range(30) if {2, 3} & {codes[2 * p][0], codes[2 * p + 1][0]}]
    assert patients["elderly"] == naive
    women = [p for p in range(30) if 4 in (codes[2 * p][1], codes[2 * p + 1][1])]
    assert patients["sex_F"] == women and "sex_M" in patients
    assert patients["several_records"] == list(range(30)) and patients["one_record"] == []
    length = np.array([len(codes[2 * p]) + len(codes[2 * p + 1]) for p in range(30)])
    assert patients["longest_third"] == np.flatnonzero(length > np.quantile(length[:25], 2 / 3)).tolist()
    assert sum(len(patients[f"{x}_third"]) for x in ("shortest", "middle", "longest")) == 30
    assert [gap.what for gap in gaps] == ["Strata by race"]
    assert all((np.bincount(subject.patient, weights=m) % 2 == 0).all() for m in strata.values())


def test_default_strata_without_names_ages_or_codes():
    subject = cohort(6, 6)
    object.__setattr__(subject, "names", ())
    assert "names" in default_strata(subject)[1][0].why
    young = cohort(6, 6, codes=[[1, 7]] * 12)
    assert {gap.what for gap in default_strata(young)[1]} == {
        "Elderly patients",
        "Strata by sex",
        "Strata by race",
    }
    x = RecordContent.from_features(np.eye(12, dtype=np.float32))
    wide = Subject(n_members=6, patient=np.arange(12), content=x)
    strata, _ = default_strata(wide)
    assert strata["unique_code"].all() and "longest_third" not in strata
    nobody = Subject(
        n_members=0, patient=np.zeros(0, np.int64), content=RecordContent.from_codes(Ragged.from_lists([]))
    )
    assert default_strata(nobody)[0] == {}


def test_default_strata_feed_the_breakdown():
    rng = np.random.default_rng(0)
    codes = [
        [int(rng.choice([1, 2])), int(rng.choice([4, 5])), *rng.integers(7, 15, rng.integers(2, 9))]
        for _ in range(400)
    ]
    subject = cohort(200, 200, codes=codes)
    strata, _ = default_strata(subject)
    value = rng.normal(size=400) + 2.0 * (strata["elderly"] & subject.member)
    found = breakdown(whole(value), subject, strata)
    assert found.numbers["elderly.minus_rest"].low > 1 and found.numbers["sex_F.minus_rest"].covers(0)
