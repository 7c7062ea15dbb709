"""The parts of an audit report: plain frozen dataclasses that become JSON and come back the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memguard.attacks.estimate import Estimate
from memguard.findings import Gap, Grid, Lines

__all__ = [
    "Number",
    "Provenance",
    "References",
    "Section",
    "SideCounts",
    "Stratum",
    "Tail",
    "Threat",
    "TwoAxes",
    "Utility",
    "lies",
]


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number of the report.

    Attributes:
        estimate: Value, interval, n and method.
        null: What it would be if the model knew nothing of its training patients; ``None`` where there is no
            such value, and then it has no part in the verdict.
        seed: Of the draws behind it; ``None`` where nothing was drawn or it is not known.

    Example:
        >>> auc = Estimate(value=.61, low=.58, high=.64, n=900, method="clustered DeLong")
        >>> Number(estimate=auc, null=.5).above, Number(estimate=auc).above
        (True, False)
    """

    estimate: Estimate
    null: float | None = None
    seed: int | None = None

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above the null."""
        return self.null is not None and self.estimate.low > self.null

    @property
    def lies(self) -> str:
        """Where the interval lies: ``"above"`` the null, ``"below"`` it, ``"around"`` it, or nothing."""
        return lies(self.estimate, self.null)


def lies(estimate: Estimate | None, null: float | None) -> str:
    """Where an interval lies, seen from its null.

    Args:
        estimate: With the interval.
        null: See `Number`.

    Example:
        >>> lies(Estimate(value=.61, low=.58, high=.64, n=900, method="x"), .5), lies(None, .5)
        ('above', '')
    """
    if estimate is None or null is None or math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    return "above" if estimate.low > null else "below" if estimate.high < null else "around"


@dataclass(frozen=True, kw_only=True)
class TwoAxes:
    """Patients counted on two axes at once: no point of it is a patient.

    Attributes:
        title: One line.
        x: Name of the horizontal axis, with its unit.
        y: Of the vertical one.
        x_edges: ``(A + 1,)`` borders of the cells, rising; the outer cells hold what lies beyond them.
        y_edges: ``(B + 1,)`` of the vertical axis.
        counts: Side (``"members"``, ``"held-out"``) -> ``(B, A)`` patients, lowest row first; ``None`` for a small
            cell that is suppressed.
        note: What the reader must know.
    """

    title: str
    x: str
    y: str
    x_edges: Sequence[float]
    y_edges: Sequence[float]
    counts: Mapping[str, Sequence[Sequence[int | None]]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one probe found.

    Attributes:
        probe: Its name: the first part of a gate.
        question: What it asks, one sentence.
        answer: What was found, with the numbers in it.
        headline: Name of the number that decides in the verdict; empty where none does.
        numbers: Name -> number.
        tables: Name -> table.
        curves: Name -> figure.
        axes: Name -> counts on two axes.
        n_flagged: Training patients that stand out at the stated error rate; ``None`` where nobody was ranked.
        n_ranked: Training patients among whom they were sought; ``None`` where not known.
        settings: What it was run with.
        notes: Caveats, most important first.
        not_tested: What of it could not be asked.
        seconds: Wall time.
    """

    probe: str
    question: str
    answer: str = ""
    headline: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    tables: Mapping[str, Grid] = field(default_factory=dict)
    curves: Mapping[str, Lines] = field(default_factory=dict)
    axes: Mapping[str, TwoAxes] = field(default_factory=dict)
    n_flagged: int | None = None
    n_ranked: int | None = None
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    notes: Sequence[str] = ()
    not_tested: Sequence[Gap] = ()
    seconds: float = 0.0

    @property
    def deciding(self) -> Number | None:
        """The number that decides in the verdict, or ``None``."""
        return self.numbers.get(self.headline)


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """One number among some of the patients, beside everybody else.

    Attributes:
        probe: Which probe.
        number: Which number or evidence of it.
        stratum: Name of the group; strata may overlap.
        estimate: Within it; ``None`` where it could not be computed.
        n_members: Training patients in it.
        n_held_out: Never-trained patients in it.
        null: As in `Number`.
        note: Why there is no number; empty where there is one.
    """

    probe: str
    number: str
    stratum: str
    estimate: Estimate | None
    n_members: int
    n_held_out: int
    null: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The patients at the upper end of one evidence, beside never-trained ones: averages do not speak of them.

    Attributes:
        probe: Which probe.
        evidence: Which evidence, with its unit.
        n_members: Training patients that have it.
        n_held_out: Never-trained patients that have it.
        n_flagged: Training patients flagged by the probe; ``None`` where nobody was ranked.
        quantiles: Share of patients below -> that quantile of (members, never-trained patients); only where at
            least five patients of both sides lie beyond it.
        beyond: Share of members above what 1 % (or ``fpr``) of the never-trained patients exceed.
        fpr: Share of never-trained patients for ``beyond``: its null.
    """

    probe: str
    evidence: str
    n_members: int
    n_held_out: int
    n_flagged: int | None = None
    quantiles: Mapping[float, tuple[float, float]] = field(default_factory=dict)
    beyond: Estimate | None = None
    fpr: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Threat:
    """An attack that was tried.

    Attributes:
        name: As the field calls it.
        access: What the attacker sees of the model.
        knowledge: What he knows of the patient.
        probes: Which probes stand for him.
    """

    name: str
    access: str
    knowledge: str
    probes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class SideCounts:
    """One side of the comparison.

    Attributes:
        n_patients: Different patients (records where no patients are known).
        n_records: Records.
        records_per_patient: ``"median"``, ``"p99"``, ``"max"`` -> records of a patient.
    """

    n_patients: int
    n_records: int
    records_per_patient: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class References:
    """Models that never saw a given patient, by which the audit tells memorization from difficulty.

    Attributes:
        kind: ``"none"``, ``"counts"``, ``"early-stopped"``, ``"twins"`` or ``"pool"``.
        count: How many.
        comparison: Name -> number that says whether they are like the target (held-out loss, gap).
        alike: Whether they are, at the tolerance in ``notes``; ``None`` where not checked.
        notes: In words.
    """

    kind: str = "none"
    count: int = 0
    comparison: Mapping[str, float] = field(default_factory=dict)
    alike: bool | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Utility:
    """What the model is good for, as the user measured it.

    Attributes:
        name: Of the metric, with its unit.
        value: A number, best with an interval.
        data: On which patients.
        note: What the reader must know.
    """

    name: str
    value: Estimate | float
    data: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What was audited, and how to do it again. An empty field is printed as "not given".

    Attributes:
        model: Name and kind.
        checkpoint: Hash of the weights.
        dataset: Fingerprint of the data.
        versions: Library -> version.
        seeds: Name -> seed.
        commands: Command lines.
        config: Settings of the audit.
        hardware: In words.
        seconds: Wall time of the whole audit; ``None`` if not known.
    """

    model: str = ""
    checkpoint: str = ""
    dataset: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    commands: Sequence[str] = ()
    config: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    hardware: str = ""
    seconds: float | None = None
