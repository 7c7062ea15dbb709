"""What a command line names, as objects: a module again and again, checkpoints and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memguard.errors import DataError

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["Maker", "as_long", "checkpoint_at", "given_or_saved", "put_weights"]


class Maker:
    """Makes the module again, for references; can be sent to other processes."""

    def __init__(self, owner: Any, given: Mapping[str, Any]) -> None:
        self.owner, self.given = owner, dict(given)

    def __call__(self) -> pl.LightningModule:
        """A new module."""
        module: pl.LightningModule = self.owner(**self.given)
        return module


def checkpoint_at(path: Path) -> Mapping[str, Any]:
    """A checkpoint, read without running any code that the file may hold."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds
        raise DataError(
            f"{path} cannot be read as weights and plain values alone ({type(error).__name__}: {error})",
            "a checkpoint that needs more may run code when it is loaded, and is not loaded here",
            "save one with Trainer.save_checkpoint(weights_only=True), and plain values as hyperparameters",
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}", "there are no weights", "pass a checkpoint")
    return found


def given_or_saved(given: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of the model: those given, or else the hyperparameters in the checkpoint."""
    return given or checkpoint.get("hyper_parameters") or {}


def put_weights(model: Any, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Give the model the weights of a checkpoint, and put it into eval mode."""
    state = checkpoint.get("state_dict", checkpoint)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DataError(
            f"the weights in {path} do not fit {type(model).__name__}: {error}",
            "another model than the trained one would be audited",
            "pass --model and --model-args of the training",
        ) from error
    model.eval()


def as_long(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """As many epochs as the checkpoint says, where nothing else is known of the training."""
    epochs = checkpoint.get("epoch")
    return {} if not isinstance(epochs, int) else {"max_epochs": epochs + 1}
