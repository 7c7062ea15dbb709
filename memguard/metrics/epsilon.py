"""A lower bound on epsilon from canaries as a metric."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import override

from memguard.attacks.epsilon import (
    EpsilonBound,
    epsilon_clopper_pearson,
    epsilon_f_dp,
    epsilon_gdp,
    epsilon_one_run,
)
from memguard.errors import MemguardError
from memguard.metrics.scored import Arrays, ScoredRecords

__all__ = ["EpsilonLowerBound"]

_AUDITS = {
    "one_run": epsilon_one_run,
    "f_dp": epsilon_f_dp,
    "gdp": epsilon_gdp,
    "clopper_pearson": epsilon_clopper_pearson,
}


class EpsilonLowerBound(ScoredRecords):
    """Epsilon that a training has at least, from canaries that fair coins put into its data.

    The bound of `memguard.attacks.epsilon_one_run`, or of the audit that ``method`` names, on everything that was
    passed to `update`: ``target`` is 1 for the canaries that were included and 0 for those that were left out. It
    is one look: the largest of the bounds at several epochs is no bound (for that,
    `memguard.attacks.epsilon_sequential`). A canary that is passed twice makes it invalid.

    Args:
        delta: Of the claim, in [0, 1).
        method: ``"one_run"``, ``"f_dp"``, ``"gdp"`` (assumes Gaussian DP) or ``"clopper_pearson"``.
        threshold: How it is decided on which canaries to guess; the audit's own default if omitted.
        confidence: Of the bound.
        kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> included = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.5
        >>> metric = EpsilonLowerBound(delta=1e-5)
        >>> metric.update(included + torch.linspace(0, 0.9, 400), included)
        >>> bool(metric.compute() > 2), metric.bound().n
        (True, 400)
    """

    plot_lower_bound = 0.0

    def __init__(
        self,
        delta: float,
        *,
        method: Literal["one_run", "f_dp", "gdp", "clopper_pearson"] = "one_run",
        threshold: Any = None,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(confidence=confidence, **kwargs)
        if method not in _AUDITS:
            raise MemguardError(
                f"method = {method!r}", "no audit has that name", f"pass one of {', '.join(_AUDITS)}"
            )
        if not 0.0 <= delta < 1.0:
            raise MemguardError(
                f"delta = {delta!r}",
                "it is the probability with which epsilon may fail",
                "pass delta in [0, 1)",
            )
        if method == "gdp" and threshold is not None:
            raise MemguardError(
                "a threshold for method 'gdp'", "it counts all pairs and has none", "leave threshold= out"
            )
        self.delta, self.method, self.threshold = delta, method, threshold

    def bound(self) -> EpsilonBound:
        """The bound with what it rests on, over the canaries of all processes (each must call it).

        Raises:
            MemguardError: where `compute` would give NaN, saying why.
        """
        return self._bound(self._gathered())

    def _bound(self, arrays: Arrays) -> EpsilonBound:
        rule = {} if self.threshold is None else {"threshold": self.threshold}
        audit: Any = _AUDITS[self.method]
        found: EpsilonBound = audit(
            arrays["preds"], arrays["target"], delta=self.delta, confidence=self.confidence, **rule
        )
        return found

    @override
    def _value(self, arrays: Arrays) -> float:
        return self._bound(arrays).epsilon
