"""Weights that may still be the best: kept on the CPU, written for their owner alone, put back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from memguard.callbacks.guard import warn
from memguard.errors import MemguardError
from memguard.owner_only import make_folder, write_whole

__all__ = ["KeptWeights", "require_safetensors"]

Weights = dict[str, Tensor]


class KeptWeights:
    """Weights and buffers of a few steps.

    Attributes:
        path: The file with those of the best one; ``None`` where there is none.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> kept, module = KeptWeights(), BoringModel()
        >>> kept.keep({3}, 3, module)
        >>> was = module.layer.bias.detach().clone()
        >>> _ = torch.nn.init.zeros_(module.layer.bias)
        >>> kept.put_back(3, module)
        >>> torch.equal(module.layer.bias, was)
        True
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._of: dict[int, Weights] = {}
        self._written: int | None = None

    def keep(self, steps: set[int], now: int, module: pl.LightningModule) -> None:
        """Keep those of these steps, and let go of the others.

        Args:
            steps: Optimizer steps whose weights are wanted.
            now: The step that the module is at.
            module: With its weights.
        """
        if now in steps and now not in self._of:
            self._of[now] = _copied(module)
        self._of = {step: weights for step, weights in self._of.items() if step in steps}

    def write(self, step: int | None, path: Path, about: Mapping[str, Any]) -> None:
        """Let the file have the weights of a step, or be gone; a full disk only warns.

        Args:
            step: ``None`` for no file.
            path: Of the file; its folder is made with mode 0700 where missing.
            about: Facts for the header of the file.
        """
        if step == self._written:
            return
        try:
            if step is None:
                path.unlink(missing_ok=True)
                self.path = None
            else:
                make_folder(path.parent)
                facts = {name: str(value) for name, value in about.items()}
                write_whole(path, require_safetensors()(self._of[step], facts))
                self.path = path
            self._written = step
        except OSError as error:
            warn(
                f"the best weights under the limit could not be written ({error.strerror or error})",
                "they are in memory, and in the checkpoints of the Trainer",
                "free space, or pass another dirpath=",
            )

    def put_back(self, step: int, module: pl.LightningModule) -> None:
        """Give the module the weights of a step.

        Raises:
            MemguardError: If they are not in it afterwards, bit for bit.
        """
        weights, live = self._of[step], module.state_dict()
        with torch.no_grad():
            for name in weights.keys() & live.keys():
                live[name].copy_(weights[name])
        now = module.state_dict()
        if any(name not in now or not _same(now[name], value) for name, value in weights.items()):
            raise MemguardError(
                f"a {type(module).__name__} that does not take its own weights back",
                "it would be taken for the model that was under the limit",
                "pass restore=False, and load the file at best_path",
            )

    def state_dict(self) -> dict[int, Weights]:
        """Tensors by step and name."""
        return {step: dict(weights) for step, weights in self._of.items()}

    def load_state_dict(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Go on with what another fit kept."""
        self._of = {int(step): dict(weights) for step, weights in state.items()}


def require_safetensors() -> Any:
    """``safetensors.torch.save``.

    Raises:
        MemguardError: If it is not installed.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise MemguardError(
            "safetensors is not installed",
            "the best weights are written in its format, which can be read without running code",
            "pip install 'memguard-ehr[audit]', or pass save=False: they are put back all the same",
        ) from error
    return save


def _copied(module: pl.LightningModule) -> Weights:
    with (
        torch.inference_mode(False),
        torch.no_grad(),
    ):  # a look may come out of a validation in inference mode
        return {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in module.state_dict().items()
            if isinstance(value, Tensor)
        }


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = (each.detach().cpu().contiguous().reshape(-1) for each in (one, other))
    return torch.equal(*(each.view(torch.uint8) if each.numel() else each for each in flat))
