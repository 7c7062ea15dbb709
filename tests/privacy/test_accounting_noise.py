"""The least noise for a target: the way there and back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard.errors import PrivacyError
from memguard.privacy.accounting import Phase, calibration, epsilon, noise_multiplier_for, patient_epsilon
from memguard.privacy.accounting.calibration import crossing
from memguard.privacy.accounting.rdp import rdp_epsilon

SETTINGS = [
    (8.0, 1e-5, 0.01, 1000),
    pytest.param(1.0, 1e-6, 0.01, 500, marks=pytest.mark.slow),
    pytest.param(50.0, 1e-5, 0.01, 1000, marks=pytest.mark.slow),
    (3.0, 1e-5, 1.0, 100),
    pytest.param(0.1, 1e-5, 0.02, 100, marks=pytest.mark.slow),
    (2.0, 1e-5, 0.05, 1),
    pytest.param(8.0, 1e-5, 0.01, 10_000, marks=pytest.mark.slow),
    pytest.param(8.0, 1e-5, 0.01, 1_000_000, marks=pytest.mark.slow),
    pytest.param(0.01, 1e-5, 0.01, 100, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("target", "delta", "q", "steps"), SETTINGS)
def test_smallest_noise_that_keeps_the_target(target, delta, q, steps):
    sigma = noise_multiplier_for(target, delta, q, steps)
    assert target * (1 - 1.1e-3) <= epsilon([Phase(sigma, q, steps)], delta).value <= target
    assert epsilon([Phase(sigma * 0.997, q, steps)], delta).value > target


@given(st.floats(0.6, 4), st.floats(0.01, 0.2), st.integers(20, 400))
@settings(max_examples=3, deadline=None, derandomize=True)
def test_property_round_trip(sigma, q, steps):
    target = epsilon([Phase(sigma, q, steps)], 1e-5).value
    assert noise_multiplier_for(target, 1e-5, q, steps) == pytest.approx(sigma, rel=3e-3)


def test_what_is_spent_already_counts():
    spent = [Phase(1.0, 0.02, 100)]
    alone = noise_multiplier_for(4.0, 1e-5, 0.02, 200)
    after = noise_multiplier_for(4.0, 1e-5, 0.02, 200, spent=spent)
    assert after > alone
    assert 3.99 < epsilon([*spent, Phase(after, 0.02, 200)], 1e-5).value <= 4.0


@pytest.mark.slow
def test_a_run_that_is_resumed_as_planned_keeps_its_noise():
    sigma = noise_multiplier_for(4.0, 1e-5, 0.02, 300)
    again = noise_multiplier_for(4.0, 1e-5, 0.02, 180, spent=[Phase(sigma, 0.02, 120)])
    assert again == pytest.approx(sigma, rel=5e-3)


@pytest.mark.slow
def test_a_reported_epsilon_that_jumps_is_kept_all_the_same(monkeypatch):
    def jumping(history, delta):
        honest = epsilon(history, delta)
        return type(honest)(honest.value + (0.5 if honest.value > 1.7 else 0.0), delta, "PRV", "")

    monkeypatch.setattr(calibration, "epsilon", jumping)
    sigma = noise_multiplier_for(2.0, 1e-5, 0.02, 200)
    assert 1.6 < jumping([Phase(sigma, 0.02, 200)], 1e-5).value <= 2.0


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({"target_epsilon": 0.0}, "target_epsilon=0.0"),
        ({"target_epsilon": -1.0}, "target_epsilon=-1.0"),
        ({"target_epsilon": math.inf}, "target_epsilon=inf"),
        ({"target_epsilon": math.nan}, "target_epsilon=nan"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"sample_rate": 0.0}, "sample_rate=0"),
        ({"sample_rate": 1.5}, "sample_rate=1.5"),
        ({"steps": 0}, "steps=0"),
        ({"spent": [Phase(0.5, 0.02, 1000)]}, "is spent already"),
        ({"spent": [Phase(0.0, 0.02, 1)]}, "epsilon inf is spent already"),
    ],
)
def test_what_cannot_be_asked_for(changed, seen):
    usual = {"target_epsilon": 2.0, "delta": 1e-5, "sample_rate": 0.02, "steps": 100}
    with pytest.raises(PrivacyError) as error:
        noise_multiplier_for(**(usual | changed))
    assert seen in error.value.seen and error.value.why and error.value.fix


def test_a_target_out_of_reach_of_any_noise(monkeypatch):
    monkeypatch.setattr(calibration, "quick_epsilon", lambda *_: 3.0)
    with pytest.raises(PrivacyError, match="cannot be reached"):
        noise_multiplier_for(2.0, 1e-5, 0.02, 100)


@pytest.mark.parametrize("power", [0.3, 1, 5])
@pytest.mark.parametrize("start", [1e-2, 1, 90])
@pytest.mark.parametrize("rising", [False, True])
def test_crossing_of_a_power(power, start, rising):
    def value_at(x):
        return x**power if rising else x**-power

    found = crossing(value_at, 2.0**power, start, most=100, rising=rising)
    assert found == pytest.approx(2 if rising else 0.5, rel=1e-3) and value_at(found) <= 2.0**power


def test_crossing_of_steps_zeros_and_infinities():
    def stairs(x):
        return math.inf if x < 0.1 else 0.0 if x > 50 else round(10 / x) / 2

    found = crossing(stairs, 2.2, 1.0, most=100)
    assert stairs(found) == 2.0 and stairs(found * 0.999) == 2.5


def test_crossing_that_never_comes():
    assert crossing(lambda x: 0.0, 1.0, 1.0, most=100, rising=True) == pytest.approx(100)
    with pytest.raises(PrivacyError, match="cannot be reached"):
        crossing(lambda x: 5.0, 1.0, 1.0, most=100)


@pytest.mark.parametrize("records", [1, 3])
def test_an_epsilon_beyond_all_sense_takes_no_minutes(monkeypatch, records):
    def slow(*_):
        raise AssertionError("a finer accountant")

    for name in ("prv_epsilon", "pld_epsilon", "mixture_epsilon"):
        monkeypatch.setattr(f"memguard.privacy.accounting.reported.{name}", slow)
    # The search begins with much noise, where they are quick; this is where it ends.
    quick = calibration.mixture_epsilon
    monkeypatch.setattr(
        calibration, "mixture_epsilon", lambda h, d: quick(h, d) if rdp_epsilon(h, d) < 200 else slow()
    )
    found = patient_epsilon([Phase(0.05, 0.25, 10)], 1e-3, records)
    assert found.value > 1000
    assert found.accountant == "RDP"
    assert "nothing finer is computed" in found.note
    noise = noise_multiplier_for(1000.0, 1e-3, 0.25, 10)
    assert 990 < epsilon([Phase(noise, 0.25, 10)], 1e-3).value <= 1000
