"""Arrays in one file for the owner alone, without pickle."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.owner_only import write_whole

__all__ = ["read_arrays", "write_arrays"]

_FORM = "memguard canaries 1"


def write_arrays(path: str | Path, kind: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Write the arrays, or leave a file with the same ones alone.

    Raises:
        DataError: A file with something else lies there.

    Example:
        >>> import tempfile
        >>> path = write_arrays(Path(tempfile.mkdtemp()) / "a.npz", "features", {"x": np.arange(3)})
        >>> oct(path.stat().st_mode & 0o777), read_arrays(path, "features")["x"].tolist()
        ('0o600', [0, 1, 2])
    """
    target = Path(path)
    if target.exists():
        old = read_arrays(target, kind)
        if set(old) == set(arrays) and all(np.array_equal(old[name], arrays[name]) for name in arrays):
            os.chmod(target, 0o600)
            return target
        raise DataError(
            f"{target} holds other canaries",
            "which of them were trained on would be lost",
            "give another file or directory",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    body = io.BytesIO()
    everything: Any = {"_form": np.array(_FORM), "_kind": np.array(kind), **arrays}
    np.savez(body, **everything)
    write_whole(target, body.getvalue())
    return target


def read_arrays(path: str | Path, kind: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file of this kind.

    Raises:
        DataError: It cannot be read, or is another file.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as canaries ({error})",
            "nobody knows which were included",
            "pass the file that save() wrote",
        ) from error
    seen = str(arrays.pop("_form", "")), str(arrays.pop("_kind", ""))
    if seen != (_FORM, kind):
        raise DataError(
            f"{path} holds {seen[1] or 'something else'}, not canaries of {kind}",
            "nobody knows which were included",
            "load it with the class that saved it",
        )
    return arrays
