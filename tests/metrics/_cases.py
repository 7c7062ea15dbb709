"""The metrics with scores that both the tests and the two-process run use."""

from __future__ import annotations

import torch

from memguard.metrics import (
    EpsilonLowerBound,
    Exposure,
    MembershipAdvantage,
    MembershipAUROC,
    TNRAtFNR,
    TPRAtFPR,
)

GROUPED = {
    "auroc": lambda **kw: MembershipAUROC(**kw),
    "tpr": lambda **kw: TPRAtFPR(0.1, **kw),
    "tnr": lambda **kw: TNRAtFNR(0.1, **kw),
    "advantage": lambda **kw: MembershipAdvantage(**kw),
}
METRICS = {
    **GROUPED,
    "exposure": lambda **kw: Exposure(**kw),
    "epsilon": lambda **kw: EpsilonLowerBound(1e-5, **kw),
}


def records(n=400, seed=0):
    """Scores that separate somewhat, labels, and patients of two records each."""
    draw = torch.Generator().manual_seed(seed)
    target = (torch.rand(n // 2, generator=draw) < 0.5).repeat_interleave(2)
    preds = torch.randn(n, generator=draw, dtype=torch.float64) + 1.5 * target
    groups = torch.arange(n // 2).repeat_interleave(2) + 2**40
    return preds, target, groups


def feed(metric, name, rows, *, grouped=False, size=37):
    """``rows`` of the records in batches of ``size``; without rows no update at all."""
    preds, target, groups = records()
    for batch in torch.as_tensor(rows, dtype=torch.int64).split(size) if len(rows) else ():
        extra = {"groups": groups[batch]} if grouped and name in GROUPED else {}
        metric.update(preds[batch], target[batch], **extra)


def full(metric, name):
    """Everything that the metric says, as text: equal only if every digit is."""
    return repr(metric.bound() if name == "epsilon" else metric.estimate())


def numbers(metric, name):
    """The numbers that the metric says."""
    if name == "epsilon":
        found = metric.bound()
        return [found.epsilon, found.largest, found.n, found.guesses, found.correct]
    found = metric.estimate()
    return [found.value, found.low, found.high, found.n]
