"""An append-only file of chained lines: on the disk before the call returns, one writer at a time.

What a kill leaves is the beginning of one line. It stays where it is, and the next writer ends it and appends an entry
of the kind ``"torn"``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memguard.errors import MemguardWarning, PrivacyError
from memguard.owner_only import sync_folder
from memguard.privacy.chain import GENESIS, TORN, ChainedLines, Entry, chained

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Journal"]

_OPEN = os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)

_open_here: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """Appends entries to one file that nobody else writes to meanwhile.

    Made by :meth:`create` or :meth:`open`; not to be used from a signal handler.

    Attributes:
        path: The file, mode 0600.
        n_lines: Lines in it.
        chain: Hash of the last one.
        unsure: A write was cut short by an exception: what stands in the file is to be read again.
    """

    def __init__(self, path: Path, handle: int) -> None:
        _lock(handle, path)
        self.path = path
        self._handle = handle
        self._close = weakref.finalize(self, os.close, handle)
        self._one_at_a_time = threading.Lock()
        self._torn: list[bytes] = []
        self._unended = False
        self.n_lines, self.chain, self.unsure = 0, GENESIS, True
        _open_here.add(self)

    @classmethod
    def create(cls, path: Path) -> Journal:
        """Make an empty journal; folders are made with mode 0700.

        Raises:
            PrivacyError: If the file is there already or cannot be made.
        """
        try:
            first = _make_folders(path.parent)
            handle = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
            journal = cls(path, handle)
            with contextlib.suppress(AttributeError):  # not on Windows
                os.fchmod(handle, 0o600)  # a default access list on the folder may have widened it
            for folder in (path.parent, *([first.parent] if first else [])):
                sync_folder(folder)
        except OSError as error:
            raise _unwritable(path, error) from error
        journal.unsure = False
        return journal

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open a journal to go on with it; to be read and adopted, and mended, before anything is appended.

        Raises:
            PrivacyError: If it cannot be opened, or another process writes to it.
        """
        try:
            handle = os.open(path, _OPEN)
        except OSError as error:
            raise _unwritable(path, error) from error
        return cls(path, handle)

    def adopt(self, lines: ChainedLines) -> None:
        """Go on after lines that were read to the end, and have no problem."""
        self.n_lines, self.chain = lines.n_lines, lines.chain
        self._torn, self._unended, self.unsure = lines.torn, lines.unended, False

    def mend(self, **facts: Any) -> Entry | None:
        """End what a kill left unfinished, and write down that it was there.

        Args:
            facts: For the entry; ``lines`` is added.

        Returns:
            The entry; ``None`` where there was nothing to mend.
        """
        if not self._torn and not self._unended:
            return None
        if self._ends_within_a_line():
            self._write(b"\n")
        torn, self._torn, self._unended = self._torn, [], False
        if not torn:
            return None
        return self.append({"kind": TORN, "lines": len(torn), **facts})

    def append(self, entry: Mapping[str, Any]) -> Entry:
        """Write an entry; when this returns, it is on the disk.

        Args:
            entry: ``"kind"`` first, then facts that are JSON.

        Returns:
            The entry as written, with its number and hash.

        Raises:
            PrivacyError: If it cannot be written.
        """
        with self._one_at_a_time:
            if self.unsure or self._torn or self._unended:
                raise PrivacyError(
                    "an append to a ledger whose end is not known",
                    "the next line could not be chained to the last one",
                    "open it again with Ledger.resume",
                )
            line, chain = chained(entry, self.n_lines, self.chain)
            self.unsure = True  # until the last line below: an interrupt may come anywhere
            self._write(line)
            self.n_lines, self.chain = self.n_lines + 1, chain
            self.unsure = False
        return {**entry, "line": self.n_lines - 1, "chain": chain}

    def close(self) -> None:
        """Let others write. Idempotent."""
        self._close()

    @property
    def closed(self) -> bool:
        """Whether it can no longer be written to (closed, or this process is a fork of the writer)."""
        return not self._close.alive

    def _write(self, data: bytes) -> None:
        if self.closed:
            raise PrivacyError(
                f"the ledger {self.path.name} is closed in this process",
                "what happens now would not be written down",
                "open it again with Ledger.resume; a forked process (a worker) cannot write to it",
            )
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._handle, left) :]
            os.fsync(self._handle)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _ends_within_a_line(self) -> bool:
        if os.lseek(self._handle, 0, os.SEEK_END) == 0:
            return False
        os.lseek(self._handle, -1, os.SEEK_END)
        return os.read(self._handle, 1) != b"\n"


def _lock(handle: int, path: Path) -> None:
    if fcntl is None:
        _no_lock(path, "this system has no flock")
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise PrivacyError(
            f"another process, or another callback of this one, writes to {path.name}",
            "two runs would share one count of steps",
            "wait until it ends, close() it, or begin a run with a ledger of its own",
        ) from None
    except OSError as error:
        _no_lock(path, error.strerror or type(error).__name__)


def _no_lock(path: Path, reason: str) -> None:
    warnings.warn(
        MemguardWarning(
            f"{path.name} cannot be locked ({reason})",
            "a second run that resumes the same ledger at the same time would not be noticed",
            "keep ledgers on a file system with flock, or see to it that one run at a time resumes",
        ),
        stacklevel=4,
    )


def _unwritable(path: Path, error: OSError) -> PrivacyError:
    return PrivacyError(
        f"the ledger {path} cannot be written ({error.strerror or type(error).__name__})",
        "a step that is not written down must not be taken",
        "free space, or pass a folder that can be written as folder=",
    )


def _make_folders(folder: Path) -> Path | None:
    """Make a folder, its parents too; returns the topmost one that was made."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
    return missing[-1] if missing else None


def _forget_in_child() -> None:
    """A forked worker would hold the lock of a writer that was killed, so it lets go of its copy at once."""
    for journal in list(_open_here):
        journal.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
