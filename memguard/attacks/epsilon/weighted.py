"""A sharper one-run bound: guesses are weighed by how extreme their scores are, instead of counted.

Let training be (epsilon, delta)-DP, p = 1 / (1 + exp(-epsilon)), and reveal the fair coins S_1, ..., S_m of the
canaries one after the other. Given everything that was released and S_1, ..., S_(i-1), let q_i be the probability of
the likelier value of S_i, and F_i be 1 with probability max(0, q_i - p) / (1 - p). A guess of S_i, which is a function
of the release, is right with probability at most q_i; so "right" is dominated by max(B_i, F_i) with a coin B_i of
probability p that is independent of the release and of all before it. (For the less likely value even B_i alone will
do, as 1 - q_i <= 1/2 <= p. So one and the same F_i serves whatever is guessed; only the B_i differ.) With P_1 and P_0
the distributions of the release for S_i = 1 and 0, given S_1, ..., S_(i-1), the mean of max(0, q_i - p) is half the
integral of max(0, (1 - p) P_1 - p P_0) plus half of the same with P_1 and P_0 exchanged. As p / (1 - p) = exp(epsilon),
each integral is at most (1 - p) delta. So the mean of F_i is at most delta, that of F = F_1 + ... + F_m at most
m delta, and for weights w >= 0 that do not depend on the coins and any whole j >= 0

    P(weight of the right guesses >= t + j max w) <= P(sum w_i B_i >= t) + m delta / (j + 1),

as the weight is at most that of the B_i and F times the largest, and by Markov's inequality P(F >= j + 1) is small.
That last term belongs to one event, F > j, for all guesses that one may ever make from the same release: for several
tests, and for many looks during one training (the release is then all that they saw), it is paid once. Without delta
and with equal weights this is the counting theorem of arXiv 2305.08846.

The weights are small whole numbers, so that the sum's distribution can be computed as it stands. They follow the log
odds that the canaries would have, beyond epsilon, if the scores of included and left-out ones were two shifted normal
distributions, with the smallest shift that the test could still decide. The picture only chooses the weights: the bound
holds without it. As the weights change with the epsilon that is tested, the tests are not nested by themselves. Epsilon
is cut into cells with one set of weights each; inside a cell the tests are nested, and a bound is claimed only if every
cell below it is refuted whole. A claim above the true epsilon therefore needs the one test at the true epsilon to err.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, optimize, special

from memguard.attacks._checks import Floats
from memguard.attacks.epsilon.thresholds import mid_ranks
from memguard.errors import MemguardError

__all__ = ["Side", "Weighted", "best_side", "delta_slack", "weighted_p_value"]

Side = Literal["both", "in", "out"]
Ints = NDArray[np.int64]

_LEVELS = 12  # distinct weights
_CELLS = np.concatenate([np.arange(1, 13) * 0.25, np.arange(7, 13) * 0.5, np.arange(7, 31) * 1.0])
_CUTS = (1.0, 0.5, 0.25, 0.1, 0.03)  # where weights are cut off, as a share of the largest
_XTOL = 1e-7
_ROUNDING = 1e-12  # more than a computed tail can fall short of the true one
_FOR_DELTA = 0.25  # share of the error that may go to delta
_SKETCH = 256  # canaries that stand for all when the shift is chosen


@dataclass(frozen=True)
class Weighted:
    """Weigh every guess by how extreme its score is among all canaries.

    Attributes:
        both: Share of the error spent on guessing in at the upper end and out at the lower one.
        inside: Share spent on guessing in at the upper end only, for leaks that only some included canaries show.
        outside: Share spent on guessing out at the lower end only.

    Example:
        >>> Weighted().describe()
        'weighed by rank, error shared .7 both ends, .2 upper end, .1 lower end'
    """

    both: float = 0.7
    inside: float = 0.2
    outside: float = 0.1

    def describe(self) -> str:
        """The rule in words."""
        shares = [f"{share:g}".lstrip("0") for share in (self.both, self.inside, self.outside)]
        return f"weighed by rank, error shared {shares[0]} both ends, {shares[1]} upper end, {shares[2]} lower end"

    def sides(self) -> list[tuple[Side, float]]:
        """The ends that are guessed at, with their shares of the error, the largest first.

        Raises:
            MemguardError: if the shares are negative or do not add up to 1.
        """
        named: list[tuple[Side, float]] = [("both", self.both), ("in", self.inside), ("out", self.outside)]
        total = sum(part for _, part in named)
        if not (min(part for _, part in named) >= 0 and abs(total - 1) <= 1e-9):
            raise MemguardError(
                f"{self!r}",
                "more or less than the whole error would be spent",
                "pass shares from 0 that add up to 1",
            )
        return sorted(((side, part) for side, part in named if part), key=lambda one: -one[1])


def delta_slack(n: int, delta: float, level: float) -> tuple[int, float]:
    """How many canaries delta may give away, j above, and the error that is left after paying for it.

    Example:
        >>> delta_slack(1000, 1e-5, 0.05), delta_slack(100, 0.0, 0.05)
        ((0, 0.04), (0, 0.05))
    """
    slack = max(math.ceil(n * delta / (_FOR_DELTA * level) - 1e-9), 1) - 1
    return slack, level - n * delta / (slack + 1)


def best_side(
    scores: Floats,
    included: NDArray[np.bool_],
    level: float,
    rule: Weighted,
    slack: int,
    above: float = 0.0,
) -> tuple[float, int, int]:
    """The bound, with the guesses that had a weight in the decisive test and how many of them were right.

    Args:
        scores: ``(m,)``.
        included: ``(m,)``.
        level: Error that all sides may spend together, delta paid.
        rule: How they share it.
        slack: Canaries that delta may give away.
        above: Only a larger bound is of interest; 0 comes back where there is none.
    """
    rank = mid_ranks(scores)
    normal = special.ndtri(rank)
    best, guesses, correct = 0.0, 0, 0
    for side, part in rule.sides():
        upper, lower = (rank > 0.5) & (side != "out"), (rank < 0.5) & (side != "in")
        used = upper | lower
        extreme, right = np.abs(normal[used]), np.where(upper, included, ~included)[used]
        order = np.argsort(extreme, kind="stable")
        right = right[order]
        found, weights = _refuted(extreme[order], right, level * part, slack, max(best, above))
        if found > best or guesses == 0:
            best = max(found, best)
            guesses, correct = int((weights > 0).sum()), int(right[weights > 0].sum())
    return best, guesses, correct


def _refuted(
    extreme: Floats, right: NDArray[np.bool_], level: float, slack: int, above: float
) -> tuple[float, Ints]:
    """Largest epsilon below which every cell is refuted; 0 where it is known not to exceed ``above``.

    ``extreme`` rises, and ``right`` goes with it.
    """
    weights = np.zeros(len(right), np.int64)
    level -= _ROUNDING
    if len(right) == 0 or level <= _ROUNDING:
        return 0.0, weights
    key, about = (
        extreme.tobytes(),
        2.0 ** round(math.log2(level)),
    )  # weights for about this level serve as well
    if above > 0:  # the cell in which the bound of another side lies must be refuted beyond that bound
        cell = _CELLS[min(int(np.searchsorted(_CELLS, above, side="right")), len(_CELLS) - 1)]
        weights = _weights(key, float(cell), about, slack)
        if weighted_p_value(weights, right, above, slack) > level:
            return 0.0, weights
    low = 0.0
    for high in _CELLS.tolist():
        weights = _weights(key, high, about, slack)
        if weighted_p_value(weights, right, high, slack) > level:
            break
        low = high
    else:
        return low, weights
    if weighted_p_value(weights, right, low, slack) > level:
        return low, weights
    # inside a cell the p-value is smooth and rising; one step back, so that what is returned is refuted
    root = optimize.brentq(
        lambda e: weighted_p_value(weights, right, e, slack) - level, low, high, xtol=_XTOL
    )
    return max(low, float(root) - 2 * _XTOL), weights


@lru_cache(maxsize=192)
def _weights(key: bytes, epsilon: float, level: float, slack: int) -> Ints:
    """Whole weights for testing ``epsilon``, 0 to 12, chosen for the weakest signal that the test could still decide.

    A signal of strength s gives a canary the log odds s times its normal score. The best weights are then the log odds
    beyond ``epsilon``; as the slack costs the largest weight, they may be cut off, down to equal ones. They depend on
    the ranks alone, which without ties are the same at every look: hence the cache.

    Args:
        key: The normal scores, rising, as bytes.
        epsilon: At the upper end of the cell.
        level: Of the test, about.
        slack: Canaries that delta may give away.
    """
    extreme = np.frombuffer(key, np.float64)
    sketch = extreme[((np.arange(_SKETCH) + 0.5) / _SKETCH * len(extreme)).astype(np.int64)]
    each, p = len(extreme) / _SKETCH, float(special.expit(epsilon))
    quantile, strongest = -float(special.ndtri(level)), float(sketch[-1])
    if strongest <= 0.0:
        return np.zeros(len(extreme), np.int64)

    def decided(strength: float, cut: float) -> bool:
        odds = strength * sketch
        weight = np.minimum(np.maximum(odds - epsilon, 0.0), cut * (odds[-1] - epsilon))
        drift = each * float(np.sum(weight * (special.expit(odds) - p))) - slack * float(weight[-1])
        return drift > quantile * float(np.sqrt(each * np.sum(weight**2) * p * (1 - p)))

    weakest, chosen = (epsilon + 40.0) / strongest, _CUTS[-1]
    for cut in _CUTS:
        if not decided(weakest, cut):
            continue
        low, high, chosen = epsilon / strongest * 1.001 + 1e-6, weakest, cut
        for _ in range(14):  # weights need no more than two figures of it
            middle = (low * high) ** 0.5
            low, high = (low, middle) if decided(middle, cut) else (middle, high)
        weakest = high
    top = weakest * strongest - epsilon
    excess = np.minimum(np.maximum(weakest * extreme - epsilon, 0.0) / (chosen * top), 1.0)
    weights: Ints = np.ceil(excess * _LEVELS - 0.5).astype(np.int64)
    weights.flags.writeable = False
    return weights


def weighted_p_value(weights: Ints, right: NDArray[np.bool_], epsilon: float, slack: int = 0) -> float:
    """P(sum w_i B_i >= t) for t the weight of the right guesses less ``slack`` times the largest weight.

    Args:
        weights: ``(k,)`` whole numbers from 0, chosen without the coins.
        right: ``(k,)``, which guesses are right.
        epsilon: Of the claim that is tested, at least 0: the coins B have probability 1 / (1 + exp(-epsilon)).
        slack: Canaries that delta may give away.

    Example:
        >>> right = np.array([True] * 9 + [False])
        >>> round(weighted_p_value(np.full(10, 3), right, 0.0), 6)  # equal weights count: 11 of 1024 outcomes
        0.010742
    """
    top = int(weights.max(initial=0))
    if top == 0:
        return 1.0
    tail, first = _tail(tuple(np.bincount(weights).tolist()), float(special.expit(epsilon)))
    at = int(weights[right].sum()) - slack * top - first
    if at <= 0:
        return 1.0
    return float(tail[at]) if at < len(tail) else 0.0


@lru_cache(maxsize=256)
def _tail(counts: tuple[int, ...], p: float) -> tuple[Floats, int]:
    """P(S >= first + j) for j = 0, 1, ..., S the sum of w over independent coins, ``counts[w]`` of weight w.

    By the characteristic function on a circle of N points: outside of the N values around the mean, which reach at
    least 12 standard deviations and 30 weights to either side, there is less than rounding.
    """
    every = np.array(counts)
    w = np.flatnonzero(every[1:]) + 1
    k = every[w]
    total = int((w * k).sum())
    mean, deviation = p * total, float(np.sqrt((w**2 * k).sum() * p * (1 - p)))
    size = fft.next_fast_len(min(total + 1, int(24 * deviation) + 60 * int(w.max()) + 1), real=True)
    first = 0 if size > total else max(0, min(int(mean) - size // 2, total + 1 - size))
    angle = np.outer(w, 2 * np.pi / size * np.arange(size // 2 + 1))
    # log of 1 - p + p exp(-i angle), by its squared modulus 1 - 4 p (1 - p) sin^2, which is a sum where it is small
    sine, cosine = np.sin(angle / 2), np.cos(angle / 2)
    lost = 4 * p * (1 - p) * sine**2
    with np.errstate(divide="ignore"):  # a modulus of 0 has the logarithm -inf, and comes back as 0
        near = np.log(cosine**2 + ((1 - 2 * p) * sine) ** 2)
        modulus = k @ (0.5 * np.where(lost < 0.5, np.log1p(-np.minimum(lost, 0.5)), near))
    argument = k @ np.arctan2(-p * np.sin(angle), 1 - 2 * p * sine**2)
    mass = fft.irfft(np.exp(modulus) * (np.cos(argument) + 1j * np.sin(argument)), n=size)
    mass = np.maximum(np.roll(mass, -(first % size)), 0.0)
    tail: Floats = np.cumsum(mass[::-1])[::-1]
    return tail, first
