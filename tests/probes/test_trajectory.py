"""The trajectory probe: finds what was memorized, is quiet where nothing was, and says what it left out."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from memguard.errors import DataError, MemguardError
from memguard.probes.asked import Budget
from memguard.probes.subject import Subject
from memguard.probes.trajectory import TrajectoryProbe
from memguard.records.content import RecordContent
from tests.probes._memorizing import Pool, world

ONE = TrajectoryProbe(tiers=("codes_5",), neighbours=0)
FEW = Budget(samples=3)


@pytest.fixture(scope="module")
def found():
    subject, asked = world(0, memorized=15)
    probe = TrajectoryProbe(tiers=("codes_5", "demographics", "none", "codes_50"), neighbours=6)
    return subject, probe.run(subject, asked, Budget(samples=5))


def test_memorized_records_are_nearer_and_stand_there_word_for_word(found):
    _, result = found
    n = result.numbers
    for measure in ("distance", "exact_match", "overlap", "run", "information"):
        for how in ("best", "mean"):
            assert n[f"codes_5.{measure}.{how}.minus_held_out"].low > 0
    assert n["codes_5.run.best.minus_held_out"].value > 3
    assert n["codes_5.neighbour_ratio.minus_held_out"].high < 0
    assert n["codes_5.distance.best.minus_held_out"].n == 80
    assert result.settings["references"] == 2
    assert result.settings["code_vectors"] == "of the first reference"


def test_flags_are_the_memorized(found):
    _, result = found
    hits = np.isin(np.arange(15), result.flagged).sum()
    assert hits >= 12
    assert len(result.flagged) - hits <= 2


def test_evidence_has_p_values_of_members_only(found):
    subject, result = found
    for evidence in result.evidence.values():
        member = subject.member[evidence.row]
        assert np.isfinite(evidence.value).all()
        assert np.isnan(evidence.p_value[~member]).all()
        assert ((evidence.p_value[member] > 0) & (evidence.p_value[member] <= 1)).all()


def test_a_tier_that_nobody_reaches_is_named(found):
    _, result = found
    assert [g.what for g in result.not_tested] == ["tier codes_50"]
    assert {row[0] for row in result.tables["distance"].rows} == {
        "first 5 codes",
        "demographics",
        "begin token",
    }
    for table in result.tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert set(result.curves["distance"].lines) >= {"target, members", "references, never-trained"}


def test_the_prompt_is_output_nowhere():
    """A model that only repeats what it was given reproduces nothing, however long the prompt."""
    subject, asked = world(1)

    class Echo(type(asked.target)):
        def generate(self, prompts, n_new, *, samples=1, **_):
            again = [prompts[i][:1].tolist() * n_new for i in range(len(prompts)) for _ in range(samples)]
            return type(prompts).from_lists(again)

    target = Echo(asked.target.chain, vectors=asked.target.vectors)
    result = ONE.run(subject, replace(asked, target=target), FEW)
    rows = result.tables["verbatim"].rows[0]
    assert rows[1:9] == [0.0] * 8


def test_what_the_target_knows_of_everybody_is_not_a_leak():
    """Half of the gain of the target over its references goes to both sides alike."""
    subject, asked = world(2, memorized=40, grip=0.95)
    both = [subject.sequences[i].tolist() for i in range(len(subject))]
    target = type(asked.target)(asked.target.chain, both, 0.95, asked.target.vectors)
    blank = type(asked.target)(asked.target.chain, vectors=asked.target.vectors)
    pool = Pool([blank] * 4, asked.references.in_mask)
    result = ONE.run(subject, replace(asked, target=target, references=pool), FEW)
    assert result.tables["distance"].rows[1][2] < 0.5 * result.tables["distance"].rows[1][4]
    assert result.numbers["codes_5.distance.mean.minus_held_out"].covers(0)
    assert result.flagged.size == 0


def test_without_references_members_are_compared_with_strangers_alone():
    subject, asked = world(3, memorized=20, references=0)
    result = ONE.run(subject, asked, FEW)
    assert result.numbers["codes_5.distance.best.minus_held_out"].low > 0
    assert any("reference" in gap.why for gap in result.not_tested)
    assert result.settings["code_vectors"] == "of the target"
    assert result.tables["distance"].rows[0][4] is None


def test_counts_cannot_leave_a_patient_out_of_continuations():
    subject, asked = world(3, memorized=20)
    pool = Pool(asked.references.models, asked.references.in_mask, kind="counts")
    result = ONE.run(subject, replace(asked, references=pool), FEW)
    assert any("'counts'" in gap.why for gap in result.not_tested)
    assert result.settings["references"] == 0


def test_a_model_that_cannot_write_is_not_asked():
    subject, asked = world(0, members=6, held_out=6)
    asked.target.abilities = frozenset({"log_probs"})
    for each in (asked, replace(asked, target=None)):
        result = ONE.run(subject, each, FEW)
        assert result.not_tested
        assert not result.numbers
    features = Subject(
        n_members=1, patient=np.arange(2), content=RecordContent.from_features(np.zeros((2, 3)))
    )
    assert ONE.run(features, asked, FEW).not_tested[0].why == "the records are features"


def test_without_vectors_or_pot_there_is_no_distance_but_the_rest(monkeypatch):
    subject, asked = world(0, members=12, held_out=12, memorized=4)
    asked.target.vectors = None
    for model in asked.references.models:
        model.vectors = None
    result = ONE.run(subject, asked, FEW)
    assert "vectors" in result.not_tested[0].why
    assert "codes_5.run.best.minus_held_out" in result.numbers
    assert not any("distance" in name for name in result.numbers)
    monkeypatch.setitem(sys.modules, "ot", None)
    result = replace(ONE, code_vectors=np.eye(28)).run(subject, asked, FEW)
    assert "memguard-ehr[audit]" in result.not_tested[0].fix
    assert "codes_5.information" in result.evidence


def test_time_that_is_up_leaves_questions_out_and_says_so():
    subject, asked = world(0, members=10, held_out=10)
    probe = replace(ONE, tiers=("codes_5", "codes_6"))
    result = probe.run(subject, asked, Budget(samples=2, seconds=1e-9))
    assert {g.what for g in result.not_tested} >= {"tier codes_6"}
    assert any("questions to references" in g.what for g in result.not_tested)
    assert result.settings["references"] == 0
    assert "codes_5.distance.best.minus_held_out" in result.numbers


def test_budget_and_light_size_are_kept():
    subject, asked = world(0)
    result = TrajectoryProbe(tiers=("codes_5", "codes_6")).run(
        subject, asked, Budget(size="light", patients=8, samples=9)
    )
    assert result.settings["samples"] == 4
    assert {name.split(".")[0] for name in result.numbers} == {"codes_5"}
    assert result.numbers["codes_5.run.best.minus_held_out"].n == 16
    assert asked.target.asked == 64


def test_the_same_seed_gives_the_same_numbers():
    subject, asked = world(0, members=12, held_out=12)
    first, again = (ONE.run(subject, asked, FEW).numbers for _ in range(2))
    assert first == again


def test_settings_that_ask_for_nothing_are_refused():
    for bad in ({"horizon": 0}, {"fewest_codes": 0}, {"fewest_codes": 60}, {"tiers": ()}):
        with pytest.raises(MemguardError):
            TrajectoryProbe(**bad)
    subject, asked = world(0, members=6, held_out=6)
    with pytest.raises(DataError, match="code vectors"):
        replace(ONE, code_vectors=np.eye(3)).run(subject, asked, FEW)
    with pytest.raises(MemguardError, match="tier"):
        replace(ONE, tiers=("ten",)).run(subject, asked, FEW)


def test_under_the_null_the_error_rates_hold():
    """A model trained on other patients: intervals cover zero, p-values are uniform, flags are rare."""
    covered, any_flag, p = [], 0, []
    for seed in range(40):
        subject, asked = world(seed, members=24, held_out=24, lengths=(14, 16), memorized=0)
        strangers, _ = world(1000 + seed, members=24, held_out=1, lengths=(14, 16))
        known = [strangers.sequences[i].tolist() for i in range(24)]
        target = type(asked.target)(asked.target.chain, known, 0.9, asked.target.vectors)
        result = ONE.run(subject, replace(asked, target=target), Budget(samples=2, seed=seed))
        covered += [e.covers(0) for e in result.numbers.values()]
        any_flag += result.flagged.size > 0
        each = result.evidence["codes_5.distance"].p_value
        p.append(np.mean(each[np.isfinite(each)] <= 0.1))
    assert np.mean(covered) > 0.88  # ten correlated numbers of 40 worlds at 95 %
    assert any_flag <= 8  # 10 % of 40, and two standard deviations
    assert np.mean(p) <= 0.1 + 2 * np.std(p) / np.sqrt(len(p))
