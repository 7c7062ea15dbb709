"""One private step, put together: draw in, noisy mean out; nothing in between is to be seen by anybody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memguard.capture.ids import Positions
from memguard.errors import PrivacyError
from memguard.privacy.clipping import ClippedSum
from memguard.privacy.draws import Chunk, whole_draw
from memguard.privacy.engines.base import Engine, Read, RunStep, Work
from memguard.privacy.guards.noise import NoiseResidual, noise_residual
from memguard.privacy.noise import NoiseSource
from memguard.privacy.sampling import PatientSampler

__all__ = ["Mechanism", "Released", "StepCounts", "check_parameters"]

_REHEARSED, _FEWEST = 10_000, 30  # numbers of each parameter, and of all, to test the noise before training
Reduce = Callable[[Tensor], Tensor]
_BUCKET = 1 << 22  # float32 numbers that are sent at once


@dataclass(frozen=True)
class StepCounts:
    """Of one optimizer step. Functions of private data, and outside the guarantee.

    Attributes:
        owners: Owners in the draw.
        clipped: Those whose gradient was shortened.
        nonfinite: Those left out for a NaN or an infinity.
    """

    owners: int
    clipped: int
    nonfinite: int

    @property
    def clipped_share(self) -> float:
        """Share of the owners whose gradient was shortened; NaN in an empty draw."""
        return self.clipped / self.owners if self.owners else float("nan")


@dataclass(frozen=True)
class Released:
    """What leaves a step.

    Attributes:
        gradients: One for each parameter, in the parameter's dtype: clipped sum plus noise, divided by the *expected*
            number of owners.
        counts: See :class:`StepCounts`.
    """

    gradients: list[Tensor]
    counts: StepCounts


class Mechanism:
    """The Poisson-subsampled Gaussian mechanism on gradients (DP-SGD; Abadi et al. 2016, arXiv:1607.00133).

    Args:
        engine: Attached to the module.
        parameters: What is trained.
        sampler: Draws the owners.
        noise: Of this process; only rank 0 uses it.
        max_grad_norm: C.
        expected_owners: What the noisy sum is divided by, a frozen constant: to divide by the owners really drawn
            would tell how many they were.
        average: An owner's gradient is the ``"mean"`` or the ``"sum"`` over his records.
        rank: Of this process.
        reduce: Sums a tensor over processes, in place or not; ``None`` for a single one.
    """

    def __init__(
        self,
        engine: Engine,
        parameters: Sequence[nn.Parameter],
        sampler: PatientSampler,
        noise: NoiseSource,
        *,
        max_grad_norm: float,
        expected_owners: float,
        average: Literal["mean", "sum"] = "mean",
        rank: int = 0,
        reduce: Reduce | None = None,
    ) -> None:
        self.engine, self.parameters, self.sampler, self.noise = engine, list(parameters), sampler, noise
        self.expected_owners, self.average, self.rank, self.reduce = expected_owners, average, rank, reduce
        self.sum = ClippedSum(self.parameters, max_grad_norm)
        self._taken: list[Chunk] = []

    def begin(self) -> None:
        """Forget a draw that was not finished; for the start of an epoch."""
        self.sum.reset()
        self._taken.clear()

    def take(self, batch: Any, positions: Positions, run_step: RunStep, read: Read) -> Any:
        """Add the contributions of one physical batch.

        Args:
            batch: On the device.
            positions: ``(n,)`` records that it really holds, in its order.
            run_step: The user's step.
            read: The batch of one record.

        Returns:
            What the user's step returned; ``None`` for an empty part, where it did not run.

        Raises:
            PrivacyError: If these are not the records that were drawn.
        """
        chunk = self.sampler.take(positions)
        self._taken.append(chunk)
        if chunk.empty:
            return None
        return self.engine.accumulate(Work(batch, chunk, self.average), run_step, read, self.sum)

    def release(self, noise_multiplier: float) -> Released:
        """End the step: sum over processes, noise, division. The caller has written the step down before.

        Raises:
            PrivacyError: If the parts were not exactly one whole draw: an owner could be in it twice.
        """
        whole_draw(self._taken)
        # In place: a second copy of all parameters would be the largest thing in memory.
        self._add_noise(self.sum.sums, noise_multiplier)
        if self.reduce is not None:
            for some in _buckets(self.sum.sums):
                self._reduced(some)
        gradients = [
            (total / self.expected_owners).to(p.dtype)
            for total, p in zip(self.sum.sums, self.parameters, strict=True)
        ]
        counts = self._counts()
        self.begin()
        return Released(gradients, counts)

    def _reduced(self, totals: list[Tensor]) -> None:
        """Sum tensors over processes in one go."""
        assert self.reduce is not None
        if len(totals) == 1:
            totals[0].copy_(self.reduce(totals[0]))
            return
        flat = self.reduce(torch.cat([total.reshape(-1) for total in totals]))
        for total, part in zip(totals, torch.split(flat, [total.numel() for total in totals]), strict=True):
            total.copy_(part.reshape(total.shape))

    def rehearse(self, noise_multiplier: float) -> NoiseResidual | None:
        """Two noisy sums of nobody, whose difference must be Gaussian of the accounted size; nothing is released.

        Args:
            noise_multiplier: As for :meth:`release`.

        Returns:
            The verdict; ``None`` without noise, on processes that add none, and for models of a few numbers.
        """
        if self.rank > 0 or noise_multiplier == 0 or sum(map(Tensor.numel, self.sum.sums)) < _FEWEST:
            return None
        pair = [[torch.zeros_like(t.reshape(-1)[:_REHEARSED]) for t in self.sum.sums] for _ in range(2)]
        for each in pair:
            self._add_noise(each, noise_multiplier)
        return noise_residual([(pair[0], pair[1])], noise_multiplier, self.sum.max_grad_norm, 1.0)

    def _add_noise(self, sums: Sequence[Tensor], noise_multiplier: float) -> None:
        std = noise_multiplier * self.sum.max_grad_norm
        for total in sums:
            if self.rank == 0 and std > 0:
                total.add_(self.noise.normal_like(total, std))

    def _counts(self) -> StepCounts:
        counts = torch.tensor(
            [self.sum.n_owners, self.sum.n_clipped, self.sum.n_nonfinite], dtype=torch.float32
        )
        if self.reduce is not None:
            counts = self.reduce(counts.to(self.sum.sums[0].device)).cpu()
        owners, clipped, nonfinite = counts.long().tolist()
        return StepCounts(owners, clipped, nonfinite)


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours joined up to some size: one call for many small tensors, no copy of a large one."""
    found: list[list[Tensor]] = []
    size = _BUCKET
    for tensor in tensors:
        size += tensor.numel()
        if size > _BUCKET or tensor.device != found[-1][-1].device:
            found.append([])
            size = tensor.numel()
        found[-1].append(tensor)
    return found


def check_parameters(expected: Sequence[nn.Parameter], now: Sequence[nn.Parameter]) -> None:
    """Refuse a step of an optimizer that trains other parameters than those whose gradients were clipped.

    Raises:
        PrivacyError: With how many there are too many or too few.
    """
    ours, theirs = {id(p) for p in expected}, {id(p) for p in now}
    if ours != theirs:
        raise PrivacyError(
            f"the optimizer trains {len(theirs - ours)} parameters that were not clipped, and no longer "
            f"{len(ours - theirs)} that were",
            "their gradients would be applied without noise",
            "let the optimizer have all trainable parameters when training starts",
        )
