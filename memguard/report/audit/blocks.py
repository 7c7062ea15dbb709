"""What a chapter is made of: one list of blocks, from which the page and the Markdown text are both written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Alarm", "Block", "Bullets", "Chapter", "Facts", "Figure", "Heading", "Para", "Pre", "TableBlock"]


@dataclass(frozen=True)
class Para:
    """A paragraph; ``soft`` for what explains."""

    text: str
    soft: bool = False
    kind: str = "para"


@dataclass(frozen=True)
class Alarm:
    """Something that nobody may overlook."""

    text: str
    kind: str = "alarm"


@dataclass(frozen=True)
class Heading:
    """Title of a part of a chapter."""

    text: str
    anchor: str
    kind: str = "heading"


@dataclass(frozen=True)
class Facts:
    """Name, text and whether a person still has to say it."""

    rows: Sequence[tuple[str, str, bool]]
    kind: str = "facts"


@dataclass(frozen=True)
class Bullets:
    """A list; with a title where it has one."""

    items: Sequence[str]
    title: str = ""
    kind: str = "bullets"


@dataclass(frozen=True)
class Pre:
    """Text whose lines are to be kept."""

    text: str
    label: str
    kind: str = "pre"


@dataclass(frozen=True)
class TableBlock:
    """A table of text: the first column names the row.

    Attributes:
        caption: What stands in it.
        head: Of the columns.
        rows: One text for each column.
        note: Below it.
        words: Columns that hold words, aligned left.
        folded: Whether a reader has to open it.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: frozenset[int] = frozenset({0})
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A figure, what it shows in words, and the numbers behind it.

    Attributes:
        name: A word of its own on the page.
        title: Read out first.
        description: For who does not see it.
        draw: Gives it in the colours handed over.
        table: The numbers, for at most so many points a line.
        caption: Below it.
        wide: Whether it needs the whole width.
    """

    name: str
    title: str
    description: str
    draw: Callable[[Mapping[str, str]], Any]
    table: Callable[[int], TableBlock]
    caption: str = ""
    wide: bool = False
    kind: str = "figure"


Block = Para | Alarm | Heading | Facts | Bullets | Pre | TableBlock | Figure


@dataclass(frozen=True)
class Chapter:
    """One of the sixteen."""

    number: int
    title: str
    blocks: Sequence[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return f"chapter-{self.number}"
