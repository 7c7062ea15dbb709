"""Individual budgets: patients of one stratum are drawn more rarely than those of another, for one noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memguard.errors import PrivacyError
from memguard.privacy.accounting import Phase, epsilon, noise_multiplier_for
from memguard.privacy.accounting.calibration import check_target, crossing, quick_epsilon
from memguard.privacy.accounting.phases import check_count, check_delta, check_rate

__all__ = ["IndividualRates", "idp_sample_rates"]

_ROUNDS = 6
_CLOSE = 2e-3
_MOST_NOISE = 1e6


@dataclass(frozen=True)
class IndividualRates:
    """One noise, and a sampling rate for each stratum.

    Attributes:
        noise_multiplier: Sigma of every step, in units of the clipping norm, which all strata share.
        rates: Sampling rate by stratum; their mean over patients is the sample rate that was asked for.
        epsilons: What :func:`memguard.privacy.accounting.epsilon` reports for each stratum at the end; at most its
            budget.
    """

    noise_multiplier: float
    rates: dict[str, float]
    epsilons: dict[str, float]


def idp_sample_rates(
    epsilons: Mapping[str, float],
    counts: Mapping[str, int],
    *,
    sample_rate: float,
    steps: int,
    delta: float,
) -> IndividualRates:
    """Sampling rates with which all strata exhaust their budgets together, at the last step.

    A patient's epsilon depends on their own rate and the common noise alone. So patients with a small budget are
    drawn more rarely and patients with a large one more often, and the expected batch stays as it was.

    Args:
        epsilons: Budget by stratum, larger than 0.
        counts: Number of patients by stratum, at least 1. Frozen public constants.
        sample_rate: Mean rate over all patients, in (0, 1]: expected batch over number of patients.
        steps: Number of optimizer steps, at least 1.
        delta: In (0, 1), the same for all strata.

    Returns:
        Noise and rates. Each stratum's epsilon is at most its budget, and as a rule within .2 % of it (``epsilons``
        says exactly). With equal budgets that is plain DP-SGD.

    Raises:
        PrivacyError: If an argument is out of range, the strata of both mappings differ, or no rates do it: a
            stratum would have to be drawn with a probability above 1.

    Guarantees:
        Each stratum has its own epsilon, by Poisson sampling at its own rate. The stratum of a patient is not
        hidden by it: it must be known without looking at the data that are protected, such as a patient's own
        choice. Strata that were derived from the records lie outside the guarantee.

    Source:
        Boenisch et al., arXiv 2303.17046, algorithm "Sample".

    Example:
        >>> plan = idp_sample_rates({"strict": 1.0, "usual": 4.0}, {"strict": 200, "usual": 800},
        ...                         sample_rate=0.05, steps=200, delta=1e-4)
        >>> plan.rates["strict"] < 0.05 < plan.rates["usual"]
        True
        >>> {stratum: round(spent, 1) for stratum, spent in plan.epsilons.items()}
        {'strict': 1.0, 'usual': 4.0}
    """
    sizes = _checked(epsilons, counts)
    check_delta(delta)
    check_rate(sample_rate)
    steps = check_count(steps, "steps", least=1)
    budgets = sorted(set(epsilons.values()))
    if sample_rate == 0:
        raise PrivacyError("sample_rate=0", "nobody would be drawn", "pass sample_rate= above 0")
    if len(budgets) == 1:
        sigma = noise_multiplier_for(budgets[0], delta, sample_rate, steps)
        spent = epsilon([Phase(sigma, sample_rate, steps)], delta).value
        return IndividualRates(sigma, dict.fromkeys(epsilons, sample_rate), dict.fromkeys(epsilons, spent))
    total = sum(sizes.values())
    share = {b: sum(sizes[s] for s in sizes if epsilons[s] == b) / total for b in budgets}
    search = _Search(share, sample_rate, steps, delta)
    sigma, rates, spent_by = search.exhaust()
    return IndividualRates(
        sigma, {s: rates[epsilons[s]] for s in epsilons}, {s: spent_by[epsilons[s]] for s in epsilons}
    )


class _Search:
    """For each budget, the rate that exhausts it at a noise; for the noise, the mean rate that was asked for."""

    def __init__(self, share: Mapping[float, float], sample_rate: float, steps: int, delta: float) -> None:
        self.share, self.sample_rate, self.steps, self.delta = share, sample_rate, steps, delta
        # The search is by the quick epsilon; each aim makes up for what the reported one adds.
        self.aims = {budget: budget - min(0.0102, budget / 50) for budget in share}
        self.rates = dict.fromkeys(share, sample_rate)

    def exhaust(self) -> tuple[float, dict[float, float], dict[float, float]]:
        # From the noise of plain DP-SGD at the mean budget: far from the answer, low rates take long to compute.
        mean_aim = sum(self.share[budget] * aim for budget, aim in self.aims.items())
        sigma = crossing(lambda s: self._quick(s, self.sample_rate), mean_aim, 1.0, most=_MOST_NOISE)
        for _ in range(_ROUNDS):
            sigma = crossing(self._mean_rate, self.sample_rate, sigma, most=_MOST_NOISE, rising=True)
            mean = self._mean_rate(sigma)
            rates = {budget: min(1.0, rate * self.sample_rate / mean) for budget, rate in self.rates.items()}
            self._refuse_certainty(rates)
            spent = {b: epsilon([Phase(sigma, q, self.steps)], self.delta).value for b, q in rates.items()}
            if all(budget * (1 - _CLOSE) <= spent[budget] <= budget for budget in spent):
                return sigma, rates, spent
            for budget, value in spent.items():
                self.aims[budget] += budget * (1 - _CLOSE / 2) - value
                self.aims[budget] = min(max(self.aims[budget], budget / 2), budget)
        return self._settled(sigma, rates)

    def _mean_rate(self, sigma: float) -> float:
        for budget, aim in self.aims.items():
            if self._quick(sigma, 1.0) <= aim:
                self.rates[budget] = 1.0
                continue
            self.rates[budget] = crossing(
                lambda q: self._quick(sigma, q), aim, self.rates[budget], least=1e-12, most=1.0, rising=True
            )
        return sum(self.share[budget] * rate for budget, rate in self.rates.items())

    def _quick(self, sigma: float, rate: float) -> float:
        return quick_epsilon([Phase(sigma, rate, self.steps)], self.delta)

    def _settled(
        self, sigma: float, rates: dict[float, float]
    ) -> tuple[float, dict[float, float], dict[float, float]]:
        """A little more noise until every budget holds."""
        for _ in range(40):
            spent = {b: epsilon([Phase(sigma, q, self.steps)], self.delta).value for b, q in rates.items()}
            if all(value <= budget for budget, value in spent.items()):
                return sigma, rates, spent
            sigma *= 1.001
        raise self._impossible()

    def _refuse_certainty(self, rates: Mapping[float, float]) -> None:
        if max(rates.values()) >= 1 and min(self.share) < max(self.share):
            raise self._impossible()

    def _impossible(self) -> PrivacyError:
        budgets = ", ".join(f"{budget:g}" for budget in self.share)
        return PrivacyError(
            f"budgets {budgets} at a mean sample_rate={self.sample_rate:g} over {self.steps} steps",
            "no noise lets all of them be exhausted together with every rate below 1",
            "bring the budgets closer together, or lower sample_rate=",
        )


def _checked(epsilons: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, int]:
    if not epsilons or set(epsilons) != set(counts):
        raise PrivacyError(
            f"budgets for strata {sorted(epsilons)} and counts for {sorted(counts)}",
            "a patient would be without a budget, or a budget without patients",
            "pass epsilons= and counts= with the same strata",
        )
    for stratum, budget in epsilons.items():
        check_target(budget, f"epsilons[{stratum!r}]")
    return {stratum: check_count(n, f"counts[{stratum!r}]", least=1) for stratum, n in counts.items()}
