"""From what a probe hands over to a section of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memguard.attacks.epsilon import EpsilonBound
from memguard.attacks.estimate import Estimate
from memguard.findings import Cell, Grid, Lines
from memguard.report.audit.axes import two_axes
from memguard.report.audit.likes import EvidenceLike, ProbeLike, SubjectLike
from memguard.report.audit.nulls import headline_of, null_of
from memguard.report.audit.parts import Number, Section, TwoAxes
from memguard.report.audit.promises import EpsilonShown
from memguard.report.data import plain
from memguard.report.table import thin, thin_roc

__all__ = ["epsilon_shown", "flagged_of", "from_probe"]

_MOST_POINTS = 160


def from_probe(
    result: ProbeLike,
    subject: SubjectLike | None = None,
    *,
    headline: str | None = None,
) -> Section:
    """The section of one probe: aggregates only, no value of a single record.

    The null of a number is the one that its name says (`memguard.report.audit.nulls.null_of`), the seed of its draws
    the setting ``seed``. Patients are counted on two axes for each pair of evidences whose names differ in
    ``memorization`` and ``inference`` alone.

    Args:
        result: What the probe found.
        subject: Whom it was asked about; needed for counts of patients on two axes.
        headline: The number that decides in the verdict; `memguard.report.audit.nulls.headline_of` when left out.
            It must be chosen before the numbers are seen.

    Example:
        >>> from types import SimpleNamespace
        >>> auc = Estimate(value=.61, low=.58, high=.64, n=900, method="clustered DeLong")
        >>> found = SimpleNamespace(probe="membership", question="Who?", answer="", numbers={"lira.auc": auc},
        ...     evidence={}, tables={}, curves={}, flagged=np.zeros(0, int), settings={"seed": 3}, notes=(),
        ...     not_tested=(), seconds=1.5)
        >>> section = from_probe(found)
        >>> section.headline, section.deciding.null, section.deciding.seed, section.n_flagged
        ('lira.auc', 0.5, 3, None)
    """
    drawn = result.settings.get("seed")
    kept = int(drawn) if isinstance(drawn, (int, np.integer)) and not isinstance(drawn, bool) else None
    numbers = {
        name: Number(estimate=_estimate(one), null=null_of(name), seed=kept)
        for name, one in result.numbers.items()
    }
    n_flagged, n_ranked = flagged_of(result, subject)
    return Section(
        probe=result.probe,
        question=result.question,
        answer=result.answer,
        headline=headline_of(numbers) if headline is None else headline,
        numbers=numbers,
        tables={name: _grid(one) for name, one in result.tables.items() if one.rows},
        curves={name: _lines(one) for name, one in result.curves.items()},
        axes={} if subject is None else _axes(result, subject),
        n_flagged=n_flagged,
        n_ranked=n_ranked,
        settings={name: _primitive(one) for name, one in result.settings.items()},
        notes=tuple(result.notes),
        not_tested=tuple(replace(gap, probe=result.probe) for gap in result.not_tested),
        seconds=float(result.seconds),
    )


def epsilon_shown(bound: EpsilonBound, *, probe: str, unit: str = "patient") -> EpsilonShown:
    """A bound of `memguard.attacks` (`EpsilonBound`) as a part of the report.

    Args:
        bound: The bound.
        probe: Which probe made it.
        unit: What one coin decided on: ``"patient"`` or ``"record"``.

    Example:
        >>> from memguard.attacks.epsilon import EpsilonBound
        >>> bound = EpsilonBound(epsilon=1.2, delta=1e-5, confidence=.95, n=100, guesses=20, correct=19, largest=3.5,
        ...                      method="one run", assumption="none", threshold="explicit")
        >>> epsilon_shown(bound, probe="canaries").epsilon
        1.2
    """
    return EpsilonShown(
        probe=probe,
        unit=unit,
        epsilon=float(bound.epsilon),
        delta=float(bound.delta),
        confidence=float(bound.confidence),
        n=int(bound.n),
        guesses=int(bound.guesses),
        correct=int(bound.correct),
        largest=float(bound.largest),
        method=str(bound.method),
        assumption=str(bound.assumption),
        threshold=str(bound.threshold),
    )


def flagged_of(result: ProbeLike, subject: SubjectLike | None) -> tuple[int | None, int | None]:
    """How many training patients are flagged among how many; ``None`` where nobody could be.

    Nobody could be where no training patient has a p-value, or where there are so few never-trained patients that even
    the smallest possible p-value lies above the rate: no flags would say nothing then.
    """
    tested = [one for one in result.evidence.values() if one.p_value is not None]
    codes = np.unique(np.asarray(result.flagged))
    if not tested and not codes.size:
        return None, None
    if subject is None:
        return int(codes.size), None
    members = np.unique(subject.patient[: subject.n_members])
    rows = np.concatenate([one.row[np.isfinite(one.p_value)] for one in tested] or [np.zeros(0, np.int64)])
    ranked = np.intersect1d(subject.patient[rows.astype(np.int64)], members).size
    if not codes.size and not (ranked and any(_could_flag(one, result, subject) for one in tested)):
        return None, None
    return int(np.intersect1d(codes, members).size), int(ranked) or None


def _could_flag(evidence: EvidenceLike, result: ProbeLike, subject: SubjectLike) -> bool:
    """Whether a p-value among so few never-trained patients can be as small as the rate: none is below 1/(M + 1)."""
    rate = result.settings.get("flag_rate", result.settings.get("rate"))
    if not isinstance(rate, float):
        return True
    rows = np.asarray(evidence.row)
    strangers = np.unique(subject.patient[rows[rows >= subject.n_members]]).size
    return 1.0 / (strangers + 1) <= rate


def _axes(result: ProbeLike, subject: SubjectLike) -> dict[str, TwoAxes]:
    found = {}
    for name, up in result.evidence.items():
        across = result.evidence.get(name.replace("memorization", "inference"))
        if "memorization" in name and across is not None:
            made = two_axes(up, across, subject)
            if made is not None:
                found[name] = made
    return found


def _grid(table: Grid) -> Grid:
    rows = tuple(tuple(_cell(cell) for cell in row) for row in table.rows)
    return replace(table, columns=tuple(map(str, table.columns)), rows=rows)


def _cell(value: Any) -> Cell:
    return _estimate(value) if isinstance(value, Estimate) else _primitive(value)


def _estimate(one: Estimate) -> Estimate:
    return Estimate(**one.as_dict())  # type: ignore[arg-type]  # the same fields, as plain numbers


def _primitive(value: Any) -> str | int | float | bool | None:
    value = plain(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _lines(curve: Lines) -> Lines:
    lines = {name: _points(points, log=curve.log) for name, points in curve.lines.items()}
    bands = {
        str(name): tuple(
            (float(x), float(low), float(high)) for x, low, high in thin(list(points), _MOST_POINTS)
        )
        for name, points in curve.bands.items()
    }
    return replace(curve, lines=lines, log=bool(curve.log), bands=bands)


def _points(points: Sequence[tuple[float, float]], *, log: bool) -> tuple[tuple[float, float], ...]:
    """Few enough that no point is one patient's: a ROC curve has a step for each."""
    pairs = [(float(x), float(y)) for x, y in points]
    if log and len(pairs) > _MOST_POINTS:
        return tuple(thin_roc([x for x, _ in pairs], [y for _, y in pairs], most=_MOST_POINTS))
    return tuple(thin(pairs, _MOST_POINTS))
