"""What a command is: a name, a help text, arguments, and what runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["FAILED", "PASSED", "UNUSABLE", "Command", "plain_help"]

PASSED, FAILED, UNUSABLE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Command:
    """A word after ``memguard``.

    Attributes:
        summary: What stands beside it in ``memguard --help``.
        text: What its own ``--help`` says above the arguments; lines stay as they are.
        arguments: Adds its arguments to a parser.
        run: Does it, and returns the exit code: `PASSED` or `FAILED`. What cannot be used is raised as a
            ``MemguardError``.
    """

    summary: str
    text: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]

    def parser(self) -> ArgumentParser:
        """A parser of its arguments."""
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(description=self.text, formatter_class=plain_help())
        self.arguments(parser)
        return parser


def plain_help() -> Any:
    """A formatter that leaves the lines of a description as they are, and speaks to people."""
    from jsonargparse import DefaultHelpFormatter

    class Plain(DefaultHelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return "".join(f"{indent}{line}\n" for line in text.splitlines())

        def _get_help_string(self, action: Any) -> str:
            """What stands there when nothing is given, without the names of Python's types."""
            shown = action.default not in (None, False, [], {}, "==SUPPRESS==")
            return f"{action.help or ''}{' (default: %(default)s)' if shown else ''}"

    return Plain
