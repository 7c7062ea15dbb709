"""What a probe of an audit found: numbers with intervals, tables, curves, evidence record by record, and gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.epsilon import EpsilonBound
from memguard.attacks.estimate import Estimate
from memguard.findings import Cell
from memguard.findings import Gap as NotTested
from memguard.findings import Grid as Table
from memguard.findings import Lines as Curve

__all__ = ["DELTA", "Cell", "Curve", "Evidence", "NotTested", "ProbeResult", "Table"]

DELTA = 1e-5
"""Of a lower bound of epsilon, where no promise names another."""


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
