"""What one patient changes: the clipped sum of a batch with and without each of its patients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memguard.capture.stillness import forked_rng
from memguard.errors import PrivacyError
from memguard.privacy.guards.finding import Finding, Verdict

__all__ = ["Sensitivity", "SumOf", "flat", "sensitivity", "without_dropout"]

SumOf = Callable[[Sequence[int]], Tensor | Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Verdict):
    """What :func:`sensitivity` found.

    Attributes:
        max_ratio: Largest change of the sum by one owner, in units of C; at most 1 where the pipeline is correct.
        worst: The owner who made it.
        company: Largest difference between what an owner adds to the batch and what he adds alone, in units of C; NaN
            where it was not asked for.
        companion: The owner for whom that is so.
        order: Difference of the sum with the owners in reverse, in units of C.
        n_owners: Owners looked at.
    """

    max_ratio: float
    worst: int | None
    company: float
    companion: int | None
    order: float
    n_owners: int


def sensitivity(
    sum_of: SumOf,
    owners: Sequence[int],
    max_grad_norm: float,
    *,
    tolerance: float = 1e-2,
    companions: bool = True,
) -> Sensitivity:
    """Compare the clipped sum of a batch with the sums without each of its owners, without noise.

    Four things must hold of a sum of contributions that are clipped one owner at a time, and each is tested: no owner
    changes it by more than C; what an owner adds does not depend on the others; nor on the order; and it is finite.
    The second sees what the first can miss on harmless data: a loss that looks across the batch (batch normalization,
    Cox, contrastive, class weights or tokens averaged over the batch), a threshold set by the batch.

    Args:
        sum_of: The pipeline under test, at fixed parameters and without noise: owners to the sum of their clipped
            contributions, before the division, as one tensor or one for each parameter. Called with the same state of
            the global random generators each time.
        owners: At least two; their records, their rarest and longest ones too, are what the verdict is about.
        max_grad_norm: C. Ask again with the clipping set to a hundredth of it: then everybody is clipped, and a clip
            that is wrong for a few (layer by layer, say) shows on all.
        tolerance: What rounding may add, as a share of C. There is no chance in this test: in float32 a correct
            pipeline is off by about 1e-6 for each owner of the batch, in bfloat16 by about 1e-2.
        companions: Whether to compute also what each owner adds alone; doubles the calls, most of them short.

    Returns:
        The verdict. Where the sum changes with the seed, only single owners can be measured against C; then the
        finding has severity ``"ledger"`` unless one of them is above.

    Raises:
        PrivacyError: With fewer than two owners, an owner named twice, or C that is no positive number.

    Guarantees:
        A ratio above 1 refutes the claim that C bounds one owner's influence. A ratio below 1 is evidence about the
        owners and parameters looked at, and no proof about others. Whether there is enough noise, and whether
        sampling is what the accountant thinks, are other guards' questions.

    References:
        Re:cord-play, which compares a pipeline on neighbouring data sets: Cebere et al., arXiv 2602.17454. The
        bound: Abadi et al., arXiv 1607.00133, Algorithm 1.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [0.1, 0.0], [-2.0, 0.0]])
        >>> def clipped(owners):
        ...     chosen = rows[list(owners)]
        ...     return (chosen / chosen.norm(dim=1, keepdim=True).clamp(min=1.0)).sum(0)
        >>> sensitivity(clipped, [0, 1, 2], max_grad_norm=1.0).ok
        True
        >>> found = sensitivity(lambda owners: rows[list(owners)].sum(0), [0, 1, 2], max_grad_norm=1.0)
        >>> round(found.max_ratio, 2), found.worst
        (5.0, 0)
    """
    members = _checked(owners, max_grad_norm)
    total = _call(sum_of, members)
    if not bool(torch.isfinite(total).all()):
        return _nonfinite(total, len(members))
    if not _same(total, _call(sum_of, members, seed=1), max_grad_norm * tolerance):
        return _random(sum_of, members, max_grad_norm, tolerance)
    changes: dict[int, float] = {}
    company: dict[int, float] = {}
    for owner in members:
        added = total - _call(sum_of, [o for o in members if o != owner])
        changes[owner] = _ratio(added, max_grad_norm)
        if companions:
            company[owner] = _ratio(added - _call(sum_of, [owner]), max_grad_norm)
    order = _ratio(total - _call(sum_of, members[::-1]), max_grad_norm)
    worst = max(changes, key=lambda o: changes[o])
    companion = max(company, key=lambda o: company[o]) if company else None
    most = 0.0 if companion is None else company[companion]
    return Sensitivity(
        finding=_judge(changes[worst], most, order, tolerance),
        max_ratio=changes[worst],
        worst=worst,
        company=most if companions else math.nan,
        companion=companion,
        order=order,
        n_owners=len(members),
    )


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Let every dropout layer pass everything on, in training mode, and put it back afterwards.

    A dropout mask depends on a record's place in the batch, so that a probe would take it for an influence of the
    others. ``module.eval()`` would hide batch normalization, which is what the probe is for.

    Args:
        module: Its ``nn.Dropout`` layers of any kind, and the ``dropout`` of attention and recurrent layers, are set
            to 0. Dropout that is called as a function stays; the probe then finds the sum random and says so.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5), nn.GRU(2, 2, num_layers=2, dropout=0.3))
        >>> with without_dropout(net):
        ...     net[0].p, net[1].dropout
        (0.0, 0.0)
        >>> net[0].p, net[1].dropout
        (0.5, 0.3)
    """
    kept: list[tuple[nn.Module, str, float]] = []
    for child in module.modules():
        kind = nn.modules.dropout._DropoutNd
        name = "p" if isinstance(child, kind) else "dropout"
        layer = isinstance(child, kind | nn.MultiheadAttention | nn.RNNBase)
        value = getattr(child, name, None) if layer else None
        if isinstance(value, float | int):
            kept.append((child, name, float(value)))
    try:
        for child, name, _ in kept:
            setattr(child, name, 0.0)
        yield
    finally:
        for child, name, value in kept:
            setattr(child, name, value)


def flat(sums: Tensor | Sequence[Tensor]) -> Tensor:
    """One or several tensors as one float64 vector on the CPU.

    Example:
        >>> flat([torch.ones(2, 2), torch.zeros(1)]).tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0]
    """
    parts = [sums] if isinstance(sums, Tensor) else list(sums)
    if not parts:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([part.detach().to("cpu", torch.float64).reshape(-1) for part in parts])


def _checked(owners: Sequence[int], max_grad_norm: float) -> list[int]:
    members = list(owners)
    if len(members) < 2 or len(set(members)) < len(members):
        raise PrivacyError(
            f"{len(members)} owners, {len(set(members))} of them different",
            "a batch is compared with the same batch without one owner",
            "pass at least two owners, each once",
        )
    if not 0 < max_grad_norm < math.inf:
        raise PrivacyError(
            f"max_grad_norm={max_grad_norm}",
            "changes are measured in units of it",
            "pass the C of the clipping",
        )
    return members


def _call(sum_of: SumOf, owners: Sequence[int], seed: int = 0) -> Tensor:
    with forked_rng(seed):
        return flat(sum_of(owners))


def _same(first: Tensor, second: Tensor, allowed: float) -> bool:
    return bool(torch.linalg.vector_norm(first - second) <= allowed)


def _ratio(difference: Tensor, max_grad_norm: float) -> float:
    value = float(torch.linalg.vector_norm(difference)) / max_grad_norm
    return value if math.isfinite(value) else math.inf


def _judge(ratio: float, company: float, order: float, tolerance: float) -> Finding | None:
    if ratio > 1 + tolerance:
        return Finding(
            "sensitivity/above",
            f"one owner changed the clipped sum by {ratio:.3g} C",
            "noise is scaled to a change of at most C, so epsilon would be too small",
            "clip the gradient of each owner by its joint norm over all parameters before summing; a loss over the "
            "batch (BatchNorm, Cox, contrastive) has no such gradient",
        )
    if company > tolerance:
        return Finding(
            "sensitivity/company",
            f"what an owner adds to the clipped sum changes by {company:.3g} C with the others in the batch",
            "removing one owner changes the contributions of others too, and nothing bounds all of these together",
            "make the loss of a record a function of that record alone: its own mean over tokens, no statistics, "
            "ranks, weights or thresholds of the batch",
        )
    if order > tolerance:
        return Finding(
            "sensitivity/order",
            f"the clipped sum changes by {order:.3g} C with the order of its owners",
            "contributions then depend on who else is in the batch",
            "make the loss of a record independent of its place",
        )
    return None


def _nonfinite(total: Tensor, n: int) -> Sensitivity:
    bad = int((~torch.isfinite(total)).sum())
    finding = Finding(
        "sensitivity/nonfinite",
        f"{bad} of {total.numel()} entries of the clipped sum are NaN or infinite",
        "noise does not cover a NaN: the model shows that the owner of such a record was there",
        "let contributions that are not finite count as zero, as ClippedSum does",
    )
    return Sensitivity(
        finding=finding,
        max_ratio=math.inf,
        worst=None,
        company=math.inf,
        companion=None,
        order=math.inf,
        n_owners=n,
    )


def _random(sum_of: SumOf, members: list[int], max_grad_norm: float, tolerance: float) -> Sensitivity:
    alone = {owner: _ratio(_call(sum_of, [owner]), max_grad_norm) for owner in members}
    worst = max(alone, key=lambda o: alone[o])
    finding = _judge(alone[worst], 0.0, 0.0, tolerance) or Finding(
        "sensitivity/random",
        "the clipped sum changes with the seed",
        "random masks fall differently when one owner is left out, so only single owners could be held against C",
        "switch dropout and random masks off for the probe, and noise, so that batches can be compared",
        severity="ledger",
        warn=True,
    )
    return Sensitivity(
        finding=finding,
        max_ratio=alone[worst],
        worst=worst,
        company=math.nan,
        companion=None,
        order=math.nan,
        n_owners=len(members),
    )
