"""T2: planted codes are found as memorized, inferable ones as inferable, and nobody where nothing was memorized."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from memguard.errors import DataError
from memguard.probes.asked import Asked, Budget
from memguard.probes.attribute import AttributeProbe
from memguard.probes.attribute.verdict import CLASSES
from tests.probes._tables import CATEGORIES, SENSITIVE, Case, TablePool, make_case


def _probe(**settings: Any) -> AttributeProbe:
    given: dict[str, Any] = {
        "ks": (0, 2, 10, 20),
        "sensitive": SENSITIVE,
        "categories": CATEGORIES,
        "contexts": 60,
    }
    return AttributeProbe(**(given | settings))


def _only(case: Case, models: list[Any], mask: np.ndarray, kind: str = "pool") -> Asked:
    return dataclasses.replace(case.asked, references=TablePool(models, mask, kind))


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(1, n=240)


@pytest.fixture(scope="module")
def found(case: Case) -> Any:
    return _probe().run(case.subject, case.asked, Budget(samples=4))


def test_planted_members_are_memorized_and_inferable_ones_are_not(case: Case) -> None:
    each, verdict, known = _probe().examined(case.subject, case.asked, Budget())[-1]
    rows = each.items.row[known[verdict.strongest]]
    kind = np.array(CLASSES)[verdict.classes]
    planted, inferable = case.planted[rows], case.inferable[rows]
    assert np.mean(kind[verdict.member & planted] == "memorized") >= 0.85
    assert np.mean(kind[verdict.member & inferable] == "memorized") <= 0.02
    assert np.mean(np.isin(kind[inferable], ("inferable", "both"))) >= 0.95
    assert np.mean(verdict.memorized[~verdict.member]) <= 0.05
    assert np.mean(case.planted[rows[verdict.flagged]]) >= 0.8  # at most one false flag in ten on average
    assert case.subject.member[rows[verdict.flagged]].all()
    assert verdict.flagged.sum() >= 20


def test_a_high_probability_alone_is_evidence_of_neither(case: Case) -> None:
    each, _, _ = _probe().examined(case.subject, case.asked, Budget())[-1]
    inner, rows = each.member, each.items.row
    likely = each.target[inner & case.inferable[rows]].mean()
    assert (
        likely > each.target[~inner & case.planted[rows]].mean() + 3
    )  # inferable codes are likely all right
    assert abs(np.nanmean(each.memorization[inner & case.inferable[rows]])) < 0.7
    assert np.nanmean(each.memorization[inner & case.planted[rows]]) > 3


def test_numbers_tables_and_evidence_agree(case: Case, found: Any) -> None:
    assert found.numbers["memorized.k20.minus_held_out"].low > 0.2
    assert found.numbers["memorized.k0.minus_held_out"].low < 0.0
    assert found.numbers["evidence.k20.minus_held_out"].low > 0.5
    assert found.numbers["inference.k20.minus_held_out"].covers(0.0)
    assert found.numbers["planted.k20.evidence.minus_held_out"].low > 2.0
    assert found.numbers["secret.k20.evidence.minus_held_out"].covers(0.0)
    assert [row[0] for row in found.tables["axes"].rows] == [0, 2, 10, 20]
    evidence = found.evidence["memorization.k20"]
    assert len(np.unique(evidence.row)) == len(evidence.row)
    assert np.all(np.isfinite(evidence.value))
    member = case.subject.member[evidence.row]
    assert np.array_equal(np.isfinite(evidence.p_value), member)
    assert [each[0] for each in found.curves["by k"].lines["memorization"]] == [0, 2, 10, 20]
    assert found.settings["n_references"] == 4
    assert "memorized" in found.answer
    assert all(isinstance(row[2], int | str) for row in found.tables["verdicts"].rows)


def test_the_rank_of_a_code_is_counted(case: Case) -> None:
    each, _, _ = _probe().examined(case.subject, case.asked, Budget())[-1]
    i = int(np.flatnonzero(each.member)[0])
    row, place = each.items.row[i], each.items.place[i]
    tokens = case.subject.sequences[row]
    start = max(3, place - 20)
    prompt = case.subject.sequences.take([row])
    prompt = type(prompt).from_lists([[*tokens[:3].tolist(), *tokens[start:place].tolist()]])
    assert case.asked.target is not None
    all_of_them = case.asked.target.next_log_probs(prompt)[0]
    own = all_of_them[each.items.code[i]]
    assert each.target[i] == pytest.approx(own)
    assert each.rank[i] == 1 + sum(one > own for one in all_of_them)


@pytest.mark.parametrize("n_references", [1, 4])
def test_a_model_of_other_patients_is_called_at_the_stated_rate(n_references: int) -> None:
    """24 seeds; with P the patients called in each, the mean share must be compatible with alpha."""
    shares, flags = [], 0
    for seed in range(24):
        case = make_case(100 + seed, n=160, share=0.7, memorize=False, n_references=n_references)
        _, verdict, _ = _probe(ks=(0, 20), contexts=30).examined(case.subject, case.asked, Budget(seed=seed))[
            -1
        ]
        shares.append(verdict.memorized[verdict.member].mean())
        flags += bool(verdict.flagged.any())
    error = np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert np.mean(shares) <= 0.05 + 2 * error
    assert np.mean(shares) > 0.005  # and it is a rate, not a rule that never calls
    assert flags <= 6  # at most one in ten on average: six of 24 or fewer with probability .99


def test_references_of_members_alone_keep_the_rate() -> None:
    """Twins never saw a held-out patient: with all of them as comparison, held-out patients would look steadier."""
    shares = []
    for seed in range(24):
        case = make_case(300 + seed, n=160, share=0.7, memorize=False, n_references=4)
        mask = case.asked.references.in_mask & case.subject.member
        models = list(case.asked.references.adapters())
        asked = _only(case, models, mask, "twins")
        _, verdict, _ = _probe(ks=(0, 20), contexts=30).examined(case.subject, asked, Budget(seed=seed))[-1]
        shares.append(verdict.memorized[verdict.member].mean())
    assert np.mean(shares) <= 0.05 + 2 * np.std(shares, ddof=1) / np.sqrt(len(shares))


def test_inference_is_called_at_its_rate_where_nothing_announces_the_code() -> None:
    shares = []
    for seed in range(20):
        case = make_case(500 + seed, n=160, share=0.7, memorize=False)
        each, _, _ = _probe(ks=(0, 20), least_inference=0.0).examined(
            case.subject, case.asked, Budget(seed=seed)
        )[-1]
        planted = case.planted[each.items.row] & np.isfinite(each.p_inference)
        shares.append(each.inferable(0.05, 0.0)[planted].mean())
    assert np.mean(shares) <= 0.05 + 2 * np.std(shares, ddof=1) / np.sqrt(len(shares))


def test_class_form_is_a_difference_and_its_prompts_hold_no_such_code(found: Any) -> None:
    exact = found.numbers["secret.k10.auroc.minus_held_out"]
    assert exact.low < 0.0 < exact.high  # what foretells the code does so for strangers as well
    assert "secret.k10.sampled.auroc.minus_held_out" in found.numbers
    heads = found.tables["class form"].columns
    row = found.tables["class form"].rows[0]
    assert row[heads.index("positives, members")] >= 5


def test_gaps_are_said_and_nothing_is_filled() -> None:
    case = make_case(2, n=40, share=0.4)
    nobody = _only(case, [], np.zeros((0, 40), bool), "none")
    result = _probe().run(case.subject, nobody, Budget(size="light"))
    assert "no model that never saw the patients" in result.not_tested[0].why
    assert not any(key.startswith(("memorized", "evidence")) for key in result.numbers)
    few = _probe().run(case.subject, case.asked, Budget(size="light"))
    assert any(gap.what.startswith("who is memorized") for gap in few.not_tested)
    assert not any(key.startswith("memorized") for key in few.numbers)
    assert few.flagged.size == 0
    assert {cell for row in few.tables["verdicts"].rows for cell in row[2:]} == {None}  # none is no zero
    called = [row[5:7] + row[8:10] for row in few.tables["categories"].rows]
    assert {cell for row in called for cell in row} == {None}
    assert "evidence.k10.minus_held_out" in few.numbers
    mute = dataclasses.replace(case.asked, target=None)
    assert _probe().run(case.subject, mute, Budget()).numbers == {}
    unnamed = _probe(sensitive=None).run(case.subject, case.asked, Budget())
    assert unnamed.not_tested[0].why == "no token is known to be sensitive"


def test_a_record_that_every_reference_saw_is_not_tested(case: Case) -> None:
    mask = case.asked.references.in_mask.copy()
    row = int(np.flatnonzero(case.planted)[0])
    mask[:, row] = True
    asked = _only(case, list(case.asked.references.adapters()), mask)
    before = int(np.sum(mask[:, case.planted | case.inferable].all(0)))
    result = _probe(ks=(0, 20)).run(case.subject, asked, Budget(size="light"))
    assert any(gap.what.startswith(f"{before} of ") for gap in result.not_tested)
    assert row not in result.evidence["memorization.k10"].row


def test_without_static_tokens_no_empty_prompt_is_asked() -> None:
    case = make_case(3, n=200, static=0)
    result = _probe().run(case.subject, case.asked, Budget(size="light"))
    assert any(gap.what == "k = 0" for gap in result.not_tested)
    full = _probe(ks=(0, 20, 50)).run(case.subject, case.asked, Budget(samples=2))
    assert full.numbers["memorized.k20.minus_held_out"].low > 0.2
    assert any(gap.what == "k = 50" for gap in full.not_tested)


def test_time_that_is_over_is_said(case: Case) -> None:
    result = _probe().run(case.subject, case.asked, Budget(seconds=1e-6))
    assert any("3 of 4 references" in gap.what for gap in result.not_tested)
    assert any(
        gap.why == "the time of the budget was over" and "class form" in gap.what for gap in result.not_tested
    )


def test_budget_of_patients_and_small_cells(case: Case) -> None:
    result = _probe().run(case.subject, case.asked, Budget(size="light", patients=22))
    axes = result.tables["axes"].rows[-1]
    assert axes[1] == axes[2] == 22
    shown = [cell for row in result.tables["verdicts"].rows for cell in row[2:]]
    assert all(cell == 0 or cell == "<5" or int(cell) >= 5 for cell in shown)
    assert "<5" in shown


def test_same_seed_same_answer(case: Case) -> None:
    a, b = (_probe().run(case.subject, case.asked, Budget(size="light", seed=4)) for _ in range(2))
    assert a.numbers == b.numbers
    assert a.flagged.tolist() == b.flagged.tolist()


def test_refused_tables(case: Case) -> None:
    with pytest.raises(DataError, match=r"\(3, 2\) truth values"):
        _probe(sensitive=SENSITIVE[:3]).run(case.subject, case.asked, Budget())
    with pytest.raises(DataError, match="1 names"):
        _probe(categories=("one",)).run(case.subject, case.asked, Budget())
