"""Files that hold rows per patient: owner-only from the first byte, ids hashed with a local key."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import warnings
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from memguard.errors import MemguardError, MemguardWarning
from memguard.owner_only import fresh_beside, make_folder, write_whole

__all__ = ["KEY_FILE", "HashedIds", "write_private"]

KEY_FILE = ".memguard-key"
_KEY_BYTES = 32
_DIGEST_BYTES = 8


class HashedIds:
    """Patient ids as keyed BLAKE2b hashes: the same id gives the same 16 hex digits under the same key.

    The key is what keeps a short id (a medical record number has few digits) from being found by trying all
    of them. Whoever holds the key and a list of ids can undo the hash: this is pseudonymization, no more.

    Args:
        key: 16 to 64 secret bytes; drawn at random when left out, and then lost with this object.

    Attributes:
        source: Where the key came from, for the report.

    Raises:
        MemguardError: The key is too short or too long.

    Example:
        >>> hashed = HashedIds(b"0123456789abcdef")
        >>> hashed([17, "17", 18])
        ['aa860af88807b088', 'aa860af88807b088', '4c5f9ec9028d3b9e']
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and not 16 <= len(key) <= 64:
            raise MemguardError(
                f"a hash key of {len(key)} bytes",
                "ids hashed with a short key can be found by trying them all, and BLAKE2b takes at most 64",
                "pass key= with 16 to 64 random bytes, e.g. secrets.token_bytes(32)",
            )
        self._key = secrets.token_bytes(_KEY_BYTES) if key is None else bytes(key)
        self.source = "random, kept in memory only" if key is None else "given"

    @classmethod
    def in_folder(cls, folder: str | Path) -> HashedIds:
        """The key of an output folder, made on first use and readable by its owner alone.

        Runs that write to the same folder give the same patient the same hash; other folders do not. When
        the key cannot be kept (read-only folder, full disk) or read, a random one is used for this run only
        and a `MemguardWarning` says so.

        Args:
            folder: The output folder; created when missing.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     HashedIds.in_folder(folder)(["A"]) == HashedIds.in_folder(folder)(["A"])
            True
        """
        path = Path(folder) / KEY_FILE
        try:
            make_folder(path.parent)
            hashed = cls(_read_key(path) if path.exists() else _create_key(path))
        except (OSError, MemguardError) as error:
            _warn(
                f"the key file {path} cannot be used ({_reason(error)})",
                "hashed patient ids of this run will not match those of another run",
                "make the folder writable, choose another one (dirpath= of the monitor), or delete a damaged key file",
            )
            return cls()
        hashed.source = f"{KEY_FILE} in the output folder"
        return hashed

    def __call__(self, ids: Iterable[object]) -> list[str]:
        """Hash ids; an integer and its decimal text are the same id.

        Args:
            ids: (P,) patient ids: integers (numpy ones too), strings or bytes.

        Raises:
            MemguardError: An id is ``None``.
        """
        keyed = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=self._key)
        return [_digest(keyed.copy(), one) for one in ids]

    def __repr__(self) -> str:
        """Without the key."""
        return f"HashedIds(source={self.source!r})"


def write_private(path: str | Path, content: bytes | str | pl.DataFrame) -> Path | None:
    """Write a file that only its owner can read, whole or not at all.

    The bytes go to a new file beside it that has mode 0600 before it holds anything, and take the name at
    the end in one step: no other user can open it at any time, no reader sees half of it, and an existing
    file with a wider mode is replaced. Nothing is raised when the disk does not play along: the training
    that called this must not be lost.

    Args:
        path: Where; missing folders are made with mode 0700.
        content: Bytes, text (UTF-8), or a frame (written as Parquet).

    Returns:
        The path, or ``None`` with a `MemguardWarning` when it could not be written; the file that was there
        before is then untouched and no partial file is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_private(f"{folder}/report.json", "{}")
        ...     oct(path.stat().st_mode & 0o777)
        '0o600'
    """
    path = Path(path)
    body = _parquet(content) if isinstance(content, pl.DataFrame) else content
    body = body.encode() if isinstance(body, str) else body
    try:
        make_folder(path.parent)
        write_whole(path, body)
    except OSError as error:
        _warn(
            f"{path} was not written ({_reason(error)})",
            "training goes on, and this result is only in memory",
            "free space, or choose another output folder (dirpath= of the monitor)",
        )
        return None
    return path


def _create_key(path: Path) -> bytes:
    """Make the key file; when another process was faster, its key counts."""
    partial = fresh_beside(path, secrets.token_bytes(_KEY_BYTES).hex().encode())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)  # unlike a rename, this fails where a key already stands
    except OSError:
        if not path.exists():  # a file system without hard links
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise MemguardError(f"it does not hold {_KEY_BYTES} bytes in hexadecimal")
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
        _warn(
            f"the key file {path} could be read by other users, and was made owner-only",
            "whoever copied it can turn hashed ids back into patient ids",
            "delete it and run again to get new hashes",
        )
    return key


def _digest(hasher: hashlib.blake2b, one: object) -> str:
    if one is None:
        raise MemguardError(
            "a patient id that is None",
            "all patients without an id would get one hash and be counted as one",
            "give every record a patient id, or pass record_to_patient=None to count records",
        )
    hasher.update(one if isinstance(one, bytes) else str(one).encode())
    return hasher.hexdigest()


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _warn(seen: str, why: str, fix: str) -> None:
    warnings.warn(MemguardWarning(seen, why, fix), stacklevel=3)
