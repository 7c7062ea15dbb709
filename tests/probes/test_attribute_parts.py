"""Arithmetic of T2 against naive code."""

from __future__ import annotations

import numpy as np
import pytest

from memguard.attacks import auc
from memguard.errors import DataError
from memguard.probes.attribute.classes import average_precision, difference, read_side
from memguard.probes.attribute.evidence import (
    comparable_out,
    inference_p_values,
    likelihood_ratio,
)
from memguard.probes.attribute.verdict import judge, needed, p_values_of_kinds
from memguard.probes.strangers import never_saw


def test_a_patient_is_seen_with_any_record() -> None:
    rng = np.random.default_rng(0)
    patient, mask = rng.integers(0, 20, 60), rng.random((5, 60)) < 0.2
    naive = [[any(mask[k][patient == p]) for p in patient] for k in range(5)]
    assert (~never_saw(mask, patient)).tolist() == naive


def test_comparable_out_leaves_equal_sides_and_thins_the_fuller_one() -> None:
    rng = np.random.default_rng(1)
    member = np.arange(400) < 200
    out = rng.random((8, 400)) < 0.5
    assert comparable_out(out, member) is out
    out[:, ~member] = True
    thinned = comparable_out(out, member)
    assert np.array_equal(thinned[:, member], out[:, member])
    assert thinned[:, ~member].sum(0).mean() == pytest.approx(out[:, member].sum(0).mean(), abs=0.4)
    assert thinned[:, ~member].any(1).all()  # different ones for different records
    out[:, ~member] = False  # nobody of one side can be tested: there is nothing to be made comparable
    assert comparable_out(out, member) is out


def test_likelihood_ratio_equals_normal_densities_of_one_variance() -> None:
    """With equally many references of both kinds the ratio of normal densities is linear: ours up to its scale."""
    rng = np.random.default_rng(2)
    inside = np.zeros((8, 300), bool)
    inside[:4] = True
    reference = rng.normal(size=(8, 300)) + 3.0 * inside - 6.0
    target = rng.normal(size=300) - 5.0
    score, said = likelihood_ratio(target, reference, ~inside, inside)
    mean_in, mean_out = reference[:4].mean(0), reference[4:].mean(0)
    squares = ((reference[:4] - mean_in) ** 2).sum() + ((reference[4:] - mean_out) ** 2).sum()
    variance = squares / (300 * 6) * (1 + 1 / 4)
    naive = ((target - mean_out) ** 2 - (target - mean_in) ** 2) / (2 * variance)
    usual = mean_in - mean_out >= (mean_in - mean_out).mean() / 2
    assert usual.mean() > 0.9
    assert score[usual] == pytest.approx(
        naive[usual], rel=0.02, abs=0.02
    )  # the floor of a few gaps moves the variance
    assert said.startswith("likelihood ratio")


def test_likelihood_ratio_rises_with_the_target_and_falls_back() -> None:
    rng = np.random.default_rng(3)
    inside = rng.random((6, 100)) < 0.5
    reference = rng.normal(size=(6, 100)) + 2.0 * inside
    low, high = (likelihood_ratio(np.full(100, t), reference, ~inside, inside)[0] for t in (0.0, 9.0))
    known = np.isfinite(low)
    assert np.array_equal(known, (~inside).any(0))
    assert np.all(high[known] > low[known])
    plain, said = likelihood_ratio(np.zeros(100), reference, ~inside, np.zeros_like(inside))
    assert said.startswith("difference")
    assert plain[known] == pytest.approx([-reference[~inside[:, i], i].mean() for i in np.flatnonzero(known)])
    worse = reference - 4.0 * inside  # seen patients have lower probabilities: no gap to learn from
    assert likelihood_ratio(np.zeros(100), worse, ~inside, inside)[1].startswith("difference")


def test_inference_p_values_equal_a_loop() -> None:
    rng = np.random.default_rng(4)
    tokens, n = np.array([3, 5, 9]), 50
    category, code = rng.integers(0, 2, n), tokens[rng.integers(0, 3, n)]
    evidence, null, usable = rng.normal(size=n), rng.normal(size=(40, 3)).round(1), rng.random((40, 2)) < 0.7
    evidence[0], null[0, 0] = np.nan, np.nan
    p, size = inference_p_values(evidence, category, code, null, tokens, usable)
    for i in range(n):
        others = [null[b, list(tokens).index(code[i])] for b in range(40) if usable[b, category[i]]]
        others = [x for x in others if np.isfinite(x)]
        assert size[i] == len(others)
        if i:
            assert p[i] == pytest.approx((1 + sum(x >= evidence[i] for x in others)) / (1 + len(others)))
    assert np.isnan(p[0])
    with pytest.raises(DataError, match="a code without a null"):
        inference_p_values(evidence, category, np.full(n, 4), null, tokens, usable)


def test_judge_takes_the_strongest_code_of_each_patient() -> None:
    rng = np.random.default_rng(5)
    patient = rng.integers(0, 60, 150)
    member, score, inferable = patient < 30, rng.normal(size=150), rng.random(150) < 0.5
    found = judge(score, patient, member, inferable, alpha=0.1, rate=0.2)
    best = {int(p): max(s for s, q in zip(score, patient, strict=True) if q == p) for p in np.unique(patient)}
    null = [s for p, s in best.items() if p >= 30]
    for i, p in enumerate(found.patient.tolist()):
        assert found.score[i] == best[p]
        assert score[found.strongest[i]] == best[p]
        others = null if p < 30 else [s for q, s in best.items() if q >= 30 and q != p]
        assert found.p[i] == pytest.approx((1 + sum(s >= best[p] for s in others)) / (1 + len(others)))
        assert found.inferable[i] == inferable[found.strongest[i]]
    assert sum(found.counts(True)) + sum(found.counts(False)) == len(best)


def test_judge_calls_nobody_with_too_few_never_trained_patients() -> None:
    member = np.arange(30) < 12
    found = judge(np.where(member, 9.0, 0.0), np.arange(30), member, ~member, alpha=0.05, rate=0.1)
    assert found.n_null == 18 < needed(0.05)
    assert np.isnan(found.p).all()
    assert not found.memorized.any()
    assert not found.flagged.any()


def test_p_values_of_kinds_pool_only_small_categories() -> None:
    rng = np.random.default_rng(6)
    n = 400
    patient, category = rng.integers(0, 300, n), rng.choice([0, 1, 2], n, p=[0.8, 0.1, 0.1])
    member, score = patient % 2 == 0, rng.normal(size=n)
    p, said = p_values_of_kinds(score, patient, member, category, enough=60)
    assert said[0][1] is False
    assert said[1] == said[2]
    assert said[1][1] is True
    for i in range(n):
        group = [0] if category[i] == 0 else [1, 2]
        null = {}
        for j in range(n):
            if not member[j] and category[j] in group and patient[j] != patient[i]:
                null[patient[j]] = max(score[j], null.get(patient[j], -np.inf))
        assert p[i] == pytest.approx((1 + sum(s >= score[i] for s in null.values())) / (1 + len(null)))


def test_average_precision_equals_a_loop_and_knows_ties() -> None:
    rng = np.random.default_rng(7)
    score, positive = rng.integers(0, 12, 80).astype(float), rng.random(80) < 0.3
    total, hits = 0.0, int(positive.sum())
    for threshold in sorted(set(score), reverse=True):
        called = score >= threshold
        new = positive[score == threshold].sum()
        total += new / hits * positive[called].mean()
    assert average_precision(score, positive) == pytest.approx(total)
    assert average_precision(np.zeros(80), positive) == pytest.approx(positive.mean())
    copies = rng.integers(0, 3, 80)
    repeated = np.repeat(np.arange(80), copies)
    assert average_precision(score, positive, copies.astype(float)) == pytest.approx(
        average_precision(score[repeated], positive[repeated])
    )


def test_difference_of_two_sides_covers_the_truth() -> None:
    """AUROC .76 on both sides: the interval of the difference must hold 0 in 95 % of the runs."""
    rng = np.random.default_rng(8)
    hit = 0
    for _ in range(200):
        sides = []
        for n in (120, 60):
            positive = np.arange(n) < n // 4
            sides.append(auc(rng.normal(size=n) + positive, positive))
        found = difference(*sides)
        assert found is not None
        hit += found.covers(0.0)
    assert hit >= 183
    assert difference(None, sides[0]) is None


def test_read_side_intervals_hold_their_values() -> None:
    rng = np.random.default_rng(9)
    positive = np.arange(200) < 30
    side = read_side(rng.normal(size=200) + positive, positive, 1.0)
    for each in (side.auroc, side.auprc, side.precision, side.recall):
        assert each is not None
        assert each.low <= each.value <= each.high
    assert (side.positives, side.n) == (30, 200)
    assert read_side(rng.normal(size=200), positive, 99.0).precision is None
