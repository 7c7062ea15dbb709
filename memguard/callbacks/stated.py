"""Callbacks that state at the end what a training promises, so that the reports of others can say it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

if TYPE_CHECKING:
    from memguard.privacy.run import PrivateRun

__all__ = ["Stated", "callbacks_of", "statement_of"]


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """All callbacks of a Trainer, its own among them.

    Example:
        >>> len(callbacks_of(pl.Trainer(logger=False, accelerator="cpu", barebones=True))) >= 0
        True
    """
    found: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without naming it
    return found


class Stated(pl.Callback):
    """A callback with a statement."""

    @property
    def books(self) -> PrivateRun | None:
        """Where it keeps what touched the guarantee; ``None`` before training and after it."""
        return None

    def finish(self, trainer: pl.Trainer) -> str:
        """End the books and give the statement as text; at the end of training, whoever asks first."""
        raise NotImplementedError

    def before(self) -> dict[str, Any]:
        """What a fit stands in front of: ``loader``, the user's own, and settings of the Trainer that were changed."""
        return {}


def statement_of(trainer: pl.Trainer) -> str:
    """The statement of the Trainer's callbacks, empty where none of them has one.

    Example:
        >>> statement_of(pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"))
        ''
    """
    return "\n\n".join(one.finish(trainer) for one in callbacks_of(trainer) if isinstance(one, Stated))
