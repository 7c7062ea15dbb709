"""What a number would be if the model knew nothing of its training patients, by the name of the number."""

from __future__ import annotations

import re
from collections.abc import Mapping

from memguard.report.audit.parts import Number

__all__ = ["HEADLINES", "headline_of", "null_of"]

_RATE = re.compile(r"(?:tpr_at_fpr|tnr_at_fnr)_(\d*\.?\d+(?:e-?\d+)?)")
HEADLINES = (
    "strongest.auc",
    "strongest.minus_held_out",
    "memorized.k20.minus_held_out",
    "memorized.k10.minus_held_out",
    "codes_10.distance.mean.minus_held_out",
    "auc",
    "minus_held_out",
)
"""Numbers that decide for a test where it has them, the first of these before the others. ``strongest`` allows in its
interval for having been chosen."""


def null_of(name: str) -> float | None:
    """The null by the names that probes give: a difference 0, an AUC .5, a rate at a rate that rate.

    The AUC of one side alone (``member_auc``) is what can be inferred, and that of a classifier blind to the model is
    about the split: neither has a null here.

    Args:
        name: Of the number, such as ``"lira.tpr_at_fpr_0.01"``.

    Returns:
        ``None`` where the name does not say: the number then has no part in the verdict.

    Example:
        >>> [null_of(n) for n in ("lira.auc", "tpr_at_fpr_0.01", "recall.minus_held_out", "epsilon", "member_auc")]
        [0.5, 0.01, 0.0, 0.0, None]
        >>> [null_of(f"difference.{n}") for n in ("auc", "tpr_at_fpr_0.1", "advantage")]  # an attack of that name
        [0.5, 0.1, 0.0]
    """
    words = set(re.split(r"[._\s]+", name.lower()))
    parts = set(name.lower().split("."))
    if "blind" in parts:
        return None
    rate = _RATE.search(name)
    if "minus_held_out" in name or "minus_rest" in name:
        return 0.0
    if rate is not None:
        return float(rate[1])
    if parts & {"auc", "auroc"}:
        return 0.5
    if {"gap", "difference", "advantage"} & words:
        return 0.0
    if "enrichment" in parts:
        return 1.0
    return 0.0 if "epsilon" in words else None


def headline_of(numbers: Mapping[str, Number]) -> str:
    """The number that decides in the verdict: by its name, so that it is chosen before it is measured.

    Args:
        numbers: Of one test.

    Returns:
        One of `HEADLINES`, or else the first that has a null; empty where none has.

    Example:
        >>> from memguard.attacks.estimate import Estimate
        >>> one = Number(estimate=Estimate(value=.6, low=.5, high=.7, n=9, method="x"), null=.5)
        >>> headline_of({"loss.auc": one, "strongest.auc": one}), headline_of({"loss.auc": one}), headline_of({})
        ('strongest.auc', 'loss.auc', '')
    """
    known = [name for name, one in numbers.items() if one.null is not None]
    return next((name for name in HEADLINES if name in known), known[0] if known else "")
