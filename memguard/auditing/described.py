"""What was audited, in words and hashes: for the head of the report and for doing it again."""

from __future__ import annotations

import hashlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from memguard.auditing.sides import Sides

__all__ = ["command_line", "dataset_fingerprint", "hardware", "model_line", "versions"]

_LIBRARIES = (
    "torch",
    "lightning",
    "numpy",
    "scipy",
    "polars",
    "opacus",
    "transformers",
    "POT",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Library -> version, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def dataset_fingerprint(sides: Sides) -> str:
    """Hash over the contents of all records and over which belong to one patient; says nothing of the ids."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(sides.patient).tobytes())
    content = sides.content
    if content.codes is not None:
        digest.update(content.codes.values.tobytes())
        digest.update(content.codes.offsets.tobytes())
    if content.x is not None:
        digest.update(np.ascontiguousarray(content.x).tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"


def model_line(module: pl.LightningModule) -> str:
    """Class and size."""
    size = sum(one.numel() for one in module.parameters())
    return f"{type(module).__qualname__}, {size:,} parameters"


def hardware() -> str:
    """Processor and accelerator, in words; no name of a machine."""
    parts = [platform.machine() or "unknown processor", f"{torch.get_num_threads()} threads of PyTorch"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def command_line() -> str:
    """The command of this process, without folders before its first word."""
    words: list[Any] = list(sys.argv)
    return " ".join([str(words[0]).rsplit("/", 1)[-1], *map(str, words[1:])]) if words and words[0] else ""
