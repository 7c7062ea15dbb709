"""A fresh module like the one that was trained."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl

from memguard.capture.stillness import forked_rng
from memguard.errors import ReferenceModelError
from memguard.references.job import Factory

__all__ = ["factory_of"]


def factory_of(module: pl.LightningModule) -> Factory:
    """A function that makes a module of the same class with the same arguments and new weights.

    Args:
        module: One that called ``save_hyperparameters`` with all of its arguments.

    Returns:
        The function. It holds a copy of the arguments and not the module.

    Raises:
        ReferenceModelError: If arguments are not saved, or what they make has other weights.

    Example:
        >>> class Net(pl.LightningModule):
        ...     def __init__(self, width: int = 2) -> None:
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...         self.layer = torch.nn.Linear(width, 1)
        >>> import torch
        >>> factory_of(Net(width=3))().layer.in_features
        3
    """
    kind = type(module)
    given = dict(getattr(module, "hparams_initial", {}))
    parameters = [p for name, p in inspect.signature(kind.__init__).parameters.items() if name != "self"]
    known = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        known |= set(given)
    missing = [p.name for p in parameters if p.default is p.empty and p.name in known and p.name not in given]
    # A default that was not saved may have been another value.
    unsaved = [
        p.name for p in parameters if p.name in known and p.name not in given and p.name not in missing
    ]
    if missing or unsaved:
        raise ReferenceModelError(
            f"{kind.__name__} did not save its argument{'s' if len(missing + unsaved) > 1 else ''} "
            f"{', '.join(missing + unsaved)}",
            "a reference with other settings is another model",
            "call self.save_hyperparameters() in its __init__, or pass factory=",
        )
    factory = partial(_make, kind, {name: copy.deepcopy(given[name]) for name in known & set(given)})
    try:
        with forked_rng(0):
            fresh = factory()
    except Exception as error:
        raise ReferenceModelError(
            f"{kind.__name__} cannot be made from its saved arguments ({type(error).__name__}: {error})",
            "references need fresh modules",
            "pass factory=, a function without arguments that returns a new module",
        ) from error
    if _shapes(fresh) != _shapes(module):
        raise ReferenceModelError(
            f"{kind.__name__} made from its saved arguments has other weights than the one that was trained",
            "a reference of another shape is another model",
            "pass factory=, a function without arguments that returns a new module",
        )
    return factory


def _make(kind: type[pl.LightningModule], given: Mapping[str, Any]) -> pl.LightningModule:
    return kind(**copy.deepcopy(dict(given)))


def _shapes(module: pl.LightningModule) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.shape) for name, value in module.state_dict().items() if hasattr(value, "shape")
    }
