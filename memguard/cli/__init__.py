"""The command ``memguard``: audit, compare, check, report, demo.

Exit codes: 0, everything ran and every gate holds; 1, a gate fails (``audit``, ``report``) or the run cannot be
watched (``check``); 2, the command line, a file, the data or an installation cannot be used.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memguard.cli.command import UNUSABLE
from memguard.cli.commands import COMMANDS, parser_of
from memguard.errors import MemguardError, MemguardWarning

__all__ = ["entry", "main"]

_as_python_does = warnings.formatwarning


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after ``memguard``; those of the process when not given.

    Returns:
        The exit code.
    """
    try:
        parser = parser_of(COMMANDS)
    except ImportError as error:
        print(f"memguard: {error}; pip install 'memguard-ehr[audit,recipes]'", file=sys.stderr)
        return UNUSABLE
    args = parser.parse_args(None if argv is None else list(argv))
    here = str(Path.cwd())
    if here not in sys.path:  # as python -m does: a user's own package lies where he stands
        sys.path.insert(0, here)
    warnings.formatwarning = _said
    try:
        return COMMANDS[args.subcommand].run(args[args.subcommand])
    except MemguardError as error:
        print(f"memguard {args.subcommand}: {error}", file=sys.stderr)
        return UNUSABLE
    finally:
        warnings.formatwarning = _as_python_does


def _said(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning as a user of the command reads it: without the line of our code that says it.

    Example:
        >>> print(_said("held-out patients: 12", MemguardWarning, "sides.py", 77))
        memguard: held-out patients: 12
    """
    if issubclass(category, MemguardWarning):
        return f"memguard: {message}\n"
    return _as_python_does(message, category, *where, **more)


def entry() -> None:
    """What the command ``memguard`` calls."""
    sys.exit(main())
