"""T5: changed prompts are those of others, and what falls with them is divided between patient and population."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from memguard.attacks import auc
from memguard.errors import DataError
from memguard.probes.asked import Budget
from memguard.probes.attribute.verdict import CLASSES
from memguard.probes.perturbation import PerturbationProbe
from memguard.probes.perturbation.changes import Changer, identifiers_of, patients_with
from memguard.probes.perturbation.collapse import excess_of, top_hits
from memguard.probes.prompts import prompts_before
from memguard.records.content import Ragged
from tests.probes._tables import CATEGORIES, IDENTIFIERS, SENSITIVE, Case, TablePool, V, make_case


def _probe(**settings: Any) -> PerturbationProbe:
    given: dict[str, Any] = {
        "identifiers": IDENTIFIERS,
        "sensitive": SENSITIVE,
        "categories": CATEGORIES,
        "draws": 4,
        "contexts": 40,
    }
    return PerturbationProbe(**(given | settings))


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(1, n=200)


def _changer(case: Case) -> Changer:
    sequences, rows = case.subject.sequences, np.arange(len(case.subject))
    static = case.subject.static
    prompts = prompts_before(sequences, rows, sequences.lengths, static, 10)
    return Changer(
        prompts=prompts,
        static=static,
        identifiers=identifiers_of((), V, IDENTIFIERS),
        carriers=patients_with(case.subject, V),
        kept_out=SENSITIVE.any(1),
        source=(prompts, static),
    )


def test_only_what_is_named_is_changed(case: Case) -> None:
    changer = _changer(case)
    assert changer.kinds == ("age", "sex", "rare code", "rare code dropped", "history")
    before = changer.prompts
    place = np.arange(len(before.values)) - before.offsets[before.rows]
    for kind, at in (("age", 1), ("sex", 2)):
        for after in changer.changed(kind, 3, 0):
            moved = np.flatnonzero(after.values != before.values)
            assert len(moved) == len(before)
            assert np.all(place[moved] == at)
            assert np.all(np.isin(after.values[moved], list(IDENTIFIERS[kind])))
    for after in changer.changed("rare code", 3, 0):
        moved = np.flatnonzero(after.values != before.values)
        assert len(moved) == len(before)
        for i, j in zip(before.rows[moved], moved, strict=True):
            carried = changer.carriers[before[int(i)][3:]]
            assert changer.carriers[before.values[j]] == carried.min()
            assert not SENSITIVE[after.values[j]].any()


def test_a_dropped_code_is_gone_and_half_of_the_history_is_new(case: Case) -> None:
    changer = _changer(case)
    before = changer.prompts
    (after,) = changer.changed("rare code dropped", 8, 0)
    assert np.array_equal(after.lengths, before.lengths - 1)
    (new,) = changer.changed("history", 1, 0)
    place = np.arange(len(before.values)) - before.offsets[before.rows]
    moved = new.values != before.values
    assert moved[(place == 1) | (place == 2)].all()
    assert not moved[place == 0].any()
    assert 0.4 < moved[place > 2].mean() < 0.6
    assert not SENSITIVE[new.values[moved]].any()
    again, other = list(changer.changed("history", 2, 0))
    assert np.array_equal(again.values, new.values)
    assert not np.array_equal(other.values, new.values)


def test_identifiers_are_read_or_refused() -> None:
    names = ("PAD", "BOS", "AGE//30-40", "AGE//40-50", "GENDER//F", "GENDER//M", "ICD10CM/B20", "GAP//1-7")
    found = identifiers_of(names, len(names))
    assert {kind: np.flatnonzero(one).tolist() for kind, one in found.items()} == {
        "age": [2, 3],
        "gender": [4, 5],
    }
    assert identifiers_of((), 5) == {}
    with pytest.raises(DataError, match="from 3 to 9 in a vocabulary of 5"):
        identifiers_of((), 5, {"age": [3, 9]})


def test_excess_and_hits_equal_loops() -> None:
    rng = np.random.default_rng(0)
    target, reference, out = rng.normal(size=50), rng.normal(size=(4, 50)), rng.random((4, 50)) < 0.5
    excess, common = excess_of(target, reference, out)
    for i in range(50):
        mine = reference[out[:, i], i]
        if len(mine):
            assert common[i] == pytest.approx(mine.mean())
            assert excess[i] == pytest.approx(target[i] - mine.mean())
        else:
            assert np.isnan(excess[i])
    assert set(top_hits(target, 7)) == set(np.argsort(target)[-7:])


def test_planted_leaks_are_the_patients_and_inferable_ones_everybodys(case: Case) -> None:
    found, _, _ = _probe().examine(case.subject, case.asked, Budget())
    assert found is not None
    verdict, known = _probe().judge(found)
    rows = found.items.row[known[verdict.strongest]]
    kind = np.array(CLASSES)[verdict.classes]
    planted, inferable, inner = case.planted[rows], case.inferable[rows], verdict.member
    both = inner & (planted | inferable)
    assert auc(verdict.score[both], planted[both]).value >= 0.9
    assert np.mean(kind[inner & planted] == "memorized") >= 0.6
    assert np.mean(kind[inner & inferable] == "memorized") <= 0.05
    assert np.mean(np.isin(kind[inferable], ("inferable", "both"))) >= 0.8
    assert np.mean(verdict.memorized[~inner]) <= 0.05
    result = _probe().run(case.subject, case.asked, Budget())
    assert result.numbers["excess.history.minus_held_out"].low > 0.5
    assert result.numbers["patient_level.minus_held_out"].low > 0.1
    assert [row[0] for row in result.tables["kinds"].rows] == list(found.excess)
    assert result.flagged.size >= 5
    assert "the patient's own" in result.answer


def test_a_model_of_other_patients_is_called_at_the_stated_rate() -> None:
    shares, flags = [], 0
    for seed in range(20):
        case = make_case(700 + seed, n=130, share=0.8, memorize=False, n_references=2)
        probe = _probe(draws=2, contexts=20, hits=None)
        found, _, _ = probe.examine(case.subject, case.asked, Budget(seed=seed))
        assert found is not None
        verdict, _ = probe.judge(found)
        shares.append(verdict.memorized[verdict.member].mean())
        flags += bool(verdict.flagged.any())
    assert np.mean(shares) <= 0.05 + 2 * np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert np.mean(shares) > 0.005
    assert flags <= 6


def test_gaps_are_said(case: Case) -> None:
    nobody = dataclasses.replace(case.asked, references=TablePool([], np.zeros((0, 200), bool), "none"))
    result = _probe().run(case.subject, nobody, Budget(size="light"))
    assert "no model that never saw the patients" in result.not_tested[0].why
    assert result.numbers == {}
    mute = dataclasses.replace(case.asked, target=None)
    assert "no adapter" in _probe().run(case.subject, mute, Budget()).answer
    unknown = _probe(sensitive=None).run(case.subject, case.asked, Budget())
    assert "known to be sensitive" in unknown.not_tested[0].why
    blind = _probe(identifiers=None).run(case.subject, case.asked, Budget(size="light"))
    assert any("age, sex" in gap.what for gap in blind.not_tested)
    assert "excess.rare_code.minus_held_out" in blind.numbers
    nothing = _probe(k=0).run(case.subject, case.asked, Budget(size="light"))
    assert "no code is known" in nothing.not_tested[-1].why
    strict = _probe(alpha=0.001).run(case.subject, case.asked, Budget(size="light"))
    assert any(gap.what.startswith("which leaks") for gap in strict.not_tested)
    assert {cell for row in strict.tables["verdicts"].rows for cell in row[3:]} == {None}  # none is no zero


def test_hits_are_the_likeliest_of_both_sides(case: Case) -> None:
    found, _, _ = _probe(hits=60).examine(case.subject, case.asked, Budget())
    every, _, _ = _probe(hits=None).examine(case.subject, case.asked, Budget())
    assert found is not None
    assert every is not None
    assert len(found.items) == 60
    assert found.target.min() >= np.sort(every.target)[-60] - 1e-9
    assert isinstance(case.subject.sequences, Ragged)
