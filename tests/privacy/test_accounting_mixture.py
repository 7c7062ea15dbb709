"""Our own composition: against integrals over the outputs, closed forms and dp-accounting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, norm

from memguard.errors import PrivacyError
from memguard.privacy.accounting import (
    Phase,
    epsilon,
    mixture_epsilon,
    patient_epsilon,
    pld_epsilon,
    rdp_epsilon,
    reported,
)
from memguard.privacy.accounting.losses import Step


def densities(sigma: float, q: float, records: int, points: int):
    """The outputs with and without the patient, as probabilities of points on a fine grid of x."""
    x = np.linspace(-12 * sigma, records + 12 * sigma, points)
    with_patient = sum(binom.pmf(j, records, q) * norm.pdf(x, j, sigma) for j in range(records + 1))
    return with_patient * (x[1] - x[0]), norm.pdf(x, 0, sigma) * (x[1] - x[0])


def brute_delta(p, q, eps: float) -> float:
    return float(np.maximum(p - math.exp(eps) * q, 0).sum())


def brute_epsilon(p, q, delta: float) -> float:
    """Naive: integrate the hockey stick in both directions, and search."""

    def worst(eps):
        return max(brute_delta(p, q, eps), brute_delta(q, p, eps)) - delta

    return brentq(worst, 0, 60, xtol=1e-10) if worst(0) > 0 else 0.0


ONE_STEP = [
    (1.0, 0.01, 1),
    (0.5, 0.2, 1),
    (2.0, 0.3, 4),
    (1.0, 1.0, 1),
    (0.7, 0.05, 3),
    (3.0, 0.9, 10),
    (5.0, 1.0, 4),
]


@pytest.mark.parametrize(("sigma", "q", "records"), ONE_STEP)
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-8])
def test_one_step_against_integration(sigma, q, records, delta):
    naive = brute_epsilon(*densities(sigma, q, records, 200_001), delta)
    ours = mixture_epsilon([Phase(sigma, q, 1)], delta, records)
    assert naive - 1e-6 <= ours <= naive * 1.002 + 2e-4


@pytest.mark.parametrize(("sigma", "q", "records"), ONE_STEP)
@pytest.mark.parametrize("mesh", [1e-3, 0.05])
def test_no_divergence_falls_on_the_grid_in_either_direction(sigma, q, records, mesh):
    p, without = densities(sigma, q, records, 200_001)
    remove, add = Step(sigma, q, records, math.log(1e-14)).on_grid(mesh)
    for loss, upper, lower in ((remove, p, without), (add, without, p)):
        assert loss.mass.min() >= 0 and loss.beyond < 1e-12
        assert loss.mass.sum() + loss.beyond == pytest.approx(1, abs=1e-12)
        at = (loss.start + np.arange(len(loss.mass))) * mesh
        for eps in (-1.0, -0.01, 0.0, 0.003, 0.4, 1.7, 6.0):
            ours = float(loss.mass @ np.maximum(-np.expm1(np.minimum(eps - at, 0)), 0)) + loss.beyond
            exact = brute_delta(upper, lower, eps)
            assert exact - 1e-9 <= ours <= exact + mesh / 2


@pytest.mark.parametrize(("sigma", "q", "records"), [(1.0, 0.05, 1), (1.5, 0.3, 3), (0.8, 0.5, 2)])
def test_two_steps_against_integration_over_the_plane(sigma, q, records):
    p, without = densities(sigma, q, records, 1501)
    both = np.outer(p, p).ravel(), np.outer(without, without).ravel()
    naive = brute_epsilon(*both, 1e-4)
    assert naive - 5e-4 <= mixture_epsilon([Phase(sigma, q, 2)], 1e-4, records) <= naive * 1.002 + 1e-3


@pytest.mark.parametrize("sigma", [0.9, 1.3])
def test_unlike_steps_against_integration_over_the_plane(sigma):
    (p1, q1), (p2, q2) = densities(sigma, 0.1, 2, 1501), densities(2.0, 0.4, 2, 1501)
    naive = brute_epsilon(np.outer(p1, p2).ravel(), np.outer(q1, q2).ravel(), 1e-4)
    ours = mixture_epsilon([Phase(sigma, 0.1, 1), Phase(2.0, 0.4, 1)], 1e-4, 2)
    assert naive - 5e-4 <= ours <= naive * 1.002 + 1e-3


@pytest.mark.parametrize(
    ("sigma", "steps", "records", "delta"),
    [(10, 100, 1, 1e-5), (10, 100, 3, 1e-8), (0.5, 1, 1, 1e-5), (50, 10_000, 1, 1e-6), (1000, 1, 1, 1e-5)],
)
def test_full_batches_have_a_closed_form(sigma, steps, records, delta):
    mu = records * math.sqrt(steps) / sigma  # Balle and Wang, arXiv 1805.06530, theorem 8

    def excess(eps):
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta

    exact = brentq(excess, 0, 100, xtol=1e-12)
    assert exact * (1 - 1e-9) <= mixture_epsilon([Phase(sigma, 1.0, steps)], delta, records) <= exact * 1.001


# Records of a patient at q = .01, 2,000 steps, delta = 1e-5; measured with dp-accounting's mixture of Gaussians.
PATIENTS = [
    (2, 1, 0.90),
    (2, 2, 1.94),
    (2, 5, 5.52),
    (2, 10, 12.80),
    (4, 1, 0.40),
    (4, 2, 0.85),
    (4, 5, 2.33),
    (4, 10, 5.14),
]


@pytest.mark.parametrize(("sigma", "records", "published"), PATIENTS)
def test_patients_with_several_records(sigma, records, published):
    history = [Phase(sigma, 0.01, 2000)]
    assert mixture_epsilon(history, 1e-5, records) == pytest.approx(published, abs=0.012)


@pytest.mark.parametrize(("sigma", "records"), [(4, 3), pytest.param(2, 10, marks=pytest.mark.slow)])
def test_patients_against_dp_accounting(sigma, records):
    pytest.importorskip("dp_accounting")
    history = [Phase(sigma, 0.01, 500)]
    theirs = pld_epsilon(history, 1e-5, records)
    assert theirs is not None
    assert mixture_epsilon(history, 1e-5, records) == pytest.approx(theirs, rel=1e-3)
    spent = patient_epsilon(history, 1e-5, records)
    assert spent.note == "" and {spent.accountant, *spent.others} == {"PLD", "PLD (memguard)", "RDP"}


def test_patient_bound_is_at_least_that_of_a_record_and_below_group_privacy():
    history = [Phase(2.0, 0.01, 2000)]
    assert patient_epsilon(history, 1e-5, 1) == epsilon(history, 1e-5)
    values = [mixture_epsilon(history, 1e-5, records) for records in (1, 2, 3, 10)]
    assert values == sorted(values) and values[-1] < 16.62 < 10 * 10 * values[0]


def test_a_patient_with_records_in_the_hundreds_has_a_bound():
    spent = patient_epsilon([Phase(4.0, 0.001, 500)], 1e-5, 300)
    assert math.isfinite(spent.value) and spent.value <= spent.others["RDP"]


@pytest.mark.parametrize("records", [2, 6])
def test_the_looser_bound_is_looser(records, monkeypatch):
    history = [Phase(3.0, 0.02, 300)]
    tight = patient_epsilon(history, 1e-5, records).value

    def fail(*_):
        raise PrivacyError("too large")

    monkeypatch.setattr(reported, "mixture_epsilon", fail)
    monkeypatch.setattr(reported, "pld_epsilon", fail)
    loose = patient_epsilon(history, 1e-5, records)
    assert loose.accountant == "RDP" and "too large" in loose.note
    assert tight < loose.value < math.inf


def test_a_delta_below_double_precision_is_refused_and_rdp_takes_over():
    history = [Phase(10.0, 1.0, 100)]
    with pytest.raises(PrivacyError, match="rounding"):
        mixture_epsilon(history, 1e-16)
    spent = epsilon(history, 1e-16)  # the libraries do answer, and not with the same number
    assert spent.accountant == "RDP" and spent.value == rdp_epsilon(history, 1e-16)


RUNS = {
    "sigma": st.floats(0.6, 8),
    "q": st.floats(5e-3, 1.0),
    "steps": st.integers(1, 1000),
    "delta": st.floats(1e-8, 1e-3),
    "records": st.integers(1, 4),
}


@given(**RUNS)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_property_monotone_in_every_argument(sigma, q, steps, delta, records):
    here = mixture_epsilon([Phase(sigma, q, steps)], delta, records) * (1 - 2e-3)
    assert mixture_epsilon([Phase(sigma / 1.1, q, steps)], delta, records) >= here
    assert mixture_epsilon([Phase(sigma, min(1.0, q * 1.1), steps)], delta, records) >= here
    assert mixture_epsilon([Phase(sigma, q, steps + 1 + steps // 10)], delta, records) >= here
    assert mixture_epsilon([Phase(sigma, q, steps)], delta / 2, records) >= here
    assert mixture_epsilon([Phase(sigma, q, steps)], delta, records + 1) >= here


@given(**{k: v for k, v in RUNS.items() if k != "records"})
@settings(max_examples=12, deadline=None, derandomize=True)
def test_property_never_above_rdp(sigma, q, steps, delta):
    history = [Phase(sigma, q, steps)]
    assert mixture_epsilon(history, delta) <= rdp_epsilon(history, delta) * 1.002 + 1e-3
