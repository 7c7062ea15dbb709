"""Epsilon by numerical composition of privacy losses, for units of one record or of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft

from memguard.errors import PrivacyError
from memguard.privacy.accounting.losses import PrivacyLoss, Step
from memguard.privacy.accounting.phases import Phase, check_count, check_delta, merged

__all__ = ["mixture_epsilon", "suitable_mesh"]

Array: TypeAlias = NDArray[np.floating[Any]]

_FINEST, _COARSEST = 1e-6, 5e-3
_MOST_POINTS = 2**21  # of the losses of one step
_WIDEST = 2**19  # of the composed loss; only epsilons in the hundreds need as many
_BLOCKS = 2**14
_ORDERS = np.geomspace(1e-3, 1e4, 57)
# Of delta, given away to losses that the grid does not hold.
_GIVEN_AWAY = 1e-6


def mixture_epsilon(history: Sequence[Phase], delta: float, records: int = 1) -> float:
    """Epsilon for a patient with several records, when each record is drawn and clipped by itself.

    The number of the patient's records in a batch is Binomial(records, sample_rate), so a step is dominated by a
    mixture of Gaussians with means 0, 1, ..., records against N(0, sigma^2). Its privacy loss is put on a grid so
    that no divergence falls, composed by FFT, and read at delta; adding and removing are computed apart and the
    larger epsilon counts. With one record this is the plain subsampled Gaussian.

    Args:
        history: Phases of the run; ``sample_rate`` is that of a record, and the noise is relative to the clipping
            norm of one record.
        delta: In (0, 1).
        records: The largest number of records that a patient has.

    Returns:
        Epsilon of adding or removing the patient with all records; 0 for no steps, infinite without noise.

    Raises:
        PrivacyError: If an argument is out of range, or delta is below what double precision resolves.

    Guarantees:
        An upper bound up to rounding in double precision, for which a reserve is added to delta. It is about
        0.1 % above the exact value. It holds for Poisson sampling of records, independent of one another.

    Source:
        Charles et al., arXiv 2407.07737 (the dominating mixture); Doroshenko et al., arXiv 2207.04380 (the grid);
        Koskela et al., arXiv 2006.07134 (composition by FFT).

    Example:
        >>> run = [Phase(2.0, 0.01, 2000)]
        >>> [round(mixture_epsilon(run, 1e-5, records), 1) for records in (1, 5, 10)]
        [0.9, 5.5, 12.8]
    """
    check_delta(delta)
    records = check_count(records, "records", least=1)
    phases = merged(history)
    if not phases:
        return 0.0
    if any(phase.noise_multiplier == 0 for phase in phases):
        return math.inf
    return _mixture_epsilon(phases, float(delta), records)


@lru_cache(maxsize=256)
def _mixture_epsilon(phases: tuple[Phase, ...], delta: float, records: int) -> float:
    total = sum(phase.steps for phase in phases)
    log_tail = math.log(_GIVEN_AWAY * delta / total)
    steps = [Step(phase.noise_multiplier, phase.sample_rate, records, log_tail) for phase in phases]
    counts = [phase.steps for phase in phases]
    mesh = _mesh(steps, counts)
    while True:
        ways = [list(way) for way in zip(*(step.on_grid(mesh) for step in steps), strict=True)]
        windows = [_window(way, counts, mesh, math.log(_GIVEN_AWAY * delta)) for way in ways]
        width = max(high - low for low, high in windows)
        if width < _WIDEST:
            break
        mesh *= max(1.2, 1.1 * width / _WIDEST)
    return max(
        _composed_epsilon(way, counts, mesh, delta, window) for way, window in zip(ways, windows, strict=True)
    )


def suitable_mesh(history: Sequence[Phase], delta: float, records: int = 1) -> float:
    """A mesh for privacy losses that adds about a thousandth to epsilon, in nats."""
    phases = merged(history)
    log_tail = math.log(_GIVEN_AWAY * delta / sum(phase.steps for phase in phases))
    steps = [Step(phase.noise_multiplier, phase.sample_rate, records, log_tail) for phase in phases]
    return _mesh(steps, [phase.steps for phase in phases])


def _mesh(steps: Sequence[Step], counts: Sequence[int]) -> float:
    """A twenty-fifth of the spread of one step: the grid then adds less than a thousandth to the variance."""
    variance = sum(count * step.spread() ** 2 for step, count in zip(steps, counts, strict=True))
    fine = math.sqrt(variance / sum(counts)) / 25
    return max(min(fine, _COARSEST), _FINEST, max(step.span for step in steps) / _MOST_POINTS)


def _composed_epsilon(
    losses: list[PrivacyLoss], counts: Sequence[int], mesh: float, delta: float, window: tuple[int, int]
) -> float:
    low, high = window
    # Losses beyond the window come in again at its other end: what leaves at the top has been given away.
    size = next_fast_len(high - low + 1, real=True)
    spectrum = np.ones(size // 2 + 1, dtype=complex)
    log_finite = 0.0
    for loss, count in zip(losses, counts, strict=True):
        at = (loss.start + np.arange(len(loss.mass))) % size
        spectrum *= rfft(np.bincount(at, loss.mass, size)) ** count
        log_finite += count * math.log1p(-min(loss.beyond, 1 - 1e-16))
    mass = np.roll(irfft(spectrum, size), -(low % size))
    # What is negative is rounding; as much may be missing elsewhere.
    rounding = size * max(0.0, -float(mass.min()))
    spare = delta * (1 - _GIVEN_AWAY) + math.expm1(log_finite) - rounding
    if spare < delta / 2:
        raise PrivacyError(
            f"delta={delta:g} with {sum(counts)} steps",
            "rounding in double precision is as large as this delta",
            "pass a larger delta=",
        )
    return _epsilon_at(np.maximum(mass, 0), (low + np.arange(size)) * mesh, spare)


def _window(
    losses: list[PrivacyLoss], counts: Sequence[int], mesh: float, log_tail: float
) -> tuple[int, int]:
    """Grid positions between which the composed loss lies but for two tails, by Chernoff's bound."""
    up, down = np.zeros_like(_ORDERS), np.zeros_like(_ORDERS)
    for loss, count in zip(losses, counts, strict=True):
        log_mass, at = _blocks(loss, mesh)
        up += count * np.array([_log_sum_exp(log_mass + order * at) for order in _ORDERS])
        down += count * np.array([_log_sum_exp(log_mass - order * at) for order in _ORDERS])
    high, low = float(np.min((up - log_tail) / _ORDERS)), float(np.max((log_tail - down) / _ORDERS))
    most = sum(count * (loss.start + len(loss.mass)) for loss, count in zip(losses, counts, strict=True))
    least = sum(count * loss.start for loss, count in zip(losses, counts, strict=True))
    return max(least, math.floor(low / mesh)), max(min(most, math.ceil(high / mesh)), 1)


def _blocks(loss: PrivacyLoss, mesh: float) -> tuple[Array, Array]:
    """Log-masses and losses on fewer points, with the same mean: no exponential moment falls."""
    width = -(-len(loss.mass) // _BLOCKS)
    at = np.arange(len(loss.mass))
    block, share = at // width, (at % width) / width
    mass = np.bincount(block, loss.mass * (1 - share), _BLOCKS + 1)
    mass += np.bincount(block + 1, loss.mass * share, _BLOCKS + 1)
    held = np.flatnonzero(mass)
    return np.log(mass[held]), (loss.start + held * width) * mesh


def _log_sum_exp(x: Array) -> float:
    top = float(x.max())
    return top + math.log(float(np.exp(x - top).sum()))


def _epsilon_at(mass: Array, losses: Array, delta: float) -> float:
    """Smallest epsilon >= 0 at which the hockey-stick divergence of these losses is at most delta."""

    def divergence(epsilon: float) -> float:
        first = int(np.searchsorted(losses, epsilon, side="right"))
        return float(-(mass[first:] @ np.expm1(epsilon - losses[first:])))

    low, high = 0.0, max(0.0, float(losses[-1]))
    if divergence(low) <= delta:
        return 0.0
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) > delta else (low, middle)
    return high
