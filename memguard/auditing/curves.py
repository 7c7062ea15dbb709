"""Which numbers of a probe become curves of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping

from memguard.attacks.estimate import Estimate
from memguard.auditing.standing import Standing
from memguard.probes.result import ProbeResult
from memguard.probes.strata import breakdown
from memguard.report.audit.nulls import headline_of, null_of
from memguard.report.audit.parts import Number

__all__ = ["headlines", "shown"]


def headlines(numbers: Mapping[str, Estimate], *, min_cell: int = 5) -> dict[str, Estimate]:
    """The number that decides in an audit first, and an AUC beside it where there is one of the same question.

    Args:
        numbers: Of one probe.
        min_cell: Numbers of fewer patients are left out.

    Example:
        >>> one = Estimate(value=.2, low=.1, high=.3, n=90, method="x")
        >>> list(headlines({"auc.k10": one, "evidence.k10.minus_held_out": one, "memorized.k10.minus_held_out": one}))
        ['memorized.k10.minus_held_out', 'auc.k10']
        >>> headlines({"minus_held_out": Estimate(value=.2, low=.1, high=.3, n=4, method="x")})
        {}
    """
    usable = {
        name: Number(estimate=one, null=null_of(name))
        for name, one in numbers.items()
        if math.isfinite(one.value) and one.n >= min_cell
    }
    head = headline_of(usable)
    beside = head.replace("memorized.", "auc.").removesuffix(".minus_held_out")
    return {name: usable[name].estimate for name in dict.fromkeys((head, beside)) if name in usable}


def shown(result: ProbeResult, standing: Standing, *, min_cell: int = 5) -> dict[str, Estimate]:
    """The headlines of a probe, and its difference in each stratum that the user gave.

    Args:
        result: Of the probe.
        standing: With the strata.
        min_cell: Numbers of fewer patients are left out.
    """
    found = headlines(result.numbers, min_cell=min_cell)
    if standing.strata and result.evidence:
        evidence = next(iter(result.evidence.values()))
        parts = breakdown(evidence, standing.subject, standing.strata, min_cell=min_cell).numbers
        for name in standing.strata:
            key = f"{name}.minus_held_out"
            if key in parts and math.isfinite(parts[key].value) and parts[key].n >= min_cell:
                found[f"strata.{key}"] = parts[key]
    return found
