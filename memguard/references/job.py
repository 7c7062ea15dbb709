"""One reference to be trained: a fresh module, its records, its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from memguard.capture.stillness import forked_rng
from memguard.errors import ReferenceModelError
from memguard.references.data import TrainingData
from memguard.references.settings import Settings

__all__ = ["Backend", "Factory", "Job", "Step", "Trained", "cpu_state"]

Ints = NDArray[np.int64]
Factory = Callable[[], pl.LightningModule]
State = Mapping[str, torch.Tensor]
Step = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A reference when it is done.

    Attributes:
        state: Its weights and buffers, on the CPU.
        steps: Optimizer steps taken.
        epochs: Epochs trained.
        seconds: Wall time, its share where several were trained at once.
    """

    state: State
    steps: int
    epochs: int
    seconds: float


class Backend(Protocol):
    """How references are trained."""

    def __call__(self, jobs: list[Job], step: Step) -> Iterator[tuple[Job, Trained]]:
        """Each reference as soon as it is done; ``step`` is told how many batches were trained on."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """One reference. Whoever trains it, and when, draws the same numbers: each reference has seeds of its own.

    Attributes:
        k: Its number in the pool.
        factory: Gives a fresh module with fresh weights.
        data: Of both sides.
        rows: Positions in it that the reference is trained on.
        settings: Of the run.
        seed: Of the pool.
    """

    k: int
    factory: Factory
    data: TrainingData
    rows: Ints
    settings: Settings
    seed: int

    @property
    def seeds(self) -> tuple[int, int, int]:
        """Of the weights, of the order of the records, and of what the module draws while it is trained."""
        weights, order, within = np.random.SeedSequence([self.seed, self.k]).generate_state(3)
        return int(weights), int(order), int(within)

    def module(self) -> pl.LightningModule:
        """Its module before the first step.

        Raises:
            ReferenceModelError: If the factory fails or gives something else.
        """
        try:
            with forked_rng(self.seeds[0]):
                module = self.factory()
        except (MemoryError, ReferenceModelError):
            raise
        except Exception as error:
            raise ReferenceModelError(
                f"a factory that fails: {type(error).__name__}: {error}",
                "there would be no reference",
                "pass a function without arguments that returns a new LightningModule",
            ) from error
        if not isinstance(module, pl.LightningModule):
            raise ReferenceModelError(
                f"a factory that gives {type(module).__name__}",
                "a reference is trained as the audited model was, by a Trainer",
                "pass a function without arguments that returns a new LightningModule",
            )
        # configure_callbacks of the module would add the user's own ones: this fit is none of their business.
        object.__setattr__(module, "configure_callbacks", list)
        return module

    def loader(self, workers: int | None = None) -> DataLoader[Any]:
        """Its batches."""
        return self.data.loader(self.rows, seed=self.seeds[1], workers=workers)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        n, size = len(self.rows), self.data.batch_size
        whole = n if size is None else n // size if self.data.drop_last else -(-n // size)
        limit = self.settings.limit_train_batches
        return min(whole, limit) if isinstance(limit, int) else int(whole * limit)

    @property
    def total(self) -> int:
        """Batches from beginning to end, for a progress bar."""
        settings = self.settings
        bounds = []
        if settings.last_epoch is not None:
            bounds.append(settings.last_epoch * self.batches)
        if settings.max_steps >= 0:
            bounds.append(settings.max_steps * settings.accumulate_grad_batches)
        return min(bounds)


def cpu_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights on the CPU; tensors that were one stay one.

    Raises:
        ReferenceModelError: If the module keeps something else than tensors in its state.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> tied = torch.nn.ModuleDict({"a": layer, "b": layer})
        >>> state = cpu_state(tied)
        >>> state["a.weight"] is state["b.weight"]
        True
    """
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ReferenceModelError(
                f"{name} of type {type(value).__name__} in the state of the module",
                "only tensors are kept of a reference, and nothing is pickled",
                "leave it out of the state of the module (get_extra_state, persistent metrics)",
            )
        one = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or one not in copies:
            copies[one] = value.detach().to("cpu", copy=True).contiguous()
        found[name] = copies[one]
    return found
