"""What a comparison of ways to train found, as frozen dataclasses: the truth behind its JSON, table and page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memguard.attacks.estimate import Estimate
from memguard.errors import DataError
from memguard.report.audit.codec import decode, encode

if TYPE_CHECKING:
    import polars as pl

__all__ = ["SCHEMA", "ArmSummary", "Comparison", "Group", "Level", "Point", "Row", "Untouched"]

SCHEMA = "memguard.comparison/1"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of one arm, and what it is beside the baseline.

    Attributes:
        arm: Name of the arm.
        stage: ``"final"``, or the name of a level of matched utility (`Level`).
        epoch: Epochs of training at that stage, mean over the models.
        group: ``"all"``, ``"hardest"``, or the name of a stratum.
        measure: ``"tpr"`` (share of the group's members found, strongest attack over all signals),
            ``"tpr_as_deployed"`` (the same by attacks on the deployed model's own losses alone), ``"auc"``,
            ``"held_out_loss"``, ``"unseen_loss"`` (patients of the group whom the model never saw), or a metric
            that the user's own validation step logged.
        attack: The strongest attack of this number; empty for utility.
        value: The number. ``n`` counts patients, except for metrics, where it counts models.
        minus_baseline: Paired difference arm minus baseline over the seeds, at the same stage or level; ``None``
            for the baseline itself, and where it cannot be formed.
        adjusted: The same difference with an interval that holds for all arms together (Bonferroni); only where
            a conclusion is drawn from it.
    """

    arm: str
    stage: str
    epoch: float
    group: str
    measure: str
    attack: str
    value: Estimate
    minus_baseline: Estimate | None = None
    adjusted: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One stage of one arm on the front of utility and leakage; means without intervals.

    Attributes:
        arm: Name of the arm.
        stage: Counted from 0; the last one is what would be deployed.
        epoch: Mean over the models.
        group: As in `Row`.
        utility: Mean loss of the judged held-out patients: of all for ``"all"`` and ``"hardest"``, of the stratum
            otherwise (NaN where it has too few).
        tpr: Strongest attack.
    """

    arm: str
    stage: int
    epoch: float
    group: str
    utility: float
    tpr: float


@dataclass(frozen=True, kw_only=True)
class Untouched:
    """What became of the patients whom a mitigation never touched, beside the same of training with new seeds.

    A patient counts for the models of a seed if the mitigation left it alone in the runs of all *other* seeds.

    Attributes:
        arm: Name of the arm.
        patients: Who counted for at least half of the seeds.
        attack: The strongest attack of the arm on them.
        tpr: Share of them found by it, under the arm.
        baseline_tpr: Under the baseline, by its own strongest attack.
        difference: Arm minus baseline, paired.
        newly_exposed: Patients found in fewer than a quarter of the baseline's runs with them, and in more than
            half of the arm's.
        newly_hidden: The reverse.
        control_difference: Baseline trained again with other seeds, minus baseline, on the same patients; ``None``
            without a control.
        control_newly_exposed: The same counts for the control: what new seeds alone do.
        control_newly_hidden: See there.
    """

    arm: str
    patients: int
    attack: str
    tpr: Estimate
    baseline_tpr: Estimate
    difference: Estimate
    newly_exposed: int
    newly_hidden: int
    control_difference: Estimate | None = None
    control_newly_exposed: int | None = None
    control_newly_hidden: int | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """A bar of utility at which arms are compared.

    Attributes:
        name: As in `Row.stage`.
        limit: Largest mean loss on the choosing half of the held-out patients.
        words: What the bar is.
        reached: Arm -> epochs of training (mean over the models) at its earliest stage within the limit; an arm
            that never came within it is not in here.
    """

    name: str
    limit: float
    words: str
    reached: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Patients about whom numbers are given.

    Attributes:
        name: As in `Row.group`.
        patients: In the pool from which halves are trained on.
        held_out: Of the judging half of the held-out patients.
        words: Who they are; empty where the name says it.
    """

    name: str
    patients: int
    held_out: int
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One way to train.

    Attributes:
        name: As in `Row.arm`.
        settings: What makes it different, name -> primitive.
        epsilon: Largest privacy loss of its models that is guaranteed; ``None`` without a guarantee.
        seconds: Training time of one model, mean.
        touched_share: Share of the patients in training that its mitigation ever touched, mean over the models;
            ``None`` where it does not say.
        guarantee: What is guaranteed, in words.
        signals: Losses that the attacks read.
        same: Other ways to ask its models, which gave the very losses of the first.
        notes: What a reader must know of its runs.
    """

    name: str
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    epsilon: float | None = None
    seconds: float | None = None
    touched_share: float | None = None
    guarantee: str = ""
    signals: Sequence[str] = ()
    same: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Arms of training against a baseline: leakage, utility, their differences, and what may be concluded.

    Two comparisons are equal where their JSON is.

    Attributes:
        version: Version of memguard.
        baseline: Name of the arm that the others are compared with.
        control: Name of the baseline trained again with other seeds; ``None`` where there is none.
        seeds: Divisions of the patients, each with one model a half.
        models: Models an arm.
        patients: In the pool.
        held_out: Held-out patients; half of them choose, the other half judge.
        unit: Of losses, ``"nats/token"`` or ``"nats/record"``.
        fpr: Share of the non-members that an attack may call members.
        confidence: Of every interval, unless it says otherwise itself.
        hardest_share: Of the patients; see the words of the group ``"hardest"``.
        tolerance: Relative loss of utility that counts as none.
        attacks: Names of the attacks of which the strongest counts.
        groups: Patients about whom numbers are given, ``"all"`` and ``"hardest"`` first.
        arms: The baseline first.
        rows: The numbers.
        points: The front of utility and leakage.
        levels: Bars of matched utility.
        untouched: One for each arm with a mitigation that says whom it touched.
        may: Sentences that may be concluded.
        may_not: Sentences that may not, and why.
        notes: Caveats and what was left out, most important first.
        created: ISO 8601 time in UTC; empty where nobody said.

    Example:
        >>> tpr = Estimate(value=.3, low=.2, high=.4, n=100, method="jackknife over seeds")
        >>> found = Comparison(version="0.1.0", baseline="plain", seeds=8, models=16, patients=2000, held_out=600,
        ...     arms=[ArmSummary(name="plain")], rows=[Row(arm="plain", stage="final", epoch=5.0, group="hardest",
        ...     measure="tpr", attack="bavaria, as deployed", value=tpr)])
        >>> Comparison.from_json(found.to_json()) == found, found.row("plain", "hardest", "tpr").value.low
        (True, 0.2)
        >>> found.frame().select("arm", "measure", "value", "low").row(0)
        ('plain', 'tpr', 0.3, 0.2)
    """

    version: str
    baseline: str
    seeds: int
    models: int
    patients: int
    held_out: int
    arms: Sequence[ArmSummary]
    control: str | None = None
    unit: Literal["nats/token", "nats/record"] = "nats/token"
    fpr: float = 0.01
    confidence: float = 0.95
    hardest_share: float = 0.05
    tolerance: float = 0.01
    attacks: Sequence[str] = ()
    groups: Sequence[Group] = ()
    rows: Sequence[Row] = ()
    points: Sequence[Point] = ()
    levels: Sequence[Level] = ()
    untouched: Sequence[Untouched] = ()
    may: Sequence[str] = ()
    may_not: Sequence[str] = ()
    notes: Sequence[str] = ()
    created: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparison) and encode(self) == encode(other)

    def __hash__(self) -> int:
        return hash((self.version, self.created, self.baseline, len(self.rows)))

    # -- what is in it -------------------------------------------------------------------------------------

    def row(self, arm: str, group: str, measure: str, stage: str = "final") -> Row:
        """The one row of this arm, group, measure and stage.

        Raises:
            DataError: If there is none: an arm that did not reach the level, a stratum that is too small, or a
                name that is not in the comparison.
        """
        found = self.find(arm, group, measure, stage)
        if found is None:
            raise DataError(
                f"no row for arm {arm!r}, group {group!r}, measure {measure!r}, stage {stage!r}",
                "the arm did not reach this level, the group is too small, or a name is none of the comparison",
                "use Comparison.find, which gives None, or look at Comparison.frame()",
            )
        return found

    def find(self, arm: str, group: str, measure: str, stage: str = "final") -> Row | None:
        """As `row`, with ``None`` where there is none."""
        wanted = (arm, group, measure, stage)
        rows = (one for one in self.rows if (one.arm, one.group, one.measure, one.stage) == wanted)
        return next(rows, None)

    def arm(self, name: str) -> ArmSummary:
        """The arm of this name.

        Raises:
            DataError: If there is none.
        """
        for one in self.arms:
            if one.name == name:
                return one
        raise DataError(f"no arm {name!r}", "there is nothing to show", f"use one of {self.names()}")

    def names(self) -> list[str]:
        """Names of the arms, in order."""
        return [one.name for one in self.arms]

    # -- its forms -----------------------------------------------------------------------------------------

    def frame(self) -> pl.DataFrame:
        """One line for each row: its names, value and interval, difference and interval."""
        import polars as pl

        names = ("arm", "stage", "epoch", "group", "measure", "attack")
        columns: dict[str, list[str | float | int | None]] = {
            name: [getattr(row, name) for row in self.rows] for name in names
        }
        for column, kept in (("", "value"), ("difference", "minus_baseline"), ("adjusted", "adjusted")):
            for part in ("value", "low", "high"):
                name = "_".join(one for one in (column, part) if one and (not column or one != "value"))
                columns[name] = [
                    None if (one := getattr(row, kept)) is None else float(getattr(one, part))
                    for row in self.rows
                ]
        columns["n"] = [row.value.n for row in self.rows]
        columns["method"] = [row.value.method for row in self.rows]
        texts = {"arm", "stage", "group", "measure", "attack", "method"}
        schema = {
            name: pl.String if name in texts else pl.Int64 if name == "n" else pl.Float64 for name in columns
        }
        return pl.DataFrame(columns, schema=schema)

    def to_json(self) -> str:
        """The comparison as JSON text; numbers that are not finite become ``null``."""
        return json.dumps({"schema": SCHEMA, **encode(self)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read what `to_json` wrote. Keys that this version does not know are left out.

        Raises:
            DataError: The text is no JSON, has another schema, or a field of the wrong form.
        """
        try:
            body = json.loads(text)
        except ValueError as error:
            raise DataError(
                f"text that is no JSON ({error})", "the file may be cut off", "write it again"
            ) from error
        seen = body.get("schema") if isinstance(body, dict) else type(body).__name__
        if seen != SCHEMA:
            raise DataError(
                f"a comparison with schema {seen!r}, and this version reads {SCHEMA!r}",
                "fields could be taken for something else",
                "read it with the memguard version named in the file",
            )
        return decode(cls, body)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write every form of it; see `memguard.report.comparison.files.save`."""
        from memguard.report.comparison.files import save

        return save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Read what `save` wrote; see `memguard.report.comparison.files.load`."""
        from memguard.report.comparison.files import load

        return load(folder)

    def __str__(self) -> str:
        from memguard.report.comparison.text import summary

        return summary(self)
