"""What the trajectory probe is made of, against naive loops."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linprog

from memguard.errors import DataError, MemguardError
from memguard.probes.strangers import never_saw
from memguard.probes.subject import Subject
from memguard.probes.trajectory.asking import assign, compared, cut_to
from memguard.probes.trajectory.overlap import common_runs, exact_match, multiset_overlap
from memguard.probes.trajectory.reading import Reader, Timed, gap_days, structural
from memguard.probes.trajectory.tiers import draw, prompt_lengths, prompts_and_truth
from memguard.probes.trajectory.transport import Ground, nearest_other, transport_distance
from memguard.records.content import Ragged, RecordContent


def pairs(seed: int, n: int = 60, v: int = 5):
    rng = np.random.default_rng(seed)
    made = [rng.integers(0, v, rng.integers(0, 12)).tolist() for _ in range(n)]
    truth = [rng.integers(0, v, rng.integers(1, 12)).tolist() for _ in range(n)]
    return made, truth, Ragged.from_lists(made), Ragged.from_lists(truth)


@pytest.mark.parametrize("seed", range(3))
def test_shares_and_runs_as_loops_count_them(seed: int):
    made, truth, a, b = pairs(seed)
    weight = np.random.default_rng(seed).random(5)
    runs = common_runs(a, b, weight)
    for i, (x, y) in enumerate(zip(made, truth, strict=True)):
        assert exact_match(a, b)[i] == pytest.approx(sum(p == q for p, q in zip(x, y, strict=False)) / len(y))
        assert multiset_overlap(a, b)[i] == pytest.approx(
            sum(min(x.count(c), y.count(c)) for c in set(y)) / len(y)
        )
        common = [
            x[s:e]
            for s in range(len(x))
            for e in range(s, len(x) + 1)
            if any(y[t : t + e - s] == x[s:e] for t in range(len(y)))
        ]
        assert runs.length[i] == max((len(c) for c in common), default=0)
        assert runs.weight[i] == pytest.approx(
            max((sum(weight[c] for c in one) for one in common), default=0)
        )


def test_pairs_are_cut_in_parts_without_a_difference(monkeypatch):
    _, _, a, b = pairs(1)
    whole = common_runs(a, b, np.ones(5))
    monkeypatch.setattr("memguard.probes.trajectory.overlap._CELLS", 30)
    parts = common_runs(a, b, np.ones(5))
    assert_array_equal(whole.length, parts.length)
    assert_array_equal(whole.weight, parts.weight)


def test_there_is_no_share_of_nothing():
    empty, one = Ragged.from_lists([[]]), Ragged.from_lists([[1]])
    for ask in (exact_match, multiset_overlap):
        with pytest.raises(DataError, match="empty"):
            ask(one, empty)
        with pytest.raises(DataError, match="for 1 true"):
            ask(Ragged.from_lists([[1], [2]]), one)
    with pytest.raises(DataError, match="weights"):
        common_runs(one, one, np.ones(1))
    assert exact_match(empty, one)[0] == multiset_overlap(empty, one)[0] == 0.0


def timed(rows, rng) -> Timed:
    codes = Ragged.from_lists(rows)
    return Timed(codes=codes, time=rng.random(len(codes.values)))


def naive_cost(a, ta, b, tb, vectors, time_cost):
    cost = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            u, w = vectors[a[i]], vectors[b[j]]
            cost[i, j] = 0.0 if a[i] == b[j] else (1 - u @ w / np.sqrt((u @ u) * (w @ w))) / 2
            cost[i, j] += time_cost * abs(ta[i] - tb[j])
    return cost


def naive_transport(cost):
    """The transport problem as a linear program."""
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    equal = np.r_[np.full(n, 1 / n), np.full(m, 1 / m)]
    return linprog(cost.reshape(-1), A_eq=np.r_[rows, columns], b_eq=equal, bounds=(0, None)).fun


def test_distance_is_the_linear_programs():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4))
    made = timed([rng.integers(0, 9, n).tolist() for n in (1, 4, 6, 5, 7)], rng)
    truth = timed([rng.integers(0, 9, n).tolist() for n in (5, 4, 3, 7, 7)], rng)
    found = transport_distance(made, truth, Ground(vectors, time_cost=0.7))
    for i in range(5):
        parts = [(t.codes[i], t.time[t.codes.offsets[i] : t.codes.offsets[i + 1]]) for t in (made, truth)]
        cost = naive_cost(*parts[0], *parts[1], vectors, 0.7)
        assert found[i] == pytest.approx(naive_transport(cost), abs=1e-8)


def test_nothing_written_is_as_far_as_can_be_and_the_same_costs_nothing():
    rng = np.random.default_rng(0)
    one = timed([[0, 1], [0, 1]], rng)
    other = Timed(codes=Ragged.from_lists([[], [0, 1]]), time=one.time[2:])
    found = transport_distance(other, one, Ground(np.zeros((2, 3)), time_cost=0.2))
    assert_allclose(found, [1.2, 0.0])


def test_the_nearest_other_is_the_minimum_over_all():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(12, 3)) + 1.0
    vectors[4] = 0.0
    made = timed([rng.integers(0, 12, rng.integers(0, 6)).tolist() for _ in range(12)], rng)
    others = timed([rng.integers(0, 12, rng.integers(0, 6)).tolist() for _ in range(9)], rng)
    ground = Ground(vectors)
    allowed = rng.random((12, 9)) < 0.7
    allowed[5] = False
    found = nearest_other(made, others, allowed, ground)
    every = np.full((12, 9), np.inf)
    for i in range(12):
        for j in range(9):
            parts = [(t.codes.take([k]), t.codes.rows == k) for t, k in ((made, i), (others, j))]
            each = [Timed(codes=c, time=t.time[m]) for (c, m), t in zip(parts, (made, others), strict=True)]
            every[i, j] = transport_distance(each[0], each[1], ground)[0]
    expected = np.where(allowed, every, np.inf).min(axis=1)
    assert np.isnan(found[5])
    assert_allclose(np.delete(found, 5), np.delete(expected, 5))


def test_without_pot_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    one = timed([[0, 1]], np.random.default_rng(0))
    with pytest.raises(MemguardError, match=r"memguard-ehr\[audit\]"):
        transport_distance(one, one, Ground(np.eye(2)))


@pytest.mark.parametrize(
    ("vectors", "cost"),
    [(np.ones(3), 0.5), (np.full((2, 2), np.nan), 0.5), (np.eye(2), -1), (np.eye(2), np.nan)],
)
def test_costs_that_are_none_are_refused(vectors, cost):
    with pytest.raises(DataError, match="code_vectors"):
        Ground(vectors, time_cost=cost)


def test_codes_without_vectors_and_pairs_that_do_not_fit_are_refused():
    rng = np.random.default_rng(0)
    one, two = timed([[0, 1]], rng), timed([[0], [1]], rng)
    with pytest.raises(DataError, match="1 code vectors"):
        transport_distance(one, one, Ground(np.eye(1)))
    with pytest.raises(DataError, match="for 2 true"):
        transport_distance(one, two, Ground(np.eye(2)))
    with pytest.raises(DataError, match="allowed"):
        nearest_other(one, two, np.ones((2, 2), bool), Ground(np.eye(2)))


NAMES = ("PAD", "BOS", "GENDER//F", "GAP//1-4", "GAP//100+", "A", "B", "TIME_START", "TIMEX")


def test_names_say_what_is_no_code():
    assert structural(NAMES, 9).tolist() == [True, True, False, True, True, False, False, True, False]
    assert gap_days(NAMES, 10).tolist() == [0, 0, 0, 2, 100, 0, 0, 0, 0, 0]
    assert not structural((), 4).any()


def named(rows, n_members=1, static=2):
    codes = Ragged.from_lists(rows)
    return Subject(
        n_members=n_members,
        patient=np.arange(len(rows)),
        content=RecordContent.from_codes(codes),
        names=NAMES,
        static=np.full(len(rows), static),
    )


def test_gaps_let_time_pass_and_are_no_evidence():
    subject = named([[1, 2, 5, 3, 6, 4, 5], [1, 2, 5, 5, 5]])
    reader = Reader.of(subject, 9)
    found = reader.read(Ragged.from_lists([[5, 3, 6, 4, 5], [3, 3], [4, 5]]), 50)
    assert [found.codes[i].tolist() for i in range(3)] == [[5, 6, 5], [], [5]]
    decade = np.log1p(3652.5)
    assert_allclose(found.time, np.log1p([0, 2, 102, 100]) / decade)
    assert reader.information[[0, 1, 3, 4]].tolist() == [0, 0, 0, 0]
    assert_allclose(reader.information[[2, 5, 6]], [0, 0, np.log(2)])


def test_prompts_hold_what_a_tier_knows_and_truth_begins_behind():
    rows = [[1, 2, 5, 3, 6, 4, 5, 6, 6], [1, 2, 3, 4], [1, 2, 5, 6, 5, 3]]
    subject = named(rows)
    reader = Reader.of(subject, 9)
    cuts = {t: prompt_lengths(subject, reader, t) for t in ("none", "demographics", "codes_0", "codes_2")}
    assert {k: v.tolist() for k, v in cuts.items()} == {
        "none": [1, 1, 1],
        "demographics": [2, 2, 2],
        "codes_0": [2, 2, 2],
        "codes_2": [5, 0, 4],
    }
    who = np.array([2, 0])
    prompt, truth = prompts_and_truth(subject, who, cuts["codes_2"][who], 3, None)
    assert [prompt[i].tolist() for i in range(2)] == [[1, 2, 5, 6], [1, 2, 5, 3, 6]]
    assert [truth[i].tolist() for i in range(2)] == [[5, 3], [4, 5, 6]]
    _, truth = prompts_and_truth(subject, who, cuts["codes_2"][who], 3, 6)
    assert [truth[i].tolist() for i in range(2)] == [[5, 3], [4]]
    with pytest.raises(MemguardError, match="tier 'ten'"):
        prompt_lengths(subject, reader, "ten")


def test_without_a_common_first_token_there_is_no_begin_token():
    subject = named([[1, 2, 5], [2, 2, 5]])
    assert prompt_lengths(subject, Reader.of(subject, 9), "none").tolist() == [0, 0]


def test_equal_numbers_one_record_each_and_the_short_are_counted():
    rng = np.random.default_rng(0)
    rows = [[1, 2] + [5] * int(n) for n in rng.integers(1, 12, 60)]
    codes = Ragged.from_lists(rows)
    patient = np.repeat(np.arange(30), 2)
    subject = Subject(
        n_members=36,
        patient=patient,
        content=RecordContent.from_codes(codes),
        names=NAMES,
        static=np.full(60, 2),
    )
    reader = Reader.of(subject, 9)
    out = np.zeros((0, 60), bool)
    plan = draw(
        subject,
        reader,
        "codes_4",
        out=out,
        horizon=9,
        fewest=3,
        longest=None,
        patients=None,
        references=4,
        seed=1,
    )
    long = codes.lengths >= 2 + 4 + 3
    able = [np.unique(patient[long & (subject.member == side)]).size for side in (True, False)]
    assert plan.available == tuple(able)
    assert plan.short == (18 - able[0], 12 - able[1])
    n = min(able)
    assert len(plan.rows) == 2 * n
    assert subject.member[plan.rows].tolist() == [True] * n + [False] * n
    assert np.unique(patient[plan.rows]).size == 2 * n
    assert long[plan.rows].all()
    assert plan.references == 0


def test_everybody_is_compared_with_the_same_number_of_references():
    rng = np.random.default_rng(0)
    out = rng.random((8, 40)) < 0.6
    depth = int(out.sum(axis=0).min())
    chosen = assign(out, depth, 0)
    assert (chosen.sum(axis=0) == depth).all()
    assert not (chosen & ~out).any()
    member = np.arange(40) < 20
    asked = chosen & (np.arange(8) < 6)[:, None]
    counted, found = compared(asked, member)
    have = asked.sum(axis=0)
    assert found == min(np.sort(have[member])[1], np.sort(have[~member])[1])
    assert set(counted.sum(axis=0)) <= {0, found}
    assert_array_equal(counted.any(axis=0), (have >= found) & (found > 0))


def test_a_reference_saw_a_patient_whose_any_record_it_saw():
    found = never_saw(np.array([[1, 0, 0, 0], [0, 0, 0, 1]], bool), np.array([3, 3, 9, 5]))
    assert found.tolist() == [[False, False, True, True], [True, True, True, False]]


def test_continuations_are_as_long_as_the_truth_at_most():
    cut = cut_to(Ragged.from_lists([[1, 2, 3], [], [4, 5]]), np.array([1, 2, 5]))
    assert [cut[i].tolist() for i in range(3)] == [[1], [], [4, 5]]
