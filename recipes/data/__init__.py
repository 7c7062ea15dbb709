"""Readers of the data sets that the recipes train on.

All of them are real patients whose records may be passed on, and travel inside Python wheels.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from memguard.errors import MemguardError

__all__ = ["wheel_path"]


def wheel_path(package: str, path: str, *, install: str) -> Path:
    """Find a file or folder that an installed package carries, without importing the package.

    Args:
        package: Name of the distribution, as pip knows it.
        path: Of the file, from the folder that packages are installed in.
        install: The command that installs it, for the message.

    Returns:
        Its place on disk.

    Raises:
        MemguardError: The package is not installed, or does not carry the file.

    Example:
        >>> wheel_path("numpy", "numpy/__init__.py", install="pip install numpy").name
        '__init__.py'
    """
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        raise MemguardError(
            f"the package {package} is not installed", "its data cannot be read", install
        ) from None
    if not found.exists():
        raise MemguardError(
            f"the installed {package} does not carry {path}", "its data cannot be read", install
        )
    return found
