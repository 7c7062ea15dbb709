"""Where a module lies, and in which precision its numbers are read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["device_of", "doubled"]


def device_of(module: nn.Module) -> torch.device:
    """Where a module lies; the CPU for one without parameters and buffers."""
    for each in (*module.parameters(), *module.buffers()):
        return each.device
    return torch.device("cpu")


def doubled(values: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none.

    A memorized token has a loss of 1e-8 and less, which float32 takes for 0 although its logits tell it.
    """
    return values.cpu().double() if values.device.type == "mps" else values.double()
