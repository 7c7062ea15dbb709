"""Files that nobody but their owner can read, from the first byte, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["fresh_beside", "make_folder", "sync_folder", "write_whole"]

# Never follow a link that someone else put there, never share an inode that someone else can already read.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def write_whole(path: Path, body: bytes) -> None:
    """Put the bytes there in one step, with mode 0600.

    They go to a new file beside it that has the mode before it holds anything: no other user can open it at any
    time, no reader sees half of it, and an existing file with a wider mode is replaced.

    Raises:
        OSError: The file that was there before is then untouched, and no partial file is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(path := Path(folder) / "report.json", b"{}")
        ...     path.read_bytes(), oct(path.stat().st_mode & 0o777)
        (b'{}', '0o600')
    """
    partial = fresh_beside(path, body)
    try:
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def fresh_beside(path: Path, body: bytes) -> Path:
    """A new owner-only file beside ``path`` that holds ``body`` and is on the disk.

    Raises:
        OSError: No partial file is left then.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    handle = os.open(partial, _CREATE, 0o600)
    try:
        try:
            with contextlib.suppress(AttributeError):  # not on Windows
                os.fchmod(handle, 0o600)  # a default access list on the folder may have widened it
            left = memoryview(body)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)  # may fail too, where a quota is only checked at the end
    except BaseException:
        _remove(partial)
        raise
    return partial


def make_folder(folder: Path) -> None:
    """With mode 0700 where it is missing, as are those above it; one that is there is left as it is."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Names of new files are kept by the folder, and reach the disk with it."""
    with contextlib.suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
