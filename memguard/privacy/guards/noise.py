"""Is there noise, is it normal, as large as claimed, and new? What is left of updates without their signal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from memguard.errors import PrivacyError
from memguard.privacy.guards.finding import FALSE_ALARM, Finding, Verdict
from memguard.privacy.guards.sensitivity import flat

__all__ = ["NoiseResidual", "NoiseReuse", "noise_residual", "noise_reuse", "noise_scaling"]

_FEWEST = 30
_MOST_FOR_KS = 100_000


@dataclass(frozen=True, kw_only=True)
class NoiseResidual(Verdict):
    """What :func:`noise_residual` found.

    Attributes:
        scale: Standard deviation of the noise, over the one claimed; the farthest from 1 of all pairs.
        mean: Mean of the residuals in standard deviations; the farthest from 0 of all pairs.
        distance: Largest Kolmogorov-Smirnov distance from the normal law.
        p_value: Smallest of all tests, before their number is allowed for.
        worst: Pair in which it was.
        silent: Pairs without any noise.
        resolution: A ratio of standard deviations this far from 1 would be found almost surely.
    """

    scale: float
    mean: float
    distance: float
    p_value: float
    worst: int
    silent: int
    resolution: float


@dataclass(frozen=True, kw_only=True)
class NoiseReuse(Verdict):
    """What :func:`noise_reuse` found.

    Attributes:
        correlation: Largest in absolute value, over pairs.
        pair: The two that have it.
        p_value: Its chance under independence, Bonferroni over pairs.
    """

    correlation: float
    pair: tuple[int, int]
    p_value: float


def noise_residual(
    pairs: Sequence[tuple[Tensor | Sequence[Tensor], Tensor | Sequence[Tensor]]],
    noise_multiplier: float,
    max_grad_norm: float,
    expected: float,
    *,
    false_alarm: float = FALSE_ALARM,
) -> NoiseResidual:
    """Take two noisy updates of the same batch apart and hold the difference against the normal law.

    For updates u = (S + sigma C z) / B of one sum S, (u1 - u2) B / (sigma C sqrt 2) is standard normal in each
    coordinate, independently. Per pair: mean, variance (chi-squared) and the Kolmogorov-Smirnov distance; over pairs:
    correlation, which shows noise that comes back; and where updates are given as one tensor for each parameter, over
    parameters.

    Args:
        pairs: Updates at the same parameters and of the same patients, before the optimizer; several pairs, from
            different steps, show noise that is added at the first step alone.
        noise_multiplier: sigma, as accounted.
        max_grad_norm: C. Use one other than 1: noise that should be a multiple of C and is not looks right at 1.
        expected: B, by which the sum is divided.
        false_alarm: Chance, at most, of a finding with correct noise; shared over all tests, which are exact.

    Returns:
        The verdict.

    Raises:
        PrivacyError: Without pairs, for shapes that differ, fewer than 30 coordinates, or a scale that is not
            positive.

    Guarantees:
        A finding refutes noise of the accounted size on that update. None found bounds the error of its size by
        :attr:`NoiseResidual.resolution`; whether it can be predicted (a known seed, the rounding of floats:
        Mironov 2012) cannot be seen in numbers.

    References:
        Cebere et al., arXiv 2602.17454, for the same question asked of other libraries.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> signal = torch.ones(500)
        >>> noisy = lambda sigma: (signal + sigma * 0.5 * torch.randn(500)) / 16
        >>> noise_residual([(noisy(2.0), noisy(2.0))], 2.0, max_grad_norm=0.5, expected=16).ok
        True
        >>> noise_residual([(noisy(1.0), noisy(1.0))], 2.0, max_grad_norm=0.5, expected=16).finding.id
        'noise/scale'
    """
    unit = noise_multiplier * max_grad_norm * math.sqrt(2) / expected if expected > 0 else math.nan
    if not pairs or not 0 < unit < math.inf:
        raise PrivacyError(
            f"{len(pairs)} pairs, sigma {noise_multiplier}, C {max_grad_norm}, {expected} patients expected",
            "the noise is measured in units of sigma C / B",
            "pass at least one pair of updates, and the constants of the run",
        )
    residuals = [_difference(first, second) / unit for first, second in pairs]
    silent = sum(not z.any() for z in residuals)
    level = false_alarm / (3 * len(residuals) + 2)
    tested = [_tests(z) for z in residuals]
    worst = min(range(len(tested)), key=lambda i: min(tested[i][:3]))
    p_mean, p_scale, p_shape, *_ = tested[worst]
    reuse = noise_reuse(residuals, false_alarm=level) if len(residuals) > 1 and not silent else None
    scales, means, distances = ([t[i] for t in tested] for i in (3, 4, 5))
    parts = _parts(pairs[0])
    alike = noise_reuse(parts, false_alarm=level) if len(parts) > 1 and not silent else None
    finding = next((v.finding for v in (reuse, alike) if v is not None and v.finding is not None), None)
    if min(p_mean, p_scale, p_shape) <= level:
        finding = _finding(tested[worst], level, silent, len(residuals))
    return NoiseResidual(
        finding=finding,
        scale=max(scales, key=lambda s: abs(math.log(max(s, 1e-300)))),
        mean=max(means, key=abs),
        distance=max(distances),
        p_value=min(p_mean, p_scale, p_shape),
        worst=worst,
        silent=silent,
        resolution=_resolution(min(map(len, residuals)), level),
    )


def noise_scaling(
    update_at: Callable[[float], Tensor | Sequence[Tensor]],
    noise_multiplier: float,
    max_grad_norm: float,
    expected: float,
    *,
    false_alarm: float = FALSE_ALARM,
) -> NoiseResidual:
    """Does the noise grow with C? Two updates each at C / 4, C and 4 C, every pair held against its own C.

    Args:
        update_at: Threshold to a noisy update of one fixed batch.
        noise_multiplier: sigma.
        max_grad_norm: C.
        expected: B, by which the sum is divided.
        false_alarm: As in :func:`noise_residual`, for all three together.

    Returns:
        The verdict of the worst threshold.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> noise_scaling(lambda c: 2.0 * torch.randn(200), 2.0, max_grad_norm=1.0, expected=1).finding.id
        'noise/scale'
    """
    found = []
    for c in (max_grad_norm / 4, max_grad_norm, 4 * max_grad_norm):
        pair = (update_at(c), update_at(c))
        found.append(noise_residual([pair], noise_multiplier, c, expected, false_alarm=false_alarm / 3))
    return min(found, key=lambda v: v.p_value)


def noise_reuse(
    noises: Sequence[Tensor | NDArray[np.float64]], *, false_alarm: float = FALSE_ALARM
) -> NoiseReuse:
    """Are noises of different steps, ranks or runs independent of each other?

    Args:
        noises: At least two, of the same length: noise alone, or updates minus their signal, or differences of two
            updates of one batch.
        false_alarm: Chance, at most, of a finding where they are independent and normal; exact for each pair.

    Returns:
        The verdict.

    Raises:
        PrivacyError: With fewer than two, lengths that differ, or fewer than 30 coordinates.

    Guarantees:
        The difference of two updates with the same noise shows the difference of their sums without any noise. A
        finding shows linear dependence; noise that depends otherwise is not seen.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> z = torch.randn(100)
        >>> noise_reuse([z, torch.randn(100)]).ok, noise_reuse([z, torch.randn(100), z]).pair
        (True, (0, 2))
    """
    rows = [_vector(noise) for noise in noises]
    if len(rows) < 2 or len({len(r) for r in rows}) > 1 or len(rows[0]) < _FEWEST:
        raise PrivacyError(
            f"{len(rows)} noises of {sorted({len(r) for r in rows})} coordinates",
            "pairs are compared coordinate by coordinate",
            f"pass at least two of one length, {_FEWEST} or more",
        )
    pairs = list(itertools.combinations(range(len(rows)), 2))
    correlations = {pair: _correlation(rows[pair[0]], rows[pair[1]]) for pair in pairs}
    pair = max(pairs, key=lambda p: abs(correlations[p]))
    r, n = correlations[pair], len(rows[0])
    # For two independent normal vectors of known mean 0, r squared is Beta(1/2, (n - 1) / 2).
    p = min(1.0, len(pairs) * float(stats.beta.sf(min(r * r, 1.0), 0.5, (n - 1) / 2)))
    finding = None
    if p <= false_alarm:
        finding = Finding(
            "noise/reused",
            f"noises {pair[0]} and {pair[1]} have a correlation of {r:.3f}",
            "noise that is used twice cancels in a difference, and shows what it should hide",
            "seed the noise from the operating system at every start and on one rank, apart from the training's seed",
        )
    return NoiseReuse(finding=finding, correlation=r, pair=pair, p_value=p)


def _vector(noise: Tensor | NDArray[np.float64]) -> NDArray[np.float64]:
    return flat(noise if isinstance(noise, Tensor) else torch.as_tensor(noise)).numpy()


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size else 0.0


def _difference(first: Tensor | Sequence[Tensor], second: Tensor | Sequence[Tensor]) -> NDArray[np.float64]:
    a, b = flat(first).numpy(), flat(second).numpy()
    if a.shape != b.shape or len(a) < _FEWEST:
        raise PrivacyError(
            f"updates of {len(a)} and {len(b)} coordinates",
            "the noise is the difference of two updates of one batch",
            f"pass two updates of the same parameters, at least {_FEWEST} numbers",
        )
    return np.asarray(a - b, dtype=np.float64)


def _parts(pair: tuple[Tensor | Sequence[Tensor], Tensor | Sequence[Tensor]]) -> list[NDArray[np.float64]]:
    """The beginnings, of one length, of the differences of all parameters that are long enough to compare."""
    first, second = pair
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return []
    parts = [flat(a).numpy() - flat(b).numpy() for a, b in zip(first, second, strict=True)]
    parts = [part for part in parts if len(part) >= _FEWEST][:20]
    length = min(map(len, parts), default=0)
    return [np.asarray(part[:length], dtype=np.float64) for part in parts]


def _tests(z: NDArray[np.float64]) -> tuple[float, float, float, float, float, float]:
    """P-values of mean, scale and shape; scale, mean and distance."""
    n = len(z)
    if not np.isfinite(z).all():
        return 0.0, 0.0, 0.0, math.inf, math.inf, 1.0
    if not z.any():
        return 1.0, 0.0, 0.0, 0.0, 0.0, 0.5
    mean, square = float(z.mean()), float(z @ z)
    p_mean = 2 * float(stats.norm.sf(abs(mean) * math.sqrt(n)))
    p_scale = min(1.0, 2 * float(min(stats.chi2.cdf(square, n), stats.chi2.sf(square, n))))
    some = z if n <= _MOST_FOR_KS else z[:: n // _MOST_FOR_KS + 1]
    shape = stats.kstest(some, "norm")
    return p_mean, p_scale, float(shape.pvalue), math.sqrt(square / n), mean, float(shape.statistic)


def _resolution(n: int, level: float) -> float:
    """Relative error of the standard deviation that is missed with probability 1e-3 at most."""
    quantile = float(-stats.norm.ppf(level / 2) + 3.1)
    return quantile / math.sqrt(2 * n)


def _finding(tested: tuple[float, ...], level: float, silent: int, n_pairs: int) -> Finding:
    p_mean, p_scale, _, scale, mean, distance = tested
    if silent:
        what, seen = "none", f"no noise at all in {silent} of {n_pairs} pairs of updates"
    elif p_scale <= level:
        what, seen = "scale", f"noise of {scale:.3g} times the standard deviation that is accounted"
    elif p_mean <= level:
        what, seen = "mean", f"noise with a mean of {mean:.3g} standard deviations"
    else:
        what, seen = "shape", f"noise whose distribution is {distance:.3g} from a normal one"
    return Finding(
        f"noise/{what}",
        seen,
        "epsilon is computed for fresh normal noise of sigma C on every coordinate of the sum in every step",
        "add noise_multiplier * max_grad_norm times a standard normal to the sum, once, at every step, before dividing",
    )
