"""Trained references: asked in order, one at a time in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memguard.capture.stillness import forked_rng
from memguard.errors import ReferenceModelError
from memguard.references.job import Factory, State

if TYPE_CHECKING:
    from memguard.adapters.base import ModelAdapter

__all__ = ["Kind", "ReferencePool"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Kind = Literal["pool", "twins", "early-stopped"]


@dataclass(frozen=True, kw_only=True)
class ReferencePool:
    """Trained references, one at a time in memory where they are kept in a folder.

    Attributes:
        kind: ``"pool"``, ``"twins"`` or ``"early-stopped"``.
        in_mask: ``(K, N + M)`` whether reference k was trained on the record.
        factory: Gives the module that the weights belong to.
        states: Weights of each reference, or where to read them.
        adapter: How the audited model is asked, and so its references; ``None`` where only modules are wanted.
        steps: ``(K,)`` optimizer steps of each.
        epochs: ``(K,)`` epochs of each.
        restored: ``(K,)`` whether it was kept from before.
        backend: Which trained the others; empty where all were kept.
        notes: What to tell the reader of a report: the trial, what changed since references were kept.
    """

    kind: Kind
    in_mask: Bools
    factory: Factory
    states: tuple[Callable[[], State], ...]
    adapter: ModelAdapter | None = None
    steps: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    restored: tuple[bool, ...] = ()
    backend: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.states)

    def modules(self) -> Iterator[pl.LightningModule]:
        """Each reference in order, in eval mode, on the CPU."""
        for k, state in enumerate(self.states):
            module = _fresh(self.factory, k)
            module.load_state_dict(dict(state()))
            yield module.eval()

    def asked_through(self, adapter: ModelAdapter) -> ReferencePool:
        """The same references, asked as the audited model is."""
        return replace(self, adapter=adapter)

    def adapters(self) -> Iterator[ModelAdapter]:
        """Each reference in order, ready to be asked.

        Raises:
            ReferenceModelError: If no adapter was given.
        """
        if self.adapter is None:
            raise ReferenceModelError(
                "references without an adapter",
                "how a module is asked depends on what kind of model it is",
                "call asked_through with the adapter of the audited model",
            )
        for module in self.modules():
            yield self.adapter.of(module)

    def losses(self, loss: Callable[[pl.LightningModule], Floats]) -> Floats:
        """Losses of all records under each reference.

        Args:
            loss: Of one module in eval mode, ``(N + M,)``.

        Returns:
            ``(K, N + M)`` float64.

        Raises:
            ReferenceModelError: If it gives another number of losses.
        """
        found = np.full(self.in_mask.shape, np.nan)
        for k, module in enumerate(self.modules()):
            values = np.asarray(loss(module), dtype=np.float64)
            if values.shape != self.in_mask.shape[1:]:
                raise ReferenceModelError(
                    f"losses of shape {values.shape} for {self.in_mask.shape[1]} records",
                    "they would be given to the wrong record",
                    "return one loss for each record, members first",
                )
            found[k] = values
        return found


def _fresh(factory: Factory, k: int) -> pl.LightningModule:
    """A module to put weights into; what its own weights draw leaves no trace."""
    with forked_rng(k):
        return factory()
