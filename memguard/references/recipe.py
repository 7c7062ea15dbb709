"""What makes a reference the one it is: everything that would change it, as primitives, and a hash over them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import lightning.pytorch as pl
import numpy as np
import torch

from memguard.capture.stillness import forked_rng, still_generators
from memguard.references.data import TrainingData
from memguard.references.job import Job
from memguard.references.sources import code_of, plain

__all__ = [
    "SAMPLE",
    "Recipe",
    "content_hash",
    "differences",
    "fingerprint",
    "module_recipe",
    "recipe_of",
    "versions",
]

Recipe = Mapping[str, Any]
SAMPLE = 2048  # records that are read for the fingerprint of a data set
_WORDS = {
    "lr": "learning rate",
    "learning_rate": "learning rate",
    "max_epochs": "epochs",
    "weight_decay": "weight decay",
    "p": "dropout",
}
_HIDDEN = ("training", "prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices")


def recipe_of(job: Job, records: str) -> dict[str, Any]:
    """Everything that would change a reference.

    Args:
        job: The reference.
        records: `fingerprint` of its data.

    Returns:
        Name -> primitives, in groups: module, code, weights, settings, loader, data, mask, seed, versions.

    Guarantees:
        What is not in it: records outside of the sample, files that the module reads, environment variables, and
        code that is reached through objects.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
        >>> from memguard.references.settings import Settings
        >>> data = TrainingData(dataset=RandomDataset(32, 4), patient=np.arange(4))
        >>> job = Job(k=0, factory=BoringModel, data=data, rows=np.array([0, 1]), seed=0,
        ...           settings=Settings(max_epochs=1))
        >>> recipe = recipe_of(job, fingerprint(data))
        >>> recipe["settings"]["max_epochs"], recipe["module"]["class"]
        (1, 'lightning.pytorch.demos.boring_classes.BoringModel')
    """
    module = job.module()
    data = job.data
    collate = data.collate_fn
    functions = [f.func if isinstance(f, functools.partial) else f for f in (job.factory, collate)]
    return {
        **module_recipe(module, [f for f in functions if f is not None]),
        "initial weights": _weights(module),
        "settings": job.settings.primitives(),
        "loader": {
            "batch_size": data.batch_size,
            "shuffle": data.shuffle,
            "drop_last": data.drop_last,
            "workers": data.num_workers,
            "collate": None if collate is None else plain(getattr(collate, "__qualname__", collate)),
        },
        "data": records,
        "mask": hashlib.sha256(np.asarray(job.rows, np.int64).tobytes()).hexdigest()[:16],
        "seed": [job.seed, job.k],
        "versions": versions(),
    }


def module_recipe(module: pl.LightningModule, functions: Sequence[Any] = ()) -> dict[str, Any]:
    """What makes a module before its first step, but for its weights: class, settings, code, shapes.

    Args:
        module: New.
        functions: What else made it.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> module_recipe(BoringModel())["architecture"]
        {'layer.weight': ['torch.float32', 2, 32], 'layer.bias': ['torch.float32', 2]}
    """
    return {
        "module": {
            "class": f"{type(module).__module__}.{type(module).__qualname__}",
            "hparams": plain(dict(module.hparams)),
            "attributes": _attributes(module),
        },
        "code": code_of([*{type(part) for part in module.modules()}, *functions]),
        "architecture": {
            name: [str(value.dtype), *value.shape]
            if isinstance(value, torch.Tensor)
            else type(value).__name__
            for name, value in module.state_dict().items()
        },
    }


def versions() -> dict[str, str]:
    """Of the libraries that compute.

    Example:
        >>> sorted(versions())
        ['lightning', 'numpy', 'torch']
    """
    return {
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "numpy": np.__version__,
    }


def content_hash(recipe: Recipe) -> str:
    """A name for a reference: the same recipe has the same one.

    Example:
        >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What changed, in words.

    Args:
        old: Recipe of a reference that is kept.
        new: Of the one that is wanted.

    Returns:
        A line for each difference; initial weights only where nothing else explains them.

    Example:
        >>> differences({"module": {"hparams": {"lr": 0.003}}, "data": "a"},
        ...             {"module": {"hparams": {"lr": 0.001}}, "data": "b"})
        ['learning rate 0.003 -> 0.001', 'data']
    """
    lines: list[str] = []
    for path, was, now in _walk(old, new, ()):
        name = _WORDS.get(path[-1], path[-1])
        if path[0] in ("data", "mask"):
            line = path[0]
        elif path[0] == "code":
            constant = not all(_is_hash(value) for value in (was, now) if value is not None)
            line = f"{path[-1]} {was} -> {now}" if constant else f"code of {path[-1]}"
        elif path[0] == "architecture":
            line = f"shape of {path[-1]} {was} -> {now}" if was and now else f"weights {path[-1]}"
        elif path[0] == "initial weights":
            line = path[0]
        else:
            line = f"{name} {was} -> {now}"
        if line not in lines:
            lines.append(line)
    return [line for line in lines if line != "initial weights"] or lines


def fingerprint(data: TrainingData) -> str:
    """A hash of how many records there are, whose they are, and what is in them.

    Args:
        data: `SAMPLE` records are read, evenly spread; all of them where there are no more.

    Example:
        >>> one = TrainingData(dataset=[1.0, 2.0], patient=np.array([0, 1]))
        >>> two = TrainingData(dataset=[1.0, 2.5], patient=np.array([0, 1]))
        >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(two)
        (True, False)
    """
    n = len(data)
    hasher = hashlib.sha256(f"{n}".encode())
    hasher.update(np.asarray(data.patient).astype(np.int64).tobytes())
    with forked_rng(0), still_generators(data.dataset, seed=0):
        for row in np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).round().astype(int)):
            _feed(hasher, data.dataset[int(row)], 0)
    return hasher.hexdigest()[:32]


def _feed(hasher: Any, value: Any, depth: int) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.view(torch.uint8) if value.dtype == torch.bfloat16 and value.ndim else value
        value = value.resolve_conj().numpy() if value.dtype != torch.bfloat16 else value.float().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, np.ndarray):
        _feed(hasher, value.tolist(), depth)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            hasher.update(str(key).encode())
            _feed(hasher, value[key], depth + 1)
    elif isinstance(value, list | tuple):
        hasher.update(f"[{len(value)}]".encode())
        for part in value:
            _feed(hasher, part, depth + 1)
    elif dataclasses.is_dataclass(value) or (depth < 4 and hasattr(value, "__dict__") and vars(value)):
        _feed(hasher, {name: part for name, part in vars(value).items() if not callable(part)}, depth + 1)
    else:
        hasher.update(repr(plain(value)).encode())


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Plain settings that hang on the module and its parts: a rate of dropout, a learning rate."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for name, value in sorted(vars(part).items()):
            if name.startswith("_") or name in _HIDDEN or value is None:
                continue
            if isinstance(value, bool | int | float | str) or (
                isinstance(value, tuple) and all(isinstance(one, bool | int | float | str) for one in value)
            ):
                found[f"{path}.{name}" if path else name] = plain(value)
    return found


def _weights(module: torch.nn.Module) -> str:
    hasher = hashlib.sha256()
    for name, value in module.state_dict().items():
        hasher.update(name.encode())
        _feed(hasher, value, 0)
    return hasher.hexdigest()[:16]


def _walk(old: Any, new: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*old, *(name for name in new if name not in old)]
        return [found for name in names for found in _walk(old.get(name), new.get(name), (*path, str(name)))]
    return [] if old == new else [(path, old, new)]


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16 and not set(value) - set("0123456789abcdef")
