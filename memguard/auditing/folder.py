"""Whether a folder takes what is written to it, before hours are spent on what would be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from memguard.errors import DataError
from memguard.owner_only import make_folder

__all__ = ["writable"]


def writable(folder: str | Path, argument: str = "folder=") -> Path:
    """Make a folder that its owner alone may read, and write a byte to see that it can be done.

    Args:
        folder: Made when missing, with those above it.
        argument: What it was given as, for the message.

    Raises:
        DataError: If nothing can be written there.

    Example:
        >>> import sys
        >>> writable(Path(sys.executable) / "below a file")
        Traceback (most recent call last):
        memguard.errors.DataError: nothing can be written to ...
    """
    folder = Path(folder)
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise DataError(
            f"nothing can be written to {folder} ({error.strerror or error})",
            "reference models or a report would be lost after they were made",
            f"pass {argument} with a folder that can be written",
        ) from error
    return folder
