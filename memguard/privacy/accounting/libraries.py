"""Epsilon by the two independent libraries: PRV from Opacus, PLD from dp-accounting where it is installed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

import numpy as np
from scipy.stats import binom

from memguard.errors import PrivacyError
from memguard.privacy.accounting.mixture import suitable_mesh
from memguard.privacy.accounting.phases import Phase, check_count, check_delta, merged
from memguard.privacy.accounting.rdp import rdp_epsilon

__all__ = ["pld_epsilon", "prv_epsilon", "version_of"]

_EPS_ERROR = 0.01
# Some 4 microseconds and 300 bytes a point: 10 seconds and 700 MB at the most.
_MOST_POINTS = 2**21
_PRECISE_POINTS = 2**20
# dp-accounting is slow on a fine grid, and its components take their time each.
_FINEST_PLD = 5e-5
_MOST_COMPONENTS = 32


def version_of(distribution: str) -> str:
    """Name and version of a library, as a statement names its accountant.

    Example:
        >>> version_of("opacus").split()[0]
        'opacus'
    """
    return f"{distribution} {metadata.version(distribution)}"


def prv_epsilon(history: Sequence[Phase], delta: float, eps_error: float | None = None) -> float:
    """Epsilon by the numerical accountant of Opacus: its upper bound, not its estimate.

    Args:
        history: Phases of the run; those of equal noise and rate are joined first, which the accountant needs.
        delta: In (0, 1).
        eps_error: Error that the accountant may make, in epsilon. Default: .01, less where epsilon is below 1.

    Returns:
        Epsilon, at least 0; 0 for no steps, infinite without noise.

    Raises:
        PrivacyError: If delta lies outside (0, 1), or the accountant cannot do it: too many steps for memory
            and time (seen before it starts), or a numerical failure of its own.

    Source:
        Gopi, Lee and Wutschitz, arXiv 2106.02848; implemented in Opacus.

    Example:
        >>> round(prv_epsilon([Phase(1.0, 0.01, 1000)], 1e-5), 2)
        1.84
    """
    check_delta(delta)
    phases = merged(history)
    if not phases:
        return 0.0
    if any(phase.noise_multiplier == 0 for phase in phases):
        return math.inf
    points = _prv_points(phases, delta)
    if eps_error is None:
        precise = max(rdp_epsilon(phases, delta) / 100, points * _EPS_ERROR / _PRECISE_POINTS)
        eps_error = min(_EPS_ERROR, precise)
    points *= _EPS_ERROR / eps_error
    if points > _MOST_POINTS:
        raise PrivacyError(
            f"{sum(phase.steps for phase in phases):,} steps in {len(phases)} phases, {points:,.0f} grid points",
            "the PRV accountant would need too much memory and time",
            "use epsilon(), which falls back to what can be computed",
        )
    # Imported late: it brings torch.
    accountant = import_module("opacus.accountants").PRVAccountant()
    accountant.history = [(phase.noise_multiplier, phase.sample_rate, phase.steps) for phase in phases]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about orders of its own RDP, which only sets the width of the grid
            value = float(accountant.get_epsilon(delta, eps_error=eps_error))
    except (ArithmeticError, IndexError, MemoryError, RuntimeError, ValueError) as failure:
        raise PrivacyError(
            f"the PRV accountant failed ({type(failure).__name__}: {failure})",
            "it gives no epsilon for this history",
            "use epsilon(), which falls back to what can be computed",
        ) from failure
    if math.isnan(value):
        raise PrivacyError("the PRV accountant returned NaN", "that is no epsilon", "use epsilon()")
    return max(0.0, value)


def _prv_points(phases: Sequence[Phase], delta: float) -> float:
    """Points of the accountant's grids at its default error, after Gopi et al., remark 5.6."""
    delta_error, steps = delta / 1000, sum(phase.steps for phase in phases)
    singles = [Phase(phase.noise_multiplier, phase.sample_rate, 1) for phase in phases]
    reach = [rdp_epsilon(phases, delta_error / 4)]
    reach += [rdp_epsilon([single], delta_error / (8 * steps)) for single in singles]
    mesh = _EPS_ERROR / math.sqrt(steps * math.log(12 / delta_error) / 2)
    return len(phases) * 2 * (max(reach) + 3) / mesh


def pld_epsilon(history: Sequence[Phase], delta: float, records: int = 1) -> float | None:
    """Epsilon by the privacy loss distributions of dp-accounting (pessimistic, "connect the dots").

    Args:
        history: Phases of the run.
        delta: In (0, 1).
        records: Records of the patient, each drawn and clipped by itself: its mixture of Gaussians.

    Returns:
        Epsilon, at least 0; None where dp-accounting is not installed (``pip install memguard-ehr[accounting]``).

    Raises:
        PrivacyError: If an argument is out of range, or the library fails.

    Source:
        Doroshenko et al., arXiv 2207.04380; for several records Charles et al., arXiv 2407.07737.

    Example:
        >>> pld_epsilon([], 1e-5) in (0.0, None)
        True
    """
    check_delta(delta)
    records = check_count(records, "records", least=1)
    library = _dp_accounting()
    if library is None:
        return None
    phases = merged(history)
    if not phases:
        return 0.0
    if any(phase.noise_multiplier == 0 for phase in phases):
        return math.inf
    mesh = max(suitable_mesh(phases, delta, records), _FINEST_PLD)
    try:
        composed = None
        for phase in phases:
            step = _pld(library, phase, records, mesh).self_compose(phase.steps)
            composed = step if composed is None else composed.compose(step)
        assert composed is not None
        value = float(composed.get_epsilon_for_delta(delta))
    except (ArithmeticError, AttributeError, IndexError, MemoryError, RuntimeError, ValueError) as failure:
        raise PrivacyError(
            f"dp-accounting failed ({type(failure).__name__}: {failure})",
            "it gives no epsilon for this history",
            "use epsilon(), which falls back to what can be computed",
        ) from failure
    return max(0.0, value)


def _dp_accounting() -> ModuleType | None:
    try:
        return import_module("dp_accounting.pld.privacy_loss_distribution")
    except ImportError:
        return None


def _pld(library: ModuleType, phase: Phase, records: int, mesh: float) -> Any:
    """The library's distribution of one step."""
    if records == 1:
        return library.from_gaussian_mechanism(
            phase.noise_multiplier, sampling_prob=phase.sample_rate, value_discretization_interval=mesh
        )
    counts = binom(records, phase.sample_rate)
    # Counts that occur less than once in 10^30 draws are taken as the largest one.
    high = max(1, min(records, int(counts.isf(1e-30)) + 1))
    if high > _MOST_COMPONENTS:
        raise ValueError(f"{high} components")
    weights = counts.pmf(np.arange(high + 1))
    return library.from_mixture_gaussian_mechanism(
        phase.noise_multiplier,
        np.arange(high + 1.0),
        weights / weights.sum(),
        value_discretization_interval=mesh,
    )
