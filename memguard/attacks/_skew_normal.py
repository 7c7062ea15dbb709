"""The skew-normal law: its distribution function in log space, and a fit that stays finite.

Density ``2 / w * phi(z) * Phi(a * z)`` with ``z = (x - centre) / w`` (Azzalini, Scand. J. Stat. 12, 1985).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from memguard.attacks._checks import Floats

__all__ = ["SkewNormal", "fit_skew_normal", "log_cdf", "profile"]

_LOG_ROOT = 0.5 * math.log(2.0 * math.pi)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)
_DROP = 45.0  # where the integrand has fallen by this many nats, what is left does not show in float64
_SLANTS = np.sin(
    np.linspace(-1.0, 1.0, 25) * 0.485 * math.pi
)  # of the profile, as shape / sqrt(1 + shape ** 2)
_PENALTY = 0.875913, 0.856250  # of Azzalini and Arellano-Valle, equation 14


@dataclass(frozen=True, kw_only=True)
class SkewNormal:
    """A skew-normal law.

    Attributes:
        centre: Location parameter.
        width: Scale parameter, positive.
        shape: Slant; 0 is the normal law, below 0 the long tail is on the left.
    """

    centre: float
    width: float
    shape: float

    def log_cdf(self, x: Floats) -> Floats:
        """Natural logarithm of the probability of a value at most ``x``."""
        return log_cdf((x - self.centre) / self.width, self.shape)


def log_cdf(z: Floats, shape: float) -> Floats:
    """Logarithm of the standard skew-normal distribution function, exact far into the tail.

    The four signs of ``z`` and ``shape`` are all told from the left tail at ``-|z|`` with slant ``|shape|``,
    which is an integral of a log-concave function and is summed relative to its largest value.

    Example:
        >>> import numpy as np
        >>> log_cdf(np.array([-40.0, 0.0]), 0.0).round(3)
        array([-8.04608e+02, -6.93000e-01])
    """
    z = np.asarray(z, dtype=np.float64)
    left = np.minimum(_log_left(-np.abs(z), abs(shape)), 0.0)
    both = math.log(2.0) + special.log_ndtr(-np.abs(z))
    low = left if shape >= 0 else both + np.log1p(-np.exp(left - both))
    inner = np.exp(left) if shape < 0 else np.exp(both) - np.exp(left)
    high = np.log1p(-np.minimum(inner, 1.0 - 1e-16))
    result: Floats = np.where(z <= 0, low, high)
    return result


def _log_left(z: Floats, shape: float) -> Floats:
    """``log_cdf`` for ``z <= 0`` and ``shape >= 0``."""
    top = _log_density(z, shape)
    slope = -z + shape * _mills(shape * z)
    # the integrand falls at least as fast as exp(-slope * s - s * s / 2)
    reach = 2.0 * _DROP / (slope + np.sqrt(slope**2 + 2.0 * _DROP))
    s = 0.5 * reach[..., None] * (1.0 + _NODES)
    falling = np.exp(_log_density(z[..., None] - s, shape) - top[..., None])
    total: Floats = top + np.log(0.5 * reach * (falling @ _WEIGHTS))
    return total


def _log_density(z: Floats, shape: float) -> Floats:
    density: Floats = math.log(2.0) - _LOG_ROOT - 0.5 * z**2 + special.log_ndtr(shape * z)
    return density


def _mills(z: Floats) -> Floats:
    """Density over distribution function of the normal law."""
    ratio: Floats = np.exp(-0.5 * z**2 - _LOG_ROOT - special.log_ndtr(z))
    return ratio


def fit_skew_normal(x: Floats, start: SkewNormal | None = None) -> SkewNormal:
    """Penalized maximum likelihood: without the penalty the slant of a finite sample may be infinite.

    Args:
        x: ``(n,)`` values, not all equal.
        start: A fit of nearly the same values, to begin from.

    Source:
        Azzalini and Arellano-Valle, J. Stat. Plan. Inference 143, 2013, section 3.
    """
    mean, unit = float(x.mean()), float(x.std())
    u = (x - mean) / unit
    if start is None:
        begin = _by_moments(float(np.mean(u**3)))
    else:
        begin = np.array([(start.centre - mean) / unit, math.log(start.width / unit), start.shape])
    found = optimize.minimize(_loss, begin, args=(u,), jac=True, method="BFGS", options={"gtol": 1e-7})
    centre, log_width, shape = (float(v) for v in found.x)
    return SkewNormal(centre=mean + unit * centre, width=unit * math.exp(log_width), shape=shape)


def profile(x: Floats, fit: SkewNormal) -> list[tuple[float, SkewNormal]]:
    """The best law for each of a range of slants, with twice the log-likelihood that it lies below the best.

    Near slant 0 the likelihood is so flat that a fit says little about the slant, and no standard error tells.
    """
    mean, unit, n = float(x.mean()), float(x.std()), len(x)
    u = (x - mean) / unit
    laws = [fit]
    for slant in _SLANTS:
        shape = float(slant / math.sqrt(1.0 - slant**2))
        width = 1.0 / math.sqrt(1.0 - 2.0 * slant**2 / math.pi)
        begin = np.array([-width * slant * math.sqrt(2.0 / math.pi), math.log(width)])
        found = optimize.minimize(_loss_at, begin, args=(shape, u), jac=True, method="BFGS")
        centre, log_width = (float(v) for v in found.x)
        laws.append(SkewNormal(centre=mean + unit * centre, width=unit * math.exp(log_width), shape=shape))
    fitted = [
        -n * math.log(law.width) + float(np.sum(_log_density((x - law.centre) / law.width, law.shape)))
        for law in laws
    ]
    return [(2.0 * (max(fitted) - value), law) for value, law in zip(fitted, laws, strict=True)]


def _loss_at(parameters: Floats, shape: float, u: Floats) -> tuple[float, Floats]:
    loss, gradient = _loss(np.array([*parameters, shape]), u)
    return loss, gradient[:2]


def _by_moments(skewness: float) -> Floats:
    """Parameters of the standardized law with this skewness, kept off the saddle at slant 0."""
    g = math.copysign(min(max(abs(skewness), 0.05), 0.95), skewness)
    ratio = abs(g) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * ratio / (ratio + (2 - math.pi / 2) ** (2 / 3))), g)
    width = 1.0 / math.sqrt(1.0 - 2.0 * delta**2 / math.pi)
    shape = delta / math.sqrt(1.0 - delta**2)
    return np.array([-width * delta * math.sqrt(2.0 / math.pi), math.log(width), shape])


def _loss(parameters: Floats, u: Floats) -> tuple[float, Floats]:
    """Penalized negative log-likelihood per value, without constants, and its gradient."""
    centre, log_width, shape = parameters
    n, scale = len(u), math.exp(-min(max(log_width, -30.0), 30.0))
    z = (u - centre) * scale
    pull = shape * _mills(shape * z) - z
    c1, c2 = _PENALTY
    loss = log_width + np.mean(0.5 * z**2 - special.log_ndtr(shape * z)) + c1 * math.log1p(c2 * shape**2) / n
    slant = -np.mean(_mills(shape * z) * z) + 2 * c1 * c2 * shape / (1 + c2 * shape**2) / n
    return float(loss), np.array([scale * pull.mean(), 1.0 + np.mean(pull * z), slant])
