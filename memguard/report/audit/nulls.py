"""What a number would be if the model knew nothing of its training patients, by the name of the number."""

from __future__ import annotations

import re

__all__ = ["null_of"]

_RATE = re.compile(r"(?:tpr_at_fpr|tnr_at_fnr)_(\d*\.?\d+(?:e-?\d+)?)")


def null_of(name: str) -> float | None:
    """The null by the names that probes give: a difference 0, an AUC .5, a rate at a rate that rate.

    Args:
        name: Of the number, such as ``"lira.tpr_at_fpr_0.01"``.

    Returns:
        ``None`` where the name does not say: the number then has no part in the verdict.

    Example:
        >>> [null_of(n) for n in ("lira.auc", "tpr_at_fpr_0.01", "recall.minus_held_out", "epsilon", "recall")]
        [0.5, 0.01, 0.0, 0.0, None]
    """
    words = set(re.split(r"[._\s]+", name.lower()))
    if "minus_held_out" in name or {"gap", "difference", "advantage"} & words:
        return 0.0
    rate = _RATE.search(name)
    if rate is not None:
        return float(rate[1])
    if words & {"auc", "auroc"}:
        return 0.5
    return 0.0 if "epsilon" in words else None
