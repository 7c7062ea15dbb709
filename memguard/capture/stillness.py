"""Do something with a module or a dataset and leave no trace on it.

``with untouched(module)`` is what stands between a probe and the training run: when the block ends, for
whatever reason, training goes on with the same bits as if the block had not run.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["forked_rng", "still_generators", "untouched"]

_INTERNAL = frozenset(
    {"_parameters", "_modules", "_non_persistent_buffers_set", "training", "_trainer", "_fabric", "_buffers"}
)
_NOT_ENTERED = (type, ModuleType, Tensor, nn.Module, np.ndarray)
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEPTH = 4
# Data kept on a module (a whole training set, a vocabulary) is not state of a step and is not copied.
_LONG, _LARGE = 10_000, 1 << 28
_NO_KEEPERS = frozenset(
    {"torch", "lightning", "pytorch_lightning", "transformers", "numpy", "builtins", "tokenizers"}
)


@contextlib.contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Give torch (CPU and every started CUDA device), NumPy and ``random`` their states back afterwards.

    Args:
        seed: Seed to use inside, for draws that must be the same every time; None goes on from where it
            stands.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> with forked_rng():
        ...     inside = torch.rand(1)
        >>> bool(inside == torch.rand(1))
        True
    """
    cuda = torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    cpu_state, python, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for state in range(len(cuda_states)):
                torch.cuda.default_generators[state].manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
        yield
    finally:
        torch.set_rng_state(cpu_state)
        random.setstate(python)
        np.random.set_state(numpy_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@contextlib.contextmanager
def still_generators(root: Any, *, seed: int | None = None) -> Iterator[None]:
    """Restore every random generator that hangs on an object, and its plain counters.

    Follows attributes of wrapped datasets (``dataset``, ``datasets``, transforms, ...) and finds
    ``random.Random``, ``numpy.random.Generator``, ``numpy.random.RandomState`` and ``torch.Generator``.

    Args:
        root: The dataset.
        seed: If given, the generators start from it inside, so that the same call draws the same numbers.

    Example:
        >>> class Crops:
        ...     rng = None
        >>> data = Crops(); data.rng = random.Random(3)
        >>> with still_generators(data):
        ...     inside = data.rng.random()
        >>> inside == data.rng.random()
        True
    """
    undo: list[Callable[[], None]] = []
    for holder in _holders(root):
        for name, value in list(vars(holder).items()):
            if isinstance(value, int | float) and not isinstance(value, bool):
                undo.append(partial(vars(holder).__setitem__, name, value))
            for generator in value if isinstance(value, list | tuple) else (value,):
                restore = _hold(generator, seed)
                if restore is not None:
                    undo.append(restore)
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _hold(generator: Any, seed: int | None) -> Callable[[], None] | None:
    if isinstance(generator, random.Random):
        python = generator.getstate()
        if seed is not None:
            generator.seed(seed)
        return lambda: generator.setstate(python)
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        state = bits.state
        if seed is not None:
            bits.state = type(bits)(seed).state
        return lambda: setattr(bits, "state", state)
    if isinstance(generator, np.random.RandomState):
        legacy = generator.get_state()
        if seed is not None:
            generator.seed(seed % 2**32)
        return lambda: generator.set_state(legacy)
    if isinstance(generator, torch.Generator):
        torch_state = generator.get_state()
        if seed is not None:
            generator.manual_seed(seed)
        return partial(_set_torch, generator, torch_state)
    return None


def _set_torch(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _holders(root: Any) -> Iterator[Any]:
    """The object and what hangs on it and may own randomness; modules and tensors are not entered."""
    stack, seen = [(root, 0)], set()
    while stack:
        item, depth = stack.pop()
        if id(item) in seen or depth > _DEPTH or isinstance(item, (*_NOT_ENTERED, *_PLAIN)):
            continue
        seen.add(id(item))
        if isinstance(item, list | tuple) and len(item) <= 64:
            stack += [(part, depth + 1) for part in item]
        elif isinstance(item, dict) and len(item) <= 64:
            stack += [(part, depth + 1) for part in item.values()]
        elif hasattr(item, "__dict__") and not callable(getattr(item, "fit", None)):
            yield item
            stack += [(part, depth + 1) for part in vars(item).values()]


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the module and all randomness are as they were.

    Restored: train/eval mode of each submodule; buffers; metric states, counters and caches of torchmetrics;
    lists, dicts, sets, deques and numbers in plain attributes (contents, with the objects' identity kept);
    attributes that were added or removed; the generators of torch, CUDA, NumPy and ``random``, and those that a
    submodule keeps. Parameters and gradients are not written to by an evaluation and are not copied.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Dropout(0.5))
        >>> with untouched(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    modes = [(part, part.training) for part in module.modules()]
    undo = [_attributes(part) for part in module.modules()]
    with forked_rng():
        try:
            with torch.no_grad():
                module.eval()
                yield
        finally:
            with torch.no_grad():
                for restore in undo:
                    restore()
            for part, mode in modes:
                part.training = mode


def _attributes(part: nn.Module) -> Callable[[], None]:
    names = {name: value for name, value in vars(part).items() if name not in _INTERNAL}
    buffers = dict(part._buffers)
    undo = [_content(value, 0) for value in (*names.values(), *buffers.values())]

    def restore() -> None:
        for back in undo:
            if back is not None:
                back()
        inside = part.__dict__
        for name in [name for name in inside if name not in names and name not in _INTERNAL]:
            del inside[name]
        for name, value in names.items():
            if inside.get(name, undo) is not value:
                inside[name] = value
        part._buffers.clear()
        part._buffers.update(buffers)

    return restore


def _content(value: Any, depth: int) -> Callable[[], None] | None:
    """How to give a mutable value its content back; None if it has none."""
    if isinstance(value, nn.Parameter | nn.Module) or depth > _DEPTH:
        return None
    generator = _hold(value, None)
    if generator is not None:
        return generator
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.ndarray) and value.nbytes < _LARGE:
        copy = value.copy()
        return lambda: np.copyto(value, copy)
    if isinstance(value, dict):
        parts = [_content(part, depth + 1) for part in value.values()] if len(value) < _LONG else []
        return partial(_refill, value, value.update, dict(value), parts)
    if isinstance(value, list | deque):
        parts = [_content(part, depth + 1) for part in value] if len(value) < _LONG else []
        return partial(_refill, value, value.extend, list(value), parts)
    if isinstance(value, set):
        return partial(_refill, value, value.update, set(value), [])
    if isinstance(value, tuple) and len(value) < _LONG:
        parts = [_content(part, depth + 1) for part in value]
        return (lambda: _run(parts)) if any(part is not None for part in parts) else None
    if _is_keeper(value):
        return _content(vars(value), depth + 1)
    return None


def _is_keeper(value: Any) -> bool:
    """A plain object of the user's own making that may keep count of something, such as an average meter."""
    if (
        isinstance(value, type | ModuleType | random.Random | Dataset)
        or callable(value)
        or not hasattr(value, "__dict__")
    ):
        return False
    return type(value).__module__.partition(".")[0] not in _NO_KEEPERS


def _refill(container: Any, fill: Callable[[Any], None], content: Any, parts: list[Any]) -> None:
    """Put the same objects back into the same container, and their own contents back into them."""
    _run(parts)
    container.clear()
    fill(content)


def _run(parts: list[Callable[[], None] | None]) -> None:
    for part in parts:
        if part is not None:
            part()


def _tensor(value: Tensor) -> Callable[[], None] | None:
    if value.layout is not torch.strided or value.numel() == 0 or value.nbytes >= _LARGE:
        return None
    copy = value.detach().clone()

    def restore() -> None:
        # Not by the version counter: batch norm writes its statistics without counting. And not always: a write
        # to a tensor that the running step saved for its backward pass would make that pass fail.
        if torch.equal(value, copy):
            return
        with torch.inference_mode(value.is_inference() or torch.is_inference_mode_enabled()), torch.no_grad():
            value.detach().copy_(copy) if not value.is_leaf else value.data.copy_(copy)

    return restore
