"""What an engine is asked for and what it gives."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from memguard.privacy.clipping import ClippedSum
from memguard.privacy.draws import Chunk

if TYPE_CHECKING:
    from memguard.privacy.engines.weighting import Weighting

__all__ = ["Engine", "Read", "RunStep", "Work"]

RunStep = Callable[[Any], Any]
Read = Callable[[int], Any]


@dataclass(frozen=True)
class Work:
    """One physical batch.

    Attributes:
        batch: As the user's step takes it, on the device.
        chunk: Which records it holds, in its order, and whose they are.
        average: An owner's gradient is the ``"mean"`` or the ``"sum"`` over his records.
    """

    batch: Any
    chunk: Chunk
    average: Literal["mean", "sum"] = "mean"


class Engine(ABC):
    """Computes the gradient of each owner and adds it, clipped, to the sum of the step.

    The gradient of a record is the gradient of the loss that the user's step returns for a batch of that record
    alone; an owner's gradient is the mean or sum over his records. Every engine gives the same sums, up to rounding.

    Args:
        module: Whose ``training_step`` runs.
        parameters: What the optimizer trains.

    Attributes:
        aside: Put around passes that are no part of the training; silences logs, and restores buffers and metrics.
    """

    name: str

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self.module, self.parameters = module, list(parameters)
        self.aside: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def attach(self) -> None:  # noqa: B027  an engine that needs no hooks has nothing to do
        """Prepare the module; undone by :meth:`detach`."""

    def detach(self) -> None:  # noqa: B027
        """Leave the module as it was. Idempotent."""

    def calibrate(self, work: Work, run_step: RunStep, read: Read) -> Weighting | None:
        """Learn from a few records, before training, how the loss of a batch weighs its records.

        Args:
            work: A batch of them.
            run_step: Runs the user's step on a batch.
            read: Gives the batch of one record alone.

        Returns:
            What was learned; ``None`` from an engine that does not need it.

        Raises:
            PrivacyError: If the loss is not a sum over its records.
        """
        return None

    @abstractmethod
    def accumulate(self, work: Work, run_step: RunStep, read: Read, into: ClippedSum) -> Any:
        """Add the clipped contributions of the owners in a physical batch; leaves every ``p.grad`` as it was.

        Args:
            work: The batch; its chunk is not empty.
            run_step: Runs the user's step on a batch, with gradients, and returns what it returned.
            read: Gives the batch of one record alone, by its position in the data set.
            into: Takes the contributions.

        Returns:
            What the step returned (for logs and other callbacks), without its graph.

        Raises:
            PrivacyError: If the gradients of single records cannot be told.
        """
