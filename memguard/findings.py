"""Tables, curves and gaps: what a probe hands on and a report keeps, in one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memguard.attacks.estimate import Estimate
from memguard.errors import DataError

__all__ = ["Cell", "Gap", "Grid", "Lines"]

Cell = str | int | float | bool | Estimate | None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Something that was not tested: said, never filled.

    Attributes:
        what: Of the model, or of a probe.
        why: In words.
        fix: What would make it possible; empty where nothing known would.
        probe: Which probe says so; empty for the audit as a whole.
    """

    what: str
    why: str
    fix: str = ""
    probe: str = ""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table. A number without an interval in it is a count or a setting.

    Attributes:
        title: One line.
        columns: Heads.
        rows: Of cells, one for each head.
        note: What the reader must know; empty for nothing.

    Raises:
        DataError: If a row has not one cell for each head.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise DataError(
                    f"a row of {len(row)} cells under {len(self.columns)} heads in {self.title!r}",
                    "numbers would stand under the wrong head",
                    "give one cell for each column, None where nothing is known",
                )


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines of one figure.

    Attributes:
        title: One line.
        x: Name of the horizontal axis, with its unit.
        y: Of the vertical one.
        lines: Name -> points ``(x, y)``.
        log: Whether both axes are logarithmic.
        bands: Name -> points ``(x, low, high)`` of intervals.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = False
    bands: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
