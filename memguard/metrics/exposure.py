"""Exposure of planted canaries as a metric."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import override

from memguard.attacks._checks import finite, labels
from memguard.attacks.canary_exposure import ExposureResult, exposure
from memguard.attacks.estimate import Estimate
from memguard.errors import MemguardError
from memguard.metrics.scored import Arrays, ScoredRecords

__all__ = ["Exposure"]


class Exposure(ScoredRecords):
    """Mean exposure in bits of the canaries that were inserted, among those that were not.

    `memguard.attacks.exposure` of everything that was passed to `update`: ``target`` is 1 for canaries that are in
    the training data and 0 for alternatives that were drawn in the same way and are not. Without any memorization
    it is 1.44 on average. `exposures` gives each canary's.

    Args:
        method: ``"interpolate"`` (rank among the alternatives) or ``"extrapolate"`` (a skew-normal law).
        space: Number of canaries that could have been drawn, if it is finite.
        confidence: Coverage of the intervals.
        kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = Exposure()
        >>> metric.update(torch.tensor([-1.0, -20.0]), torch.tensor([1, 1]))  # minus the losses of two canaries
        >>> metric.update(-torch.arange(10.0, 25.0), torch.zeros(15))
        >>> metric.compute()
        tensor(2.2382)
        >>> metric.exposures().value.round(2)
        array([4.  , 0.48])
    """

    plot_lower_bound = 0.0

    def __init__(
        self,
        *,
        method: Literal["interpolate", "extrapolate"] = "interpolate",
        space: int | None = None,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(confidence=confidence, **kwargs)
        if method not in ("interpolate", "extrapolate"):
            raise MemguardError(
                f"method = {method!r}",
                "there are two ways to rank a canary",
                "pass 'interpolate' or 'extrapolate'",
            )
        self.method: Literal["interpolate", "extrapolate"] = method
        self.space = space

    def exposures(self) -> ExposureResult:
        """The exposure of each canary, in the order of their arrival, process by process (each must call it).

        Raises:
            MemguardError: where `compute` would give NaN, saying why.
        """
        return self._exposures(self._gathered())

    def estimate(self) -> Estimate:
        """The mean over canaries with an interval that holds for all of them at once (each process must call it).

        Raises:
            MemguardError: where `compute` would give NaN, saying why.
        """
        return self.exposures().mean

    def _exposures(self, arrays: Arrays) -> ExposureResult:
        loss = -finite(arrays["preds"], "preds")
        canary = labels(arrays["target"], len(loss), "target")
        return exposure(
            loss[canary], loss[~canary], method=self.method, space=self.space, confidence=self.confidence
        )

    @override
    def _value(self, arrays: Arrays) -> float:
        return self._exposures(arrays).mean.value

    @override
    def _interval(self, arrays: Arrays) -> Estimate | None:
        return self._exposures(arrays).mean
