"""Epsilon while training goes on: bounds at every look that all hold together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from memguard.attacks.epsilon._coins import canaries
from memguard.attacks.epsilon.bound import EpsilonBound
from memguard.attacks.epsilon.one_run import epsilon_one_run, weighted_bound
from memguard.attacks.epsilon.weighted import Weighted, delta_slack
from memguard.errors import MemguardError

__all__ = ["SequentialEpsilon", "epsilon_sequential", "spending"]

Audit = Callable[..., EpsilonBound]


def spending(look: int, horizon: int | None = None) -> float:
    """Share of the error that look number ``look`` may spend; over all looks the shares add up to at most 1.

    With a horizon the look there, usually at the end of training, gets 1/2; the looks before it share .4 evenly, and
    those after it .1. Without one, look t gets 1 / (t (t + 1)).

    Args:
        look: From 1.
        horizon: Number of looks that are planned.

    Example:
        >>> [round(spending(t, 3), 3) for t in (1, 2, 3, 4)], spending(1)
        ([0.2, 0.2, 0.5, 0.05], 0.5)
        >>> 0.999 < sum(spending(t, 50) for t in range(1, 100000)) <= 1
        True
    """
    if look < 1 or (horizon is not None and horizon < 1):
        raise MemguardError(
            f"look {look} of {horizon}", "looks are counted from 1", "pass whole numbers from 1"
        )
    if horizon is None:
        return 1.0 / (look * (look + 1))
    if look > horizon:
        return 0.1 / ((look - horizon) * (look - horizon + 1))
    if look == horizon:
        return 0.5 if horizon > 1 else 0.9
    return 0.4 / (horizon - 1)


class SequentialEpsilon:
    """A lower bound on epsilon that may be looked at after every epoch.

    At look t an audit runs with the error ``(1 - confidence) * spending(t, horizon)``; the bound is the largest so far.

    Guarantees:
        All bounds of the sequence hold together, and at any time at which one cares to stop, with probability at least
        ``confidence``. Sketch: let training release every checkpoint be (epsilon', delta)-DP. At look t the scores
        are a function of the checkpoints up to t, so the audit at t errs with probability at most its share, however
        looks depend on each other; the shares add up to at most 1 - ``confidence`` (union bound), and if no audit errs
        then every bound is at most epsilon', and so is their maximum. Where guesses are weighed, the part of the error
        that pays for delta is one event for all looks (`memguard.attacks.epsilon.weighted`) and is spent once.
        Nothing else is assumed: not that scores of different looks are independent, nor that leakage grows. What it
        does need is that training did not react to the labels: a run that was changed because of an earlier bound is
        another mechanism, and must be audited as one.

    Args:
        delta: Of the claim, in [0, 1).
        confidence: Of all looks together.
        horizon: Number of looks that are planned; training may stop before it and go on after it. Without one, the
            error is spread over looks without end, and late looks pay more.
        audit: `epsilon_one_run`, with which delta is paid once for all looks; or another bound of this package.
        **settings: More arguments of the audit, for example ``threshold``.

    References:
        Sequential auditing: arXiv 2509.07055 and 2602.06518 draw fresh samples at each look; here the canaries stay
        the same, so their martingales do not apply, and the error is spent instead (Lan and DeMets, Biometrika 70,
        1983).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> included = rng.random(1000) < 0.5
        >>> bounds = SequentialEpsilon(delta=1e-5, horizon=20)
        >>> found = [bounds.look(rng.normal(size=1000) + t / 10 * included, included).epsilon for t in range(20)]
        >>> found[0], found == sorted(found), found[-1] > 1
        (0.0, True, True)
    """

    def __init__(
        self,
        *,
        delta: float,
        confidence: float = 0.95,
        horizon: int | None = None,
        audit: Audit = epsilon_one_run,
        **settings: object,
    ) -> None:
        spending(1, horizon)
        self.delta, self.confidence, self.horizon = delta, confidence, horizon
        self.audit, self.settings = audit, settings
        self.looks = 0
        self.bound: EpsilonBound | None = None
        self._included: np.ndarray | None = None

    def look(self, scores: ArrayLike, included: ArrayLike) -> EpsilonBound:
        """One more look.

        Args:
            scores: ``(m,)`` of the model as it is now.
            included: ``(m,)``, the same coins at every look.

        Returns:
            The largest bound so far.

        Raises:
            MemguardError: if the coins are others than at the first look, or for bad input of the audit.
        """
        truth = np.asarray(included).astype(np.bool_)
        if self._included is not None and not np.array_equal(truth, self._included):
            raise MemguardError(
                "included differs from that of the first look",
                "the bound is about one training run with one set of canaries",
                "pass the same coins at each look, or begin another SequentialEpsilon",
            )
        share = spending(self.looks + 1, self.horizon)
        found = self._audit(scores, included, share)
        self._included, self.looks = truth, self.looks + 1
        method = f"{found.method}, look {self.looks}"
        self.bound = replace(found, confidence=self.confidence, method=method).at_least(self.bound)
        return self.bound

    def _audit(self, scores: ArrayLike, included: ArrayLike, share: float) -> EpsilonBound:
        level = 1.0 - self.confidence
        rule = self.settings.get("threshold") or Weighted()
        if (
            self.audit is not epsilon_one_run
            or not isinstance(rule, Weighted)
            or set(self.settings) - {"threshold"}
        ):
            return self.audit(
                scores, included, delta=self.delta, confidence=1.0 - level * share, **self.settings
            )
        values, truth = canaries(scores, included, self.delta, self.confidence, coins=True)
        slack, left = delta_slack(len(values), self.delta, level)  # one payment for all looks
        known = 0.0 if self.bound is None else self.bound.epsilon
        return weighted_bound(values, truth, self.delta, self.confidence, rule, slack, left * share, known)


def epsilon_sequential(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    horizon: int | None = None,
    audit: Audit = epsilon_one_run,
    **settings: object,
) -> list[EpsilonBound]:
    """Anytime-valid bounds for a whole table of looks; see `SequentialEpsilon` for one look after the other.

    Args:
        scores: ``(T, m)``, looks by canaries.
        included: ``(m,)`` booleans, how the coins fell.
        delta: Of the claim.
        confidence: With which all bounds hold together.
        horizon: Number of looks that had been planned before the first one, whatever came of it.
        audit: The bound for one look.
        **settings: More arguments of the audit.

    Returns:
        One bound per look, never falling.

    Raises:
        MemguardError: if ``scores`` is no table, and for bad input of the audit.

    Example:
        >>> included = np.arange(400) % 2 == 0
        >>> table = np.stack([np.zeros(400), included + 0.0])
        >>> [round(bound.epsilon, 2) for bound in epsilon_sequential(table, included, delta=0.0, horizon=2)]
        [0.0, 4.59]
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise MemguardError(
            f"scores has shape {table.shape}",
            "looks and canaries cannot be told apart",
            "pass scores of shape (looks, canaries), or use epsilon_one_run for one look",
        )
    bounds = SequentialEpsilon(delta=delta, confidence=confidence, horizon=horizon, audit=audit, **settings)
    return [bounds.look(row, included) for row in table]
