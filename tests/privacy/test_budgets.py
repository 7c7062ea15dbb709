"""Individual budgets: one noise, a rate for each stratum, all exhausted at the last step."""

from __future__ import annotations

import pytest

from memguard.errors import PrivacyError
from memguard.privacy.accounting import Phase, epsilon, noise_multiplier_for
from memguard.privacy.budgets import idp_sample_rates

COHORTS = [
    ({"strict": 1.0, "usual": 4.0}, {"strict": 200, "usual": 800}, 0.05, 200, 1e-4),
    pytest.param(
        {"a": 1.0, "b": 2.0, "c": 3.0},
        {"a": 340, "b": 430, "c": 230},
        0.02,
        500,
        1e-4,
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"few": 0.5, "most": 8.0}, {"few": 10, "most": 9990}, 0.01, 2000, 1e-5, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("budgets", "counts", "q", "steps", "delta"), COHORTS)
def test_all_budgets_are_exhausted_together(budgets, counts, q, steps, delta):
    plan = idp_sample_rates(budgets, counts, sample_rate=q, steps=steps, delta=delta)
    mean = sum(counts[s] * plan.rates[s] for s in counts) / sum(counts.values())
    assert mean == pytest.approx(q, rel=1e-9)
    for stratum, budget in budgets.items():
        spent = epsilon([Phase(plan.noise_multiplier, plan.rates[stratum], steps)], delta).value
        assert budget * 0.99 <= spent <= budget
        assert plan.epsilons[stratum] == spent
    by_budget = sorted(budgets, key=budgets.__getitem__)
    assert [plan.rates[s] for s in by_budget] == sorted(plan.rates.values())


def test_equal_budgets_are_plain_dp_sgd():
    plan = idp_sample_rates(
        {"a": 3.0, "b": 3.0}, {"a": 10, "b": 500}, sample_rate=0.02, steps=200, delta=1e-4
    )
    assert plan.rates == {"a": 0.02, "b": 0.02}
    assert plan.noise_multiplier == noise_multiplier_for(3.0, 1e-4, 0.02, 200)
    assert plan.epsilons["a"] == plan.epsilons["b"] <= 3.0


@pytest.mark.slow
def test_budgets_that_hardly_differ_are_nearly_plain_dp_sgd():
    plan = idp_sample_rates(
        {"a": 3.0, "b": 3.03}, {"a": 500, "b": 500}, sample_rate=0.02, steps=200, delta=1e-4
    )
    assert plan.rates["a"] < 0.02 < plan.rates["b"]
    assert plan.rates["a"] == pytest.approx(0.02, rel=0.02)
    assert plan.noise_multiplier == pytest.approx(noise_multiplier_for(3.015, 1e-4, 0.02, 200), rel=5e-3)


@pytest.mark.slow
def test_strata_of_one_budget_share_a_rate():
    plan = idp_sample_rates(
        {"a": 1.0, "b": 4.0, "c": 4.0},
        {"a": 200, "b": 500, "c": 300},
        sample_rate=0.05,
        steps=100,
        delta=1e-4,
    )
    assert plan.rates["b"] == plan.rates["c"] > plan.rates["a"]


def test_budgets_too_far_apart_are_refused():
    with pytest.raises(PrivacyError, match="below 1"):
        idp_sample_rates({"a": 0.1, "b": 50.0}, {"a": 900, "b": 100}, sample_rate=0.2, steps=50, delta=1e-4)


@pytest.mark.parametrize(
    ("budgets", "counts", "more", "seen"),
    [
        ({}, {}, {}, "strata"),
        ({"a": 1.0}, {"b": 1}, {}, "strata"),
        ({"a": 0.0}, {"a": 1}, {}, "epsilons['a']=0.0"),
        ({"a": 1.0}, {"a": 0}, {}, "counts['a']=0"),
        ({"a": 1.0}, {"a": 2.5}, {}, "counts['a']=2.5"),
        ({"a": 1.0}, {"a": 5}, {"sample_rate": 0.0}, "sample_rate=0"),
        ({"a": 1.0}, {"a": 5}, {"steps": 0}, "steps=0"),
        ({"a": 1.0}, {"a": 5}, {"delta": 1.0}, "delta=1.0"),
    ],
)
def test_what_cannot_be_asked_for(budgets, counts, more, seen):
    with pytest.raises(PrivacyError) as error:
        idp_sample_rates(budgets, counts, **({"sample_rate": 0.1, "steps": 10, "delta": 1e-5} | more))
    assert seen in error.value.seen and error.value.fix
