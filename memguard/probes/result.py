"""What a probe of an audit found: numbers with intervals, tables, curves, evidence record by record, and gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.epsilon import EpsilonBound
from memguard.attacks.estimate import Estimate

__all__ = ["DELTA", "Curve", "Evidence", "NotTested", "ProbeResult", "Table"]

DELTA = 1e-5
"""Of a lower bound of epsilon, where no promise names another."""

Cell = str | int | float | bool | Estimate | None


@dataclass(frozen=True, kw_only=True)
class NotTested:
    """Something that was not asked, and why: a gap is said, never filled.

    Attributes:
        what: Of the probe.
        why: In words.
        fix: What would make it possible, in words.
    """

    what: str
    why: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows for people: a number without an interval is a count or a setting.

    Attributes:
        title: One line.
        columns: Heads.
        rows: Of cells, one for each head.
        note: What the reader must know; empty for nothing.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Lines of one figure.

    Attributes:
        title: One line.
        x: Name of the horizontal axis, with its unit.
        y: Of the vertical one.
        lines: Name -> points ``[(x, y), ...]``.
        log: Whether both axes are logarithmic.
        bands: Name -> points ``[(x, low, high), ...]`` of intervals.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: bool = False
    bands: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One number for each record asked, of which "members minus never-trained" is the finding.

    Attributes:
        name: Of the number, with its unit.
        row: ``(n,)`` positions in the `Subject`.
        value: ``(n,)``, larger = more of the leak; finite.
        p_value: ``(n,)`` against the never-trained patients, one for each record of a member; NaN for the others
            and where not computed.
    """

    name: str
    row: NDArray[np.int64]
    value: NDArray[np.float64]
    p_value: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """One probe, asked.

    Attributes:
        probe: Its name: the first part of a gate such as ``membership.lira.auc.high > .6``.
        question: What it asks, one sentence that a data steward understands.
        answer: What was found, one or two sentences with the numbers in them.
        numbers: Name -> number. A difference has ``minus_held_out`` in its name.
        evidence: Name -> evidence, for strata and for the file of records.
        tables: Name -> table.
        curves: Name -> figure.
        flagged: Codes of patients that stand out at the error rate that ``notes`` name.
        bounds: Lower bounds of epsilon, where coins decided.
        settings: What it was run with: primitives.
        notes: Caveats, most important first.
        not_tested: What of it could not be asked.
        seconds: Wall time, as whoever asked has measured it.
    """

    probe: str
    question: str
    answer: str = ""
    numbers: Mapping[str, Estimate] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    flagged: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    bounds: Sequence[EpsilonBound] = ()
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    notes: Sequence[str] = ()
    not_tested: Sequence[NotTested] = ()
    seconds: float = 0.0
