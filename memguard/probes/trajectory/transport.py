"""Distance between two trajectories by optimal transport over code vectors, with a cost of time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from memguard.errors import DataError, MemguardError
from memguard.probes.trajectory.reading import Timed

__all__ = ["Ground", "nearest_other", "pot", "transport_distance"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def pot() -> Any:
    """The package that solves transport problems.

    Raises:
        MemguardError: If it is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise MemguardError(
            "the package POT is not installed",
            "no transport distance between trajectories can be computed",
            'pip install "memguard-ehr[audit]"',
        ) from error
    return ot


class Ground:
    """What it costs to turn one code into another, and to move it in time.

    The cost of codes a and b is (1 - cos)/2 of their vectors: 0 for the same direction, 1 for the opposite one. A
    code costs nothing against itself, and 1/2 against any other where its vector is zero. Moving a code through the
    whole horizon costs ``time_cost`` on top.

    Args:
        vectors: ``(V, D)`` one vector for each token. The same vectors must serve the target and its references.
        time_cost: Not negative; with 1, time weighs as much as the codes.

    Raises:
        DataError: For vectors that are not ``(V, D)`` or not finite, or a negative cost.

    Example:
        >>> Ground(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])).codes(np.array([0]), np.array([0, 1, 2]))
        array([[0. , 0.5, 1. ]])
    """

    def __init__(self, vectors: ArrayLike, *, time_cost: float = 0.5) -> None:
        table = np.asarray(vectors, dtype=np.float64)
        if table.ndim != 2 or not np.all(np.isfinite(table)) or not time_cost >= 0.0:
            raise DataError(
                f"code vectors of shape {table.shape}, time_cost={time_cost}",
                "a distance between codes cannot be computed",
                "pass finite code_vectors of shape (V, D) and a cost of 0 or more",
            )
        norm = np.linalg.norm(table, axis=1, keepdims=True)
        self.unit: Floats = np.divide(table, norm, out=np.zeros_like(table), where=norm > 0)
        self.time_cost = time_cost

    @property
    def largest(self) -> float:
        """The greatest distance there can be."""
        return 1.0 + self.time_cost

    def codes(self, one: Ints, other: Ints) -> Floats:
        """Costs ``(n, m)`` between codes, without time."""
        cost = np.clip(0.5 - 0.5 * self.unit[one] @ self.unit[other].T, 0.0, 1.0)
        cost[one[:, None] == other] = 0.0
        return cost

    def distance(self, one: Ints, one_time: Floats, other: Ints, other_time: Floats, solver: Any) -> float:
        """Least cost of turning one trajectory into the other, each code of a trajectory with the same mass."""
        n, m = len(one), len(other)
        if min(n, m) == 0:
            return 0.0 if n == m else self.largest
        cost = self.codes(one, other) + self.time_cost * np.abs(one_time[:, None] - other_time)
        if (
            n == m
        ):  # equal masses: some best plan is a permutation (Birkhoff), which is found ten times faster
            return float(cost[linear_sum_assignment(cost)].mean())
        return float(
            solver.emd2(
                np.full(n, 1.0 / n), np.full(m, 1.0 / m), cost, center_dual=False, check_marginals=False
            )
        )

    def at_least(self, middle: Floats, time: float, middles: Floats, times: Floats) -> Floats:
        """Lower bounds ``(k,)`` of the distance to k trajectories, from means of unit vectors and of times.

        (1 - cos)/2 is at least a quarter of the squared distance of the unit vectors (equal unless one is zero),
        whose transport costs at least that of the means (Jensen); likewise for time.
        """
        moved: Floats = 0.25 * np.sum((middles - middle) ** 2, axis=1)
        return moved + self.time_cost * np.abs(times - time)


def transport_distance(made: Timed, truth: Timed, ground: Ground) -> Floats:
    """Distance of each generated trajectory from the true one.

    Args:
        made: ``n`` generated trajectories.
        truth: ``n`` true ones.
        ground: Costs of codes and times.

    Returns:
        ``(n,)`` between 0 and ``1 + time_cost``. A trajectory without any code is as far as can be from one with
        codes: a model that stops early comes no closer by it.

    Raises:
        MemguardError: If POT is not installed.
        DataError: For different numbers of trajectories, or a code without a vector.

    References:
        The test and the use of transport with a cost of time: Tonekaboni et al., arXiv 2510.12950 (T1); costs, masses
        and the treatment of different lengths are this library's. The solver: Flamary et al., JMLR 22(78), 2021.

    Example:
        >>> from memguard.records.content import Ragged
        >>> codes = Ragged.from_lists([[0, 1], [0, 0]])
        >>> one = Timed(codes=codes, time=np.array([0.0, 0.5, 0.0, 0.5]))
        >>> two = Timed(codes=Ragged.from_lists([[0, 1], [1]]), time=np.array([0.0, 0.5, 0.5]))
        >>> transport_distance(one, two, Ground(np.eye(2))).tolist()
        [0.0, 0.625]
    """
    solver = pot()
    _check(made, ground)
    _check(truth, ground)
    if len(made.codes) != len(truth.codes):
        raise DataError(
            f"{len(made.codes)} trajectories for {len(truth.codes)} true ones",
            "a patient would be compared with somebody else",
            "pass one for each",
        )
    return np.array(
        [ground.distance(*_one(made, i), *_one(truth, i), solver) for i in range(len(made.codes))]
    )


def nearest_other(made: Timed, others: Timed, allowed: NDArray[np.bool_], ground: Ground) -> Floats:
    """Distance of each generated trajectory from the nearest of other patients' true ones.

    Exact: candidates are looked at in order of a lower bound, until the bound passes the best distance.

    Args:
        made: ``n`` generated trajectories.
        others: ``k`` true ones.
        allowed: ``(n, k)`` whom each may be compared with, never the patient itself.
        ground: Costs of codes and times.

    Returns:
        ``(n,)``; NaN where nobody is allowed.

    Raises:
        MemguardError: If POT is not installed.
        DataError: For a code without a vector, or an ``allowed`` of another shape.
    """
    solver = pot()
    _check(made, ground)
    _check(others, ground)
    if allowed.shape != (len(made.codes), len(others.codes)):
        raise DataError(
            f"allowed of shape {allowed.shape} for {len(made.codes)} trajectories and {len(others.codes)} others",
            "a patient could be compared with itself",
            "pass one truth value for each pair",
        )
    middle, time = _means(made, ground)
    middles, times = _means(others, ground)
    empty = others.codes.lengths == 0
    out = np.full(len(made.codes), np.nan)
    for i in range(len(out)):
        who = np.flatnonzero(allowed[i])
        if who.size == 0:
            continue
        bound = ground.at_least(middle[i], time[i], middles[who], times[who])
        bound[empty[who] | (made.codes.lengths[i] == 0)] = 0.0  # an empty one has no mean to compare
        best = np.inf
        for j in np.argsort(bound, kind="stable"):
            if bound[j] - 1e-12 >= best:
                break
            best = min(best, ground.distance(*_one(made, i), *_one(others, who[j]), solver))
        out[i] = best
    return out


def _one(timed: Timed, i: int) -> tuple[Ints, Floats]:
    part = slice(timed.codes.offsets[i], timed.codes.offsets[i + 1])
    return timed.codes.values[part].astype(np.int64), timed.time[part]


def _means(timed: Timed, ground: Ground) -> tuple[Floats, Floats]:
    """Mean unit vector ``(n, D)`` and mean time ``(n,)`` of each trajectory; zero for one without codes."""
    n, lengths = len(timed.codes), np.maximum(timed.codes.lengths, 1)
    sums = np.zeros((n, ground.unit.shape[1]))
    np.add.at(sums, timed.codes.rows, ground.unit[timed.codes.values])
    return sums / lengths[:, None], np.bincount(timed.codes.rows, timed.time, minlength=n) / lengths


def _check(timed: Timed, ground: Ground) -> None:
    highest = int(timed.codes.values.max(initial=-1))
    if highest >= len(ground.unit):
        raise DataError(
            f"code {highest} with {len(ground.unit)} code vectors",
            "its distance to other codes is not known",
            "pass one vector for each token of the vocabulary",
        )
