"""When a sequence of looks stops a training, what is kept, and bounds that hold over all looks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from memguard.attacks.conformal import conformal_p_values, storey_share
from memguard.attacks.difference import mean_difference
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import tpr_at_fpr
from memguard.attacks.powered import powered_auc
from memguard.errors import MemguardError
from memguard.mitigations.looks import (
    auc_at,
    confidence_of,
    error_share,
    memorized_share_at,
    tpr_at,
    wider,
)
from memguard.mitigations.stopping import Judged, StoppingRule


def looks(rule, *given):
    return [rule.judge(epoch=t, step=t, bound=b, utility=u) for t, b, u in given]


def naive_stop(bounds, limit, patience):
    """The first index that ends ``patience`` bounds in a row over the limit."""
    for end in range(patience, len(bounds) + 1):
        if all(b > limit for b in bounds[end - patience : end]):
            return end - 1
    return None


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_stops_where_a_naive_count_does(patience):
    rule = StoppingRule(limit=0.5, patience=patience)
    for bounds in itertools.product([0.4, 0.5, 0.6], repeat=6):
        found = looks(rule, *((t, b, 1.0) for t, b in enumerate(bounds)))
        at = rule.stopped_at(found)
        assert (None if at is None else at.step) == naive_stop(bounds, 0.5, patience)
        over = list(itertools.takewhile(lambda b: b > 0.5, reversed(bounds)))
        assert rule.in_a_row(found) == len(over)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_is_under_the_limit_and_the_earliest_of_equals(mode):
    rule = StoppingRule(limit=0.5, mode=mode)
    sign = 1 if mode == "min" else -1
    found = looks(
        rule, (1, 0.4, sign * 3.0), (2, 0.5, sign * 2.0), (3, 0.45, sign * 2.0), (4, 0.6, sign * 1.0)
    )
    assert rule.best(found).step == 2
    assert rule.best(found[3:]) is None and rule.best([]) is None
    assert rule.best(looks(rule, (1, 0.4, math.nan), (2, math.nan, 1.0))) is None


def test_a_second_look_at_a_step_takes_the_place_of_the_first():
    rule = StoppingRule(limit=0.5, patience=2)
    first = looks(rule, (1, 0.4, 2.0), (2, 0.45, 1.0))
    assert rule.best(first).step == 2
    assert rule.to_keep(first) == {1, 2}  # the second may still turn out to be over
    again = [*first, *looks(rule, (2, 0.6, 1.0))]
    assert rule.best(again).step == 1 and rule.in_a_row(again) == 1
    assert (
        rule.stopped_at([*again, *looks(rule, (2, 0.6, 1.0))]) is None
    )  # one state of the weights, one look
    assert rule.stopped_at([*again, *looks(rule, (3, 0.6, 1.0))]).step == 3
    assert rule.to_keep([*again, *looks(rule, (3, 0.6, 1.0))]) == {1}


def test_what_was_decided_to_stop_stays_decided():
    rule = StoppingRule(limit=0.5)
    found = looks(rule, (1, 0.6, 1.0), (1, 0.4, 1.0), (2, 0.4, 1.0))
    assert rule.stopped_at(found) is found[0] and rule.in_a_row(found) == 0


def test_whatever_can_become_the_best_is_kept():
    rng = np.random.default_rng(0)
    for _ in range(300):
        rule, found, kept = StoppingRule(limit=0.5), [], set()
        step = 0
        for _ in range(8):
            step += int(rng.random() < 0.6)
            found += looks(rule, (step, rng.random(), rng.integers(3)))
            keep = rule.to_keep(found)
            assert keep <= kept | {step}  # weights of an earlier step cannot be taken again
            kept = keep
            best = rule.best(found)
            assert best is None or best.step in kept


def test_judged_survives_a_checkpoint():
    one = Judged(epoch=1.5, step=7, bound=0.2, over=False, utility=3.0)
    assert Judged.of(one.as_dict()) == one


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"limit": math.nan}, "limit=nan"),
        ({"limit": "high"}, "limit='high'"),
        ({"limit": 0.5, "patience": 0}, "patience=0"),
        ({"limit": 0.5, "patience": 1.5}, "patience=1.5"),
        ({"limit": 0.5, "patience": True}, "patience=True"),
        ({"limit": 0.5, "mode": "least"}, "mode='least'"),
    ],
)
def test_a_rule_refuses(given, match):
    with pytest.raises(MemguardError, match=match):
        StoppingRule(**given)


@pytest.mark.parametrize("planned", [None, 1, 7, 400])
def test_the_shares_of_the_error_add_up_to_at_most_one(planned):
    shares = [error_share(t, planned) for t in range(1, 50_000)]
    assert 0.999 < sum(shares) <= 1 + 1e-12
    assert confidence_of(3, planned) == pytest.approx(1 - 0.05 * shares[2])
    with pytest.raises(MemguardError, match="counted from 1"):
        error_share(0, planned)


def sides(seed, m=180, n=260, shift=0.6):
    rng = np.random.default_rng(seed)
    return rng.normal(-shift, 1, m), rng.normal(0, 1, n)  # losses


@pytest.mark.parametrize("confidence", [0.99, 0.9995])
@pytest.mark.parametrize("shift", [0.0, 0.6, 3.0])
def test_intervals_are_those_of_the_method_at_the_higher_confidence(confidence, shift):
    for seed in range(3):
        a, b = sides(seed, shift=shift)
        zero = np.zeros(a.size)

        def auc(wanted, a=a, b=b, zero=zero):
            return powered_auc(-a, zero, zero, -b, confidence=wanted)

        found, true = auc_at(auc(0.95), confidence), auc(confidence)
        assert (found.low, found.high) == pytest.approx((true.low, true.high), abs=1e-9)

        def tpr(wanted, a=a, b=b):
            member = np.repeat([True, False], [a.size, b.size])
            return tpr_at_fpr(-np.r_[a, b], member, 0.1, confidence=wanted)

        given = a, np.arange(a.size), b, np.arange(b.size)
        assert tpr_at(tpr(0.95), *given, fpr=0.1, confidence=confidence) == tpr(confidence)

        p = conformal_p_values(-a, -b)

        def share(wanted, p=p, b=b):
            return storey_share(p, n_null=b.size, confidence=wanted)

        first, true = share(0.95), share(confidence)
        found = memorized_share_at(first, b.size, confidence)
        assert (found.low, found.n) == (pytest.approx(true.low, abs=1e-5), true.n)
        if first.high > 0:
            assert found.high == pytest.approx(true.high, abs=1e-5)
        else:  # several numbers of p-values give an interval of [0, 0]: the widest is taken
            assert found.high >= true.high


def test_losses_of_another_look_are_not_taken_for_its_own():
    a, b = sides(0)
    of_other = Estimate(value=0.2, low=0.1, high=0.3, n=440, method="x")
    given = a, np.arange(a.size), b, np.arange(b.size)
    assert tpr_at(of_other, *given, fpr=0.1, confidence=0.99) == wider(of_other, 0.99)
    impossible = Estimate(value=0.9, low=0.1, high=0.2, n=440, method="x")
    for n in (260, 440, 0):
        assert memorized_share_at(impossible, n, 0.99) == wider(impossible, 0.99)


def test_stretched_intervals_are_hardly_ever_narrower_than_the_method_s_own():
    short = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        m = int(rng.integers(20, 200))
        value = rng.exponential(1, 2 * m) if seed % 2 else (rng.random(2 * m) < 0.3).astype(float)
        member = np.arange(2 * m) < m
        for confidence in (0.99, 0.999):
            first, true = (
                mean_difference(value, np.arange(2 * m), member, confidence=c) for c in (0.95, confidence)
            )
            found = wider(first, confidence)
            lacking = max(found.low - true.low, true.high - found.high)
            assert lacking < 0.1 * (true.high - true.low)
            short += lacking > 1e-9
    assert short <= 0.05 * 120


def test_all_bounds_hold_together_where_nothing_leaks():
    """Correlated looks at the same patients, nothing to find: how often any look shows more than there is."""
    rng = np.random.default_rng(5)
    planned, alarms, single = 20, 0, 0
    runs = 400
    for _ in range(runs):
        mine, theirs = rng.normal(size=120), rng.normal(size=150)
        passed = alone = False
        for t in range(1, planned + 1):
            mine, theirs = (
                0.7 * mine + 0.71 * rng.normal(size=120),
                0.7 * theirs + 0.71 * rng.normal(size=150),
            )
            one = powered_auc(mine, np.zeros(120), np.zeros(120), theirs)
            alone |= one.low > 0.5
            passed |= auc_at(one, confidence_of(t, planned)).low > 0.5
        alarms, single = alarms + passed, single + alone
    assert alarms / runs <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / runs)  # one side of 95 %
    assert single / runs > 0.15  # what the curve's own intervals would do
