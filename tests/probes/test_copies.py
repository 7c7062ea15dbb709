"""The probe of copies: found, extractable where memorized, quiet under the null, honest about what it left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from memguard.attacks import conformal_p_values
from memguard.errors import MemguardError, ResolutionError
from memguard.probes.asked import Budget
from memguard.probes.copies import CopiesProbe
from memguard.probes.copies.asking import Beginning, cut_at
from memguard.probes.copies.groups import find_groups
from memguard.probes.copies.rule import extractable, fewest_null
from memguard.probes.subject import Subject
from memguard.probes.trajectory.reading import Reader
from memguard.records.content import Ragged, RecordContent
from tests.probes._memorizing import Pool, Writer, world

HALF = CopiesProbe(prompts=("half",))


def with_copies(seed: int, *, pairs: int = 12, repeats: int = 6, across: int = 0, memorized: bool = True):
    """A world in which members 0.. come in pairs of patients, then in pairs of records of one patient."""
    subject, asked = world(seed, members=60, held_out=60, lengths=(16, 20), codes=40)
    rng = np.random.default_rng([seed, 9])
    rows = [subject.sequences[i].tolist() for i in range(120)]
    n = 2 * (pairs + repeats)
    for i in range(0, n, 2):
        rows[i + 1] = list(rows[i])
        rows[i + 1][int(rng.integers(len(rows[i]) - 4, len(rows[i])))] = int(rng.integers(4, 44))
    for j in range(across):
        rows[60 + j] = list(rows[n + j])
    patient = np.arange(120)
    patient[2 * pairs + 1 : n : 2] = patient[2 * pairs : n : 2]
    _, patient = np.unique(patient, return_inverse=True)
    subject = Subject(
        n_members=60,
        patient=patient,
        content=RecordContent.from_codes(Ragged.from_lists(rows)),
        static=np.full(120, 2),
    )
    chain = asked.target.chain
    target = Writer(chain, rows[:n] if memorized else [], 0.95)
    mask = np.zeros((4, 120), bool)
    mask[0, 0:60:2] = mask[1, 1:60:2] = True  # one of each pair; both of a patient who has both
    mask[:2, 2 * pairs : n] = True
    mask[2, :60] = True
    models = [
        Writer(chain, [rows[i] for i in np.flatnonzero(m[:n])] if memorized else [], 0.95) for m in mask
    ]
    asked = replace(
        asked,
        target=target,
        references=Pool(models, mask),
        reference_loss=np.full((4, 120), np.nan),
        loss=np.full(120, np.nan),
    )
    return subject, asked


def test_groups_are_those_that_a_loop_finds():
    rng = np.random.default_rng(0)
    base = [rng.integers(0, 200, 15).tolist() for _ in range(40)]
    rows = [list(base[int(rng.integers(0, 40))]) for _ in range(60)]
    for row in rows:
        row[int(rng.integers(0, 15))] = 300 + int(rng.integers(0, 50))
    patient = np.r_[rng.integers(0, 6, 45), 100 + np.arange(15)]
    subject = Subject(
        n_members=45, patient=patient, content=RecordContent.from_codes(Ragged.from_lists(rows))
    )
    found = find_groups(subject, threshold=0.7, min_codes=8, seed=0)

    def alike(i: int, j: int) -> bool:
        codes = set(rows[i]) | set(rows[j])
        low = sum(min(rows[i].count(c), rows[j].count(c)) for c in codes)
        return low / sum(max(rows[i].count(c), rows[j].count(c)) for c in codes) >= 0.7

    part = list(range(45))
    for i in range(45):
        for j in range(i):
            if alike(i, j):
                part = [part[j] if p == part[i] else p for p in part]
    for i in range(45):
        same = [j for j in range(45) if part[j] == part[i]]
        assert found.copied[i] == (len(same) > 1)
        assert found.size[i] == len(same)
        assert found.between[i] == (len({patient[j] for j in same}) > 1)
        assert found.within[i] == (sum(patient[j] == patient[i] for j in same) > 1)
        assert all((found.unit[i] == found.unit[j]) for j in same)
    for i in range(45, 60):
        assert not (found.copied[i] or found.within[i] or found.between[i])
        if any(alike(i, j) for j in range(45)):
            assert found.across[i]
    assert found.copied.any() and found.across.any() and found.within.any()
    assert not found.copied[:45].all()


def test_a_group_and_its_patients_are_one_unit():
    """Patient 0 has two records; one of them is a copy of patient 1's: all three hang together."""
    rows = [range(10), range(20, 30), range(10), range(40, 50)]
    subject = Subject(
        n_members=4,
        patient=np.array([0, 0, 1, 2]),
        content=RecordContent.from_codes(Ragged.from_lists([list(r) for r in rows])),
    )
    found = find_groups(subject, threshold=0.7, min_codes=8, seed=0)
    assert found.unit[0] == found.unit[1] == found.unit[2] != found.unit[3]
    assert found.copied.tolist() == [True, False, True, False]


@pytest.fixture(scope="module")
def found():
    subject, asked = with_copies(0)
    return subject, asked, CopiesProbe(prompts=("half", "codes_6")).run(subject, asked, Budget())


def test_memorized_copies_are_extractable_and_strangers_are_not(found):
    _, _, result = found
    n = result.numbers
    for prompt in ("half", "codes_6"):
        for kind in ("copied", "near_duplicate", "repeated"):
            assert n[f"{prompt}.extractable.{kind}.minus_held_out"].low > 0.5
            assert n[f"{prompt}.verbatim.{kind}.minus_held_out"].low > 0.3
        assert n[f"{prompt}.extractable.single.minus_held_out"].covers(0)
        assert n[f"{prompt}.extractable.copied.minus_single"].low > 0.5
    assert set(result.flagged) <= set(range(24 + 6))
    assert len(result.flagged) >= 28


def test_scores_beyond_references_are_blind_to_copies_and_those_without_copies_are_not(found):
    """A reference that never saw the patient saw the copy, and knows the record nearly as well as the target."""
    _, _, result = found
    blind = result.numbers["half.beyond_patient.near_duplicate.minus_held_out"]
    seeing = result.numbers["half.beyond_copies.near_duplicate.minus_held_out"]
    assert seeing.low > blind.high
    rows = {row[1]: row for row in result.tables["prompts"].rows if row[0] == "first half"}
    assert rows["repeated"][10] == pytest.approx(rows["repeated"][11])


def test_tables_count_what_is_there(found):
    subject, _, result = found
    rows = {row[0].split(":")[0]: row[1:] for row in result.tables["groups"].rows}
    assert rows["near-duplicates"] == [12, 24, 24]
    assert rows["repeats"] == [6, 12, 6]
    assert rows["any copy among members"] == [18, 36, 30]
    assert result.tables["sizes"].rows[0] == ["2", 18, 36]
    for table in result.tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
    evidence = result.evidence["half.log_prob"]
    member = subject.member[evidence.row]
    assert np.isnan(evidence.p_value[~member]).all() and np.isfinite(evidence.p_value[member]).all()
    assert_allclose(
        evidence.p_value[member], conformal_p_values(evidence.value[member], evidence.value[~member])
    )


def test_intervals_take_a_group_as_one_unit(found):
    _, _, result = found
    assert result.numbers["half.extractable.near_duplicate.minus_held_out"].n == 12 + 60
    assert result.numbers["half.extractable.copied.minus_held_out"].n == 18 + 60


def test_copies_across_the_split_are_named_and_can_be_left_out():
    subject, asked = with_copies(1, across=10)
    target = asked.target
    known = [subject.sequences[i].tolist() for i in range(60)]
    result = HALF.run(subject, replace(asked, target=Writer(target.chain, known, 0.95)), Budget())
    assert any("10 never-trained" in note for note in result.notes)
    similarity = result.evidence["similarity"].value[60:]
    assert (similarity[:10] == 1.0).all()
    assert (similarity[10:] < 1.0).all()
    with_them = result.numbers["half.extractable.single.minus_held_out"]
    clean = result.numbers["half.extractable.copied.minus_held_out_without_copies"]
    blurred = result.numbers["half.extractable.copied.minus_held_out"]
    assert clean.n == blurred.n - 10
    assert clean.value > blurred.value
    assert with_them.n < blurred.n + 60


def test_small_cells_are_not_shown():
    subject, asked = with_copies(2, pairs=1, repeats=1, across=2)
    result = HALF.run(subject, asked, Budget())
    assert [row[1:] for row in result.tables["groups"].rows] == [[None] * 3] * 4
    assert result.tables["sizes"].rows[0][1:] == [None, None]
    assert result.answer.startswith("Fewer than 5")
    assert any("fewer than 5" in note for note in result.notes)
    assert not result.numbers


def test_the_rule_is_the_naive_one():
    rng = np.random.default_rng(0)
    score, null = rng.normal(size=130), np.arange(130) >= 50
    found = extractable(score, null, error=0.1, seed=3)
    assert_allclose(found.p_value[:50], conformal_p_values(score[:50], score[50:]))
    assert np.isnan(found.p_value[50:]).all()
    assert set(found.hit[:50]) <= {0.0, 0.5, 1.0} and set(found.hit[50:]) <= {0.0, 1.0}
    again = extractable(score, null, error=0.1, seed=3)
    assert_array_equal(found.hit, again.hit)
    with pytest.raises(ResolutionError, match="hold out 38"):
        extractable(score[:80], np.arange(80) >= 43, error=0.05, seed=0)
    assert fewest_null(0.05) == 38


@pytest.mark.parametrize("ties", [False, True])
def test_the_rules_error_holds_for_strangers_on_either_side(ties: bool):
    member, stranger = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        score = rng.poisson(1.0, 160).astype(float) if ties else rng.normal(size=160)
        found = extractable(score, np.arange(160) >= 80, error=0.05, seed=seed)
        member.append(found.hit[:80].mean())
        stranger.append(found.hit[80:].mean())
    for hits in (member, stranger):
        assert np.mean(hits) <= 0.05 + 2 * np.std(hits) / np.sqrt(200)
        assert ties or np.mean(hits) > 0.03


def test_probability_is_of_the_rest_alone():
    subject, asked = world(0, members=3, held_out=3)
    reader = Reader.of(subject, asked.target.vocabulary)
    rows = np.array([4, 1])
    cut = cut_at(subject, reader, "half")[rows]
    begin = Beginning.of(subject, reader, rows, cut, 6, None)
    value = begin.log_prob(asked.target, subject.patient[rows])
    for i, row in enumerate(rows):
        sequence = subject.sequences[row]
        end = min(cut[i] + 6, len(sequence))
        each = [np.log(asked.target.chain[sequence[t - 1], sequence[t]]) for t in range(cut[i], end)]
        assert value[i] == pytest.approx(np.mean(each))
        assert begin.truth[i].tolist() == sequence[cut[i] : end].tolist()
    impossible = Writer(np.where(np.arange(28) == 5, 1.0, 0.0) * np.ones((28, 28)))
    with np.errstate(divide="ignore"):
        assert np.isfinite(begin.log_prob(impossible, subject.patient[rows])).all()


def test_budget_leaves_out_whole_groups_and_says_so():
    subject, asked = with_copies(0)
    result = HALF.run(subject, asked, Budget(patients=40))
    assert not any("records with copies" in gap.what for gap in result.not_tested)
    few = HALF.run(subject, asked, Budget(patients=10))
    assert any(gap.what.startswith("26 records with copies") for gap in few.not_tested)
    assert any("extractable" in gap.what for gap in few.not_tested)
    light = CopiesProbe().run(subject, asked, Budget(size="light"))
    assert not any(name.startswith("codes_10") for name in light.numbers)
    assert "half.extractable.copied.minus_held_out" in light.numbers
    late = CopiesProbe(prompts=("half", "codes_6")).run(subject, asked, Budget(seconds=1e-9))
    assert any(gap.what == "prompt codes_6" for gap in late.not_tested)
    assert any(gap.what.startswith("references") for gap in late.not_tested)


def test_models_that_cannot_be_asked_leave_the_search():
    subject, asked = with_copies(0)
    result = HALF.run(subject, replace(asked, target=None), Budget())
    assert result.tables["groups"].rows[0][1] == 18
    assert "probabilities" in result.not_tested[0].why
    asked.target.abilities = frozenset({"log_probs"})
    result = HALF.run(subject, asked, Budget())
    assert "half.extractable.copied.minus_held_out" in result.numbers
    assert not any("verbatim" in name for name in result.numbers)
    features = Subject(
        n_members=1, patient=np.arange(2), content=RecordContent.from_features(np.zeros((2, 3)))
    )
    assert HALF.run(features, asked, Budget()).not_tested[0].why == "the records are features"


def test_counts_leave_out_no_copies_and_without_references_it_is_said():
    subject, asked = with_copies(0)
    pool = Pool(asked.references.models, asked.references.in_mask, kind="counts")
    result = HALF.run(subject, replace(asked, references=pool), Budget())
    assert any("counts leave out the patient" in gap.why for gap in result.not_tested)
    assert not any("beyond_copies" in name for name in result.numbers)
    result = HALF.run(subject, replace(asked, references=Pool([], np.zeros((0, 120), bool))), Budget())
    assert any("no reference" in gap.why for gap in result.not_tested)


def test_settings_that_judge_nothing_are_refused():
    for bad in ({"error": 0}, {"rate": 1}, {"threshold": 0}, {"prompts": ()}, {"fewest_codes": 0}):
        with pytest.raises(MemguardError):
            CopiesProbe(**bad)


def test_under_the_null_copies_that_the_model_never_saw_are_not_extractable():
    """A model trained on other patients: shares differ by nothing, flags are rare."""
    covered, any_flag, share = [], 0, []
    for seed in range(24):
        subject, asked = with_copies(seed, memorized=False)
        strangers, _ = world(500 + seed, members=60, held_out=1)
        known = [strangers.sequences[i].tolist() for i in range(60)]
        target = Writer(asked.target.chain, known, 0.95)
        result = HALF.run(subject, replace(asked, target=target), Budget(seed=seed))
        kinds = ("extractable.copied", "extractable.single", "verbatim.copied", "log_prob.copied")
        covered += [result.numbers[f"half.{k}.minus_held_out"].covers(0) for k in kinds]
        any_flag += result.flagged.size > 0
        p = result.evidence["half.log_prob"].p_value
        share.append(np.mean(p[np.isfinite(p)] <= 0.05))
    assert np.mean(covered) > 0.88
    assert any_flag <= 5  # 10 % of 24, and two standard deviations
    assert np.mean(share) <= 0.05 + 2 * np.std(share) / np.sqrt(len(share))
