"""Which commands there are. A new one is a file with a `Command` in it, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memguard.cli.audit import AUDIT
from memguard.cli.check import CHECK
from memguard.cli.command import Command, plain_help
from memguard.cli.compare import COMPARE
from memguard.cli.demo import DEMO
from memguard.cli.report import REPORT

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["COMMANDS", "parser_of"]

# In the order in which `memguard --help` shows them.
COMMANDS: Mapping[str, Command] = {
    "audit": AUDIT,
    "compare": COMPARE,
    "check": CHECK,
    "report": REPORT,
    "demo": DEMO,
}


def parser_of(commands: Mapping[str, Command]) -> ArgumentParser:
    """The parser of ``memguard``.

    Raises:
        ImportError: If jsonargparse, which comes with the extras, is not installed.
    """
    from jsonargparse import ArgumentParser

    import memguard

    parser = ArgumentParser(
        prog="memguard",
        description="Say which patients a model memorizes, and what that would let somebody learn about them.",
        version=memguard.__version__,
        formatter_class=plain_help(),
    )
    words = parser.add_subcommands(required=True)
    for name, command in commands.items():
        words.add_subcommand(name, command.parser(), help=command.summary)
    return parser
