"""Probes are paid for before they are asked: on a clock that the test turns."""

from __future__ import annotations

import numpy as np
import pytest

from memguard.probes.allowance import Allowance


def run(price, *, share=0.02, looks=400, every=50.0, noise=0.0, seed=0):
    """Looks with probes of these prices; a probe stops at its limit, or ignores it where its price is negative."""
    rng, allowance = np.random.default_rng(seed), Allowance(share)
    asked = {name: [] for name in price}
    worst = -np.inf
    for look in range(1, looks + 1):
        trained = look * every
        allowance.look(trained)
        waiting = list(price)
        while waiting and (turn := allowance.next(waiting)) is not None:
            name, limit = turn
            waiting.remove(name)
            assert allowance.saved > 0
            takes = abs(price[name]) * float(np.exp(noise * rng.normal()))
            if limit is not None and price[name] > 0:
                takes = min(takes, limit * 1.001)
            if allowance.paid(name, takes, limit=limit):
                asked[name].append(look)
        worst = max(worst, allowance.spent - share * trained)
    return allowance, asked, worst


def test_the_share_is_kept_and_used():
    allowance, asked, worst = run({"a": 0.4, "b": 3.0, "c": 0.01})
    assert worst <= 0.01  # a trial may run past its limit by a thousandth
    assert allowance.spent >= 0.8 * 0.02 * 400 * 50
    assert all(len(looks) > 50 for looks in asked.values())


def test_a_cheap_probe_neither_stands_still_for_a_dear_one_nor_starves_it():
    _, asked, _ = run({"cheap": 0.05, "dear": 20.0})
    assert len(asked["cheap"]) > 350
    assert len(asked["dear"]) >= 8  # 400 s in all would pay for 19 of them alone


def test_one_that_can_never_be_paid_is_tried_ever_more_seldom():
    allowance, asked, worst = run({"never": 5000.0, "other": 0.1})
    assert asked["never"] == []
    assert worst <= 0.5
    assert len(asked["other"]) > 200
    assert "more than" in allowance.price("never")


def test_a_probe_that_ignores_its_limit_is_known_after_one_trial():
    allowance, asked, worst = run({"deaf": -30.0})
    assert worst <= 30.0
    assert len(asked["deaf"]) >= 10
    assert allowance.cost["deaf"] == 30.0


@pytest.mark.parametrize("seed", range(5))
def test_prices_that_vary_are_paid_off_before_the_next_is_asked(seed):
    _, asked, worst = run({"a": 1.0, "b": 2.0}, noise=0.5, seed=seed)
    assert worst < 10
    assert min(len(asked["a"]), len(asked["b"])) > 60


def test_nobody_is_asked_before_there_is_something_saved():
    allowance = Allowance(0.5)
    assert allowance.next(["a"]) is None
    allowance.look(10.0)
    allowance.expect("a", 6.0)
    assert allowance.next(["a"]) is None
    allowance.look(13.0)
    assert allowance.next(["a"]) == ("a", 6.5)


def test_at_the_end_nothing_is_saved_for():
    allowance = Allowance(0.1)
    allowance.look(100.0)
    allowance.paid("dear", 9.0, limit=None)
    allowance.paid("cheap", 0.1, limit=None)
    allowance.look(101.0)
    assert allowance.next(["dear", "cheap"]) is None
    assert allowance.next(["dear", "cheap"], last=True) == ("cheap", None)


def test_state_goes_on():
    one, _, _ = run({"a": 0.4, "b": 3.0}, looks=30)
    other = Allowance(0.02)
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.look(1600.0)
    assert one.state_dict() == other.state_dict()
    assert one.next(["a", "b"]) == other.next(["a", "b"])
