"""The privacy loss of one step for a patient with several records, on a grid and never understated."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp, ndtri_exp
from scipy.stats import binom

__all__ = ["PrivacyLoss", "Step"]

Array: TypeAlias = NDArray[np.floating[Any]]

_COARSE = 4001


class PrivacyLoss(NamedTuple):
    """A distribution of privacy losses: ``mass[i]`` lies at ``(start + i) * mesh``, ``beyond`` at infinity."""

    start: int
    mass: Array
    beyond: float


class Step:
    """One step: Gaussian noise on a sum that holds j of the patient's records with probability Binomial(j).

    Without the patient the output is Q = N(0, sigma^2), with them at worst P = sum_j w_j N(j, sigma^2), in units
    of the clipping norm. The log-likelihood ratio rises with the output x, which makes everything here a matter
    of intervals of x.

    Args:
        noise_multiplier: Sigma, larger than 0.
        sample_rate: Of each record, 0 < q <= 1.
        records: Number of the patient's records.
        log_tail: Probabilities below its exponential are given away: they count as a loss of infinity.

    Source:
        Charles et al., arXiv 2407.07737, for the pair of mixtures that dominates sampling by example.
    """

    def __init__(self, noise_multiplier: float, sample_rate: float, records: int, log_tail: float) -> None:
        self.sigma = noise_multiplier
        counts = binom(records, sample_rate)
        tail = math.exp(log_tail)
        low, high = int(counts.ppf(tail)), int(counts.isf(tail))
        self.means = np.arange(low, high + 1, dtype=float)
        log_weights = counts.logpmf(self.means)
        self.means, self.log_weights = self.means[log_weights > -np.inf], log_weights[log_weights > -np.inf]
        self._dropped = float(counts.cdf(low - 1) + counts.sf(high))
        reach = -float(ndtri_exp(log_tail)) * self.sigma
        self._coarse = np.linspace(-reach, float(self.means[-1]) + reach, _COARSE)
        self._coarse_loss = self.loss_at(self._coarse)

    def loss_at(self, x: Array) -> Array:
        """Log P(x) / Q(x) at outputs of shape (n,)."""
        j = self.means[:, None]
        return np.asarray(
            logsumexp(self.log_weights[:, None] + (j * x - j**2 / 2) / self.sigma**2, axis=0), dtype=float
        )

    @property
    def span(self) -> float:
        """Between the smallest and the largest loss that is told apart, in nats."""
        return float(self._coarse_loss[-1] - self._coarse_loss[0])

    def spread(self) -> float:
        """Standard deviation of the loss, the smaller of both directions, in nats."""
        middle = (self._coarse_loss[1:] + self._coarse_loss[:-1]) / 2
        spreads = []
        for mass in (np.exp(self._log_masses(self._coarse)[0]), np.exp(self._log_masses(self._coarse)[1])):
            mean = float(np.sum(mass * middle)) / float(np.sum(mass))
            spreads.append(math.sqrt(float(np.sum(mass * (middle - mean) ** 2)) / float(np.sum(mass))))
        return min(spreads)

    def _log_masses(self, x: Array) -> tuple[Array, Array]:
        """Log-probabilities of the intervals between outputs x (n,), under P and under Q; each (n - 1,)."""
        components = [_log_interval(x, float(mean), self.sigma) for mean in self.means]
        under_p = logsumexp(self.log_weights[:, None] + np.asarray(components), axis=0)
        under_q = components[0] if self.means[0] == 0 else _log_interval(x, 0.0, self.sigma)
        return np.asarray(under_p, dtype=float), under_q

    def on_grid(self, mesh: float) -> tuple[PrivacyLoss, PrivacyLoss]:
        """Privacy losses of removing and of adding the patient, each at least as bad as the true one.

        Every interval of outputs is replaced by two atoms, on multiples of the mesh that enclose its losses, which
        keep its probability under both distributions. That is a mean-preserving spread of the likelihood ratio,
        and so no hockey-stick divergence falls (Doroshenko et al., arXiv 2207.04380, "connect the dots").
        """
        low, high = self._coarse_loss[0], self._coarse_loss[-1]
        wanted = np.arange(math.floor(low / mesh), math.ceil(high / mesh), 0.5) * mesh + mesh / 4
        rising = np.concatenate(
            [[True], np.diff(self._coarse_loss) > 0]
        )  # flat to the last digit on the left
        x = np.interp(wanted, self._coarse_loss[rising], self._coarse[rising])
        x = np.unique(np.concatenate([self._coarse, x]))
        losses = np.maximum.accumulate(self.loss_at(x))
        log_p, log_q = self._log_masses(x)
        below_p, above_p = self._outside(x)
        below_q, above_q = (math.exp(float(log_ndtr(z / self.sigma))) for z in (x[0], -x[-1]))
        remove = _spread(losses[:-1], losses[1:], log_p, log_q, mesh, below_p, above_p + self._dropped)
        add = _spread(-losses[1:], -losses[:-1], log_q, log_p, mesh, above_q, below_q)
        return remove, add

    def _outside(self, x: Array) -> tuple[float, float]:
        weights = np.exp(self.log_weights)
        below = np.exp(log_ndtr((x[0] - self.means) / self.sigma))
        above = np.exp(log_ndtr((self.means - x[-1]) / self.sigma))
        return float(weights @ below), float(weights @ above)


def _log_interval(x: Array, mean: float, sigma: float) -> Array:
    """Log-probability of the intervals between x under a Gaussian, with full digits in both tails."""
    z = (x - mean) / sigma
    lower, upper = log_ndtr(z), log_ndtr(-z)
    left = z[1:] <= 0
    most = np.where(left, lower[1:], upper[:-1])
    least = np.where(left, lower[:-1], upper[1:])
    with np.errstate(divide="ignore"):
        return np.asarray(most + np.log(-np.expm1(least - most)), dtype=float)


def _spread(
    low: Array, high: Array, log_upper: Array, log_lower: Array, mesh: float, under: float, over: float
) -> PrivacyLoss:
    """Atoms for intervals of losses [low, high]; ``under`` is the mass below them all, ``over`` the mass above."""
    left = np.floor(low / mesh).astype(int)
    right = np.maximum(np.ceil(high / mesh).astype(int), left + 1)
    mass = np.exp(log_upper)
    with np.errstate(invalid="ignore"):
        gap = np.expm1(log_lower - log_upper + right * mesh)
    share = np.where(mass > 0, np.clip(gap / np.expm1((right - left) * mesh), 0, 1), 0)
    start = int(left.min())
    size = int(right.max()) - start + 1
    on_grid = np.zeros(size)
    on_grid += np.bincount(left - start, mass * share, size)
    on_grid += np.bincount(right - start, mass * (1 - share), size)
    on_grid[math.ceil(float(low.min()) / mesh) - start] += under
    return PrivacyLoss(start, on_grid, over)
