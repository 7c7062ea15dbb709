"""Ask a module without leaving a trace on it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["device_of", "doubled", "still"]

_LARGE = 1 << 28  # bytes; a buffer beyond is data kept on the module, not state of a step


@contextlib.contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, buffers and random states are given back, whatever happens inside.

    Random states: those of torch (CPU and started CUDA devices), NumPy and ``random``, and generators that a
    submodule keeps as an attribute.

    Example:
        >>> net = nn.Dropout(0.5)
        >>> with still(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    parts = list(module.modules())
    modes = [(part, part.training) for part in parts]
    kept = [(each, each.detach().clone()) for each in module.buffers() if each.nbytes < _LARGE]
    undo = [_held(value) for part in parts for value in vars(part).values()]
    undo += [partial(random.setstate, random.getstate()), partial(np.random.set_state, np.random.get_state())]
    undo.append(partial(torch.set_rng_state, torch.get_rng_state()))
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        undo.append(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    try:
        with torch.no_grad():
            module.eval()
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for buffer, before in kept:
                # Written to only where it has changed: a running step may have saved it for its backward pass.
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        for back in undo:
            if back is not None:
                back()


def _held(value: Any) -> Callable[[], object] | None:
    """How to put a generator back; ``None`` for anything else."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return None


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
