"""JSON lines chained by hashes: each carries its number, and a hash of itself and of the hash of the line before.

That shows a line that was changed, removed, repeated or moved, by accident or in an editor. It does not stop somebody
who computes all later hashes anew, and lines missing at the end show only against a hash that was kept elsewhere (in
a checkpoint).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from memguard.errors import PrivacyError

__all__ = ["GENESIS", "TORN", "ChainedLines", "Entry", "broken", "chained"]

Entry = dict[str, Any]

GENESIS = "0" * 32  # stands for the hash of the line before the first
TORN = "torn"
_LINE = re.compile(rb'(\{"kind":".*),"chain":"([0-9a-f]{32})"\}', re.DOTALL)


def chained(entry: Mapping[str, Any], number: int, chain: str) -> tuple[bytes, str]:
    """An entry as a line, and the hash of that line.

    Args:
        entry: ``"kind"`` first.
        number: Of the line, from 0.
        chain: Hash of the line before.

    Raises:
        PrivacyError: If a fact is not JSON.

    Example:
        >>> line, chain = chained({"kind": "step", "step": 7}, 3, GENESIS)
        >>> line[:33], len(chain)
        (b'{"kind":"step","step":7,"line":3,', 32)
    """
    body = _encode({**entry, "line": number})
    chain = _link(chain, body)
    return body + b',"chain":"' + chain.encode() + b'"}\n', chain


def _link(chain: str, body: bytes) -> str:
    return hashlib.blake2b(chain.encode() + body, digest_size=16).hexdigest()


def _body_of(line: bytes) -> bytes:
    """What the hash of a line is over: the line without it."""
    return line[: -len(b',"chain":""}') - len(GENESIS)]


def _parse(line: bytes) -> Entry | None:
    if _LINE.fullmatch(line) is None:
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("line"), int) else None


class ChainedLines:
    """Reads the entries of a journal, in order, up to its end or to the first place where the chain does not hold.

    Args:
        file: Open for reading, in bytes.

    Attributes:
        problem: After reading: what is wrong with the chain, empty if nothing is.
        torn: After reading: lines at the end that a kill left unfinished.
        unended: After reading: the last entry is whole and only its end of line is missing.
        n_lines: Lines read, torn ones included.
        chain: Hash of the last line.

    Example:
        >>> import io
        >>> lines = ChainedLines(io.BytesIO(b'{"kind":"st'))
        >>> list(lines), lines.torn, lines.problem
        ([], [b'{"kind":"st'], '')
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.problem = ""
        self.torn: list[bytes] = []
        self.unended = False
        self.n_lines, self.chain = 0, GENESIS

    def __iter__(self) -> Iterator[Entry]:
        for number, raw in enumerate(self._file):
            line = raw.removesuffix(b"\n")
            entry = _parse(line)
            if entry is None:
                self.torn.append(line)
                self.n_lines, self.chain = number + 1, _link(self.chain, line)
                continue
            self.problem = self._what_is_wrong(entry, line, number)
            if self.problem:
                return
            self.torn = []
            self.n_lines, self.chain = number + 1, str(entry["chain"])
            self.unended = not raw.endswith(b"\n")
            yield entry

    def _what_is_wrong(self, entry: Entry, line: bytes, number: int) -> str:
        claimed, here = entry["line"], number + 1
        if claimed > number:
            later = {
                e["line"] for e in map(_parse, (raw.rstrip(b"\n") for raw in self._file)) if e is not None
            }
            missing = [n for n in range(number, claimed) if n not in later]
            if missing:
                return f"line {missing[0] + 1} was removed, and {len(missing) - 1} more before line {claimed + 1}"
            return f"lines were reordered: what stood on line {claimed + 1} now stands on line {here}"
        if claimed < number:
            return f"a line was repeated or moved: what belongs on line {claimed + 1} stands on line {here}"
        if self.torn and not (entry["kind"] == TORN and entry.get("lines") == len(self.torn)):
            return f"line {here - len(self.torn)} was changed: it is no entry, and no kill accounts for it"
        if entry["chain"] != _link(self.chain, _body_of(line)):
            return f"line {here} or the one before it was changed: its hash does not fit"
        return ""


def broken(path: Path, problem: str) -> PrivacyError:
    """The error for a chain that does not hold."""
    return PrivacyError(
        f"the ledger {path.name} is broken: {problem}",
        "how much was spent can no longer be told from it, and no epsilon follows from what is left",
        f"put {path.name} back as the run wrote it; without it there is no guarantee for this lineage",
    )


def _encode(entry: Mapping[str, Any]) -> bytes:
    """An entry without its closing brace."""
    try:
        text = json.dumps(entry, allow_nan=False, separators=(",", ":"), default=_number)
    except (TypeError, ValueError) as error:
        raise PrivacyError(
            f"a fact for the ledger that is not JSON ({error})",
            "it could not be read again",
            "pass finite numbers, words, and lists or mappings of them",
        ) from None
    return text[:-1].encode()


def _number(value: Any) -> Any:
    """Numbers of numpy and torch."""
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 1) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is neither a number nor a word")
