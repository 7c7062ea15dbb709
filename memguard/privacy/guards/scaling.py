"""Does the threshold do anything? The clipped sum at a C so small that everybody is clipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memguard.capture.stillness import forked_rng
from memguard.errors import PrivacyError
from memguard.privacy.guards.finding import Finding, Verdict
from memguard.privacy.guards.sensitivity import flat

__all__ = ["Scaling", "scaling"]


@dataclass(frozen=True, kw_only=True)
class Scaling(Verdict):
    """What :func:`scaling` found.

    Attributes:
        norms: Of the sum, at C, C / 2 and C / 1000, each in units of its threshold times the number of owners; at
            most 1 where clipping works.
        responds: Whether the sum changed between C and C / 1000.
    """

    norms: tuple[float, float, float]
    responds: bool


def scaling(
    sum_at: Callable[[float], Tensor | Sequence[Tensor]],
    n_owners: int,
    max_grad_norm: float,
    *,
    tolerance: float = 1e-2,
) -> Scaling:
    """Lower the threshold and see whether the sum of one batch follows.

    Each of n clipped contributions has a norm of at most c, so their sum has one of at most n c, whatever the
    gradients. At C / 1000 nearly everybody is clipped, and a sum that stays as it was is not clipped at all. This is
    what an ordinary loss under hooks that wait for another kind of loss looks like.

    Args:
        sum_at: Threshold to the sum of the clipped contributions of one fixed batch, without noise.
        n_owners: Owners in that batch.
        max_grad_norm: C.
        tolerance: What rounding may add, as a share. There is no chance in this test.

    Returns:
        The verdict.

    Raises:
        PrivacyError: If C or the number of owners is not positive.

    Guarantees:
        A sum above n c refutes per-owner clipping. A sum below proves little where gradients cancel, which is why
        :func:`~memguard.privacy.guards.sensitivity.sensitivity` stands beside this.

    References:
        Opacus in ghost mode with an ordinary loss keeps the same update for any C; its shape is that of
        Cebere et al., arXiv 2602.17454: a library's parts are right and their use together is not.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
        >>> clip = lambda c: (rows * (c / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)).sum(0)
        >>> scaling(clip, 2, max_grad_norm=1.0).ok, scaling(lambda c: rows.sum(0), 2, max_grad_norm=1.0).ok
        (True, False)
    """
    if not 0 < max_grad_norm < math.inf or n_owners < 1:
        raise PrivacyError(
            f"max_grad_norm={max_grad_norm}, {n_owners} owners",
            "the sum is held against their product",
            "pass the C of the clipping and a batch that is not empty",
        )
    thresholds = (max_grad_norm, max_grad_norm / 2, max_grad_norm / 1000)
    with forked_rng():
        sums = []
        for threshold in thresholds:
            torch.manual_seed(0)
            sums.append(flat(sum_at(threshold)))
    norms = [
        float(torch.linalg.vector_norm(s)) / (n_owners * c) for s, c in zip(sums, thresholds, strict=True)
    ]
    responds = not torch.equal(sums[0], sums[2]) or not bool(sums[0].any())
    finding = None
    if not responds or any(not value <= 1 + tolerance for value in norms):
        how = f"up to {max(norms):.3g} times what so many clipped owners can give"
        finding = Finding(
            "clipping/none" if not responds else "clipping/loose",
            f"the sum does not change with max_grad_norm, and is {how}"
            if not responds
            else f"the sum is {how}",
            "what one owner changes is not bounded, so no noise gives an epsilon",
            "clip each owner's gradient to max_grad_norm; hooks of a ghost mode do it for their own losses only",
        )
    return Scaling(finding=finding, norms=(norms[0], norms[1], norms[2]), responds=responds)
