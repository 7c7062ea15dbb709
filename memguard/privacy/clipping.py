"""The clipped sum of one step: each owner's contribution has a norm of at most ``max_grad_norm``, or is left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memguard.errors import PrivacyError

__all__ = ["ClippedSum"]


class ClippedSum:
    """Sums contributions of owners (patients, or records), each clipped to one joint norm over all parameters.

    Args:
        parameters: What is trained; the joint norm runs over all of them.
        max_grad_norm: C, the largest norm of a contribution, and so the L2 sensitivity of the sum to adding or
            removing one owner.

    Attributes:
        sums: One float32 tensor for each parameter, of its shape.
        n_owners: Owners that contributed since :meth:`reset`.
        n_clipped: Those whose norm was above ``max_grad_norm``.
        n_nonfinite: Those with a NaN or an infinity, who contribute zero: one such gradient would otherwise show in
            every parameter that its owner was there.

    Raises:
        PrivacyError: If ``max_grad_norm`` is not a positive number.

    Note:
        The sum and the counts are functions of private data; only the sum plus noise may leave. Abadi et al. 2016
        (arXiv:1607.00133), Algorithm 1, with the norm over all layers.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> total = ClippedSum([weight], max_grad_norm=1.0)
        >>> total.add([torch.tensor([[3.0, 4.0], [0.0, 0.5]])])
        >>> [round(x, 4) for x in total.sums[0].tolist()], total.n_owners, total.n_clipped
        ([0.6, 1.3], 2, 1)
    """

    def __init__(self, parameters: Sequence[nn.Parameter], max_grad_norm: float) -> None:
        if not (max_grad_norm > 0 and max_grad_norm < float("inf")):
            raise PrivacyError(
                f"max_grad_norm={max_grad_norm}",
                "it bounds what one patient can change, and the noise is a multiple of it",
                "pass a positive number; 1.0 is common",
            )
        self.max_grad_norm = float(max_grad_norm)
        self.sums = [torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in parameters]
        self.reset()

    def reset(self) -> None:
        """Begin the next step."""
        for total in self.sums:
            total.zero_()
        self.n_owners = 0
        device = self.sums[0].device if self.sums else torch.device("cpu")
        # Counted on the device: to read them at each batch would make it wait.
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)

    @property
    def n_clipped(self) -> int:
        """Owners whose contribution was shortened."""
        return int(self._counts[0])

    @property
    def n_nonfinite(self) -> int:
        """Owners who were left out for a NaN or an infinity."""
        return int(self._counts[1])

    def add(self, contributions: Sequence[Tensor]) -> None:
        """Add the contributions of several owners.

        Args:
            contributions: For each parameter ``(P, *shape)``, one row an owner, in the order of the parameters.
        """
        n = len(contributions[0])
        if n == 0:
            return
        rows = [each.float().reshape(n, -1) for each in contributions]
        norms = [torch.linalg.vector_norm(each, dim=1).to(self._counts.device) for each in rows]
        factor = self._factor(torch.linalg.vector_norm(torch.stack(norms), dim=0))
        # Zero where a norm is no number, and zero times infinity is none either.
        whole = bool((factor > 0).all())
        for total, each in zip(self.sums, rows, strict=True):
            finite = each if whole else torch.nan_to_num(each, nan=0.0, posinf=0.0, neginf=0.0)
            total.add_((factor.to(each.device) @ finite).reshape(total.shape))
        self.n_owners += n

    def add_one(self, contribution: Sequence[Tensor | None]) -> None:
        """Add the contribution of one owner.

        Args:
            contribution: For each parameter a tensor of its shape; ``None`` is zero.
        """
        given = [each.float() for each in contribution if each is not None]
        squares = [each.square().sum().to(self._counts.device) for each in given]
        norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=self._counts.device)
        factor = self._factor(norm.reshape(1))[0]
        for total, each in zip(self.sums, contribution, strict=True):
            if each is not None:
                finite = torch.nan_to_num(each.float(), nan=0.0, posinf=0.0, neginf=0.0)
                total.add_(finite * factor.to(finite.device))
        self.n_owners += 1

    def _factor(self, norms: Tensor) -> Tensor:
        """What each owner is multiplied by, zero where the norm is no number; counts as it goes."""
        finite = torch.isfinite(norms)
        self._counts[0] += (finite & (norms > self.max_grad_norm)).sum()
        self._counts[1] += (~finite).sum()
        # A norm of zero gives infinity, and min() one.
        factor = (self.max_grad_norm / norms).clamp(max=1.0)
        return torch.where(finite, factor, torch.zeros_like(factor))
