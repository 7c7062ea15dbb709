"""What the metrics share: the scores of all batches, brought together from all processes."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from memguard.attacks.estimate import Estimate
from memguard.errors import MemguardError, MemguardWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ScoredRecords"]

Arrays = dict[str, NDArray[Any]]


class ScoredRecords(Metric):
    """Keeps the score and the label of every record until they are computed from; the base of the metrics here.

    - `compute` gives a scalar tensor that can be logged. Where the data cannot support the number (one class is
      missing, too few patients for the rate, a score is NaN), it is NaN with a `MemguardWarning` that says why,
      so that a sanity check or a bad epoch does not end a training. `estimate` raises the error instead.
    - `forward` also computes the number of its batch, which is NaN without a warning where the batch is too
      small for it. ``metric.update(...)`` saves that work.
    - Memory is linear in the records: 12 bytes each, 20 with ``groups``. ``compute_on_cpu=True`` keeps them out of
      the accelerator's memory (not with a backend that gathers there alone).
    - Over several processes the records are gathered when the number is computed, so it is that of one process
      with all records; processes may have different numbers of records, or none. Records that a distributed
      sampler repeats in order to make the shares equal are counted twice: evaluate with a sampler that does not
      pad, or leave the repeats out of ``update``.
    - ``groups`` must mean the same patient in every process, and is given in all batches or in none.
    - Scores are not saved with a checkpoint unless ``persistent(True)`` is called: they are personal data.

    Args:
        confidence: Coverage of the interval that `estimate` gives.
        kwargs: Of `torchmetrics.Metric`, for instance ``sync_on_compute`` or ``process_group``.
    """

    is_differentiable = False
    higher_is_better = False  # of a model: what leaks less is better
    full_state_update = False

    preds: list[Tensor] | Tensor
    target: list[Tensor] | Tensor

    def __init__(self, *, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 < confidence < 1.0:
            raise MemguardError(
                f"confidence = {confidence!r}",
                "it is a share, strictly between 0 and 1",
                "pass confidence in (0, 1)",
            )
        self.confidence = confidence
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the records of a batch.

        Args:
            preds: ``(N,)`` membership scores, larger = more likely a member, of any real type; kept exactly.
            target: ``(N,)``, 1 (or True) for members, 0 for the others.

        Raises:
            MemguardError: if the shapes differ.
        """
        self._keep(preds=preds, target=target)

    @override
    def compute(self) -> Tensor:
        """The number as a scalar tensor of the metric's type; NaN where the data cannot support it."""
        try:
            value = self._value(self._arrays())
        except MemguardError as error:
            warning = MemguardWarning(f"{type(self).__name__} is NaN: {error.seen}", error.why, error.fix)
            warnings.warn(warning, stacklevel=2)
            value = float("nan")
        return torch.tensor(value, dtype=self.dtype, device=self.device)

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add the records of a batch and give the number of this batch alone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MemguardWarning)
            return super().forward(*args, **kwargs)

    @override
    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any = None,
        should_sync: bool = True,
        distributed_available: Callable[..., Any] | None = None,
    ) -> None:
        """Gather the records of all processes; each must call it."""
        if should_sync:
            # every process must send the same types, also one that has no records
            for name in self._defaults:
                state, dtype = getattr(self, name), self._types()[name]
                if isinstance(state, list):
                    state[:] = [part.to(dtype) for part in state] or [
                        torch.empty(0, dtype=dtype, device=self.device)
                    ]
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def plot(
        self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None
    ) -> tuple[Figure | None, Axes]:
        """Draw the number with its interval, or the given numbers.

        Args:
            val: What `compute` or `forward` gave, or a list of it; if omitted, the number as it stands now.
            ax: Where to draw; a new figure if omitted (needs matplotlib).

        Returns:
            The figure (None if ``ax`` was given) and its axes.
        """
        drawn: tuple[Any, Any] = self._plot(val, ax)
        figure, axes = drawn
        if val is None:
            with suppress(MemguardError):
                found = self._interval(self._gathered())
                bottom, top = axes.get_ylim()
                if found is not None:
                    axes.vlines(0, max(found.low, bottom), min(found.high, top), colors="k", linewidth=1)
        return figure, axes

    @abstractmethod
    def _value(self, arrays: Arrays) -> float:
        """The number of these records."""

    def _interval(self, arrays: Arrays) -> Estimate | None:
        """The interval to draw; None if there is none."""
        return None

    def _types(self) -> dict[str, torch.dtype]:
        # Apple's accelerator has no float64
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        return {"preds": wide, "target": torch.float32, "groups": torch.int64}

    def _keep(self, **tensors: Tensor) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if len(set(shapes.values())) > 1:
            raise MemguardError(
                f"shapes {', '.join(f'{name} {shape}' for name, shape in shapes.items())}",
                "scores would be given to the wrong record",
                "pass one value of each per record",
            )
        for name, tensor in tensors.items():
            state = getattr(self, name)
            state.append(tensor.detach().reshape(-1).to(self._types()[name]))

    def _arrays(self) -> Arrays:
        """All records that this process holds (after a sync: those of every process)."""
        arrays: Arrays = {}
        for name in self._defaults:
            state = getattr(self, name)
            parts = state if isinstance(state, list) else [state]
            arrays[name] = torch.cat(parts).cpu().numpy() if parts else np.zeros(0)
        return arrays

    def _gathered(self) -> Arrays:
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._arrays()
