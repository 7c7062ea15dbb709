"""The audit report: sixteen sections as one frozen dataclass, the truth behind JSON, page, card and tables."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memguard.attacks.estimate import Estimate
from memguard.errors import DataError
from memguard.findings import Gap
from memguard.report.audit.codec import decode, encode
from memguard.report.audit.parts import (
    Number,
    Provenance,
    References,
    Section,
    SideCounts,
    Stratum,
    Tail,
    Threat,
    Utility,
)
from memguard.report.audit.promises import EpsilonClaim, EpsilonShown, NoClaim
from memguard.report.audit.questions import QUESTIONS, check_answers
from memguard.report.data import WatchReport
from memguard.report.text import MIN_CELL

if TYPE_CHECKING:
    import polars as pl

__all__ = ["SCHEMA", "AuditReport"]

SCHEMA = "memguard.audit/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditReport:
    """What an audit found, what it could not test, and what people still have to say.

    Two reports are equal where their JSON is. Counts are exact here; every view suppresses the small ones.

    Attributes:
        version: Version of memguard.
        created: ISO 8601 time in UTC.
        unit: What is counted. With ``"record"`` nothing here is about patients, and every view says so.
        members: Whom the model was trained on.
        held_out: Whom it never saw.
        canaries: Planted canaries that the model was trained on and that are in no number but their own.
        patients_source: Where the record -> patient map came from.
        flag_rate: Error rate of the flags (false-discovery rate); ``None`` where nobody was ranked.
        provenance: What was audited, and how to do it again.
        references: Models that never saw a given patient.
        threats: Attacks that were tried; see `memguard.report.audit.threats.threats_of`.
        not_tested: What was not, and why; those of the probes are in their sections.
        sections: One for each probe that ran.
        strata: Numbers among some of the patients.
        tail: The upper ends, patient by patient but counted.
        watch: The curves of the training, where a monitor watched it.
        mitigations: What was done about memorization, and at which cost, in words.
        claim: The promise of differential privacy, if there is one.
        no_claim: Why a private training promises nothing for this model; ``None`` where it does, or there was none.
        shown: Lower bounds of epsilon.
        utility: What the model is good for, as the user measured it.
        answers: Key of `memguard.report.audit.questions.QUESTIONS` -> what a person said. Never filled by default.
        notes: Warnings and caveats, most important first.
        hashed_ids: Whether the ids in ``records.parquet`` are keyed hashes.
        min_cell: Counts of people from 1 to this minus one are shown as "<min_cell".

    Raises:
        DataError: If an answer is to no question, two sections have one name, or a claim is there and denied.

    Example:
        >>> side = SideCounts(n_patients=900, n_records=1400)
        >>> auc = Number(estimate=Estimate(value=.61, low=.58, high=.64, n=1800, method="clustered DeLong"), null=.5)
        >>> found = Section(probe="membership", question="Who was trained on?", numbers={"auc": auc}, headline="auc")
        >>> report = AuditReport(version="0.1.0", created="2026-01-31T09:00:00Z", members=side, held_out=side,
        ...                      sections=[found])
        >>> AuditReport.from_json(report.to_json()) == report, report.numbers()["membership.auc"].estimate.low
        (True, 0.58)
    """

    version: str
    created: str
    members: SideCounts
    held_out: SideCounts
    canaries: int = 0
    unit: Literal["patient", "record"] = "patient"
    patients_source: str = ""
    flag_rate: float | None = None
    provenance: Provenance = field(default_factory=Provenance)
    references: References = field(default_factory=References)
    threats: Sequence[Threat] = ()
    not_tested: Sequence[Gap] = ()
    sections: Sequence[Section] = ()
    strata: Sequence[Stratum] = ()
    tail: Sequence[Tail] = ()
    watch: WatchReport | None = None
    mitigations: Sequence[str] = ()
    claim: EpsilonClaim | None = None
    no_claim: NoClaim | None = None
    shown: Sequence[EpsilonShown] = ()
    utility: Sequence[Utility] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    hashed_ids: bool = True
    min_cell: int = MIN_CELL

    def __post_init__(self) -> None:
        check_answers(self.answers)
        if self.claim is not None and self.no_claim is not None:
            raise DataError(
                "a claim of differential privacy, and reasons why there is none",
                "one of them is wrong",
                "give claim= or no_claim=",
            )
        names = [section.probe for section in self.sections]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(
                f"two sections of the name {', '.join(twice)}",
                "a gate could read the number of the wrong one",
                "give each probe a name of its own",
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AuditReport) and encode(self) == encode(other)

    def __hash__(self) -> int:
        return hash((self.version, self.created, len(self.sections)))

    # -- what is in it -------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Number]:
        """``"probe.number"`` -> number, for gates and loggers; counts of flagged patients and epsilons too.

        Also ``"probe.flagged"`` (a count among ``n`` ranked patients), ``"probe.in_stratum.name"`` and
        ``"epsilon.probe"`` (its ``low`` is the bound; nothing bounds it above). Spaces in names become ``_``.
        """
        found: dict[str, Number] = {}
        for section in self.sections:
            found |= {f"{section.probe}.{name}": number for name, number in section.numbers.items()}
            if section.n_flagged is not None:
                count, n = float(section.n_flagged), section.n_ranked or self.members.n_patients
                flagged = Estimate(value=count, low=count, high=count, n=n, method="count")
                found.setdefault(f"{section.probe}.flagged", Number(estimate=flagged))
        for row in self.strata:
            if row.estimate is not None:
                name = f"{row.probe}.{row.number}.in_{row.stratum}"
                found.setdefault(name, Number(estimate=row.estimate, null=row.null))
        for bound in self.shown:
            found.setdefault(f"epsilon.{bound.probe}", Number(estimate=_bound(bound), null=0.0))
        return {re.sub(r"\s+", "_", name): number for name, number in found.items()}

    def gaps(self) -> Iterator[Gap]:
        """Everything that was not tested: of the audit, then of its probes."""
        yield from self.not_tested
        for section in self.sections:
            for gap in section.not_tested:
                yield dataclasses.replace(gap, probe=gap.probe or section.probe)

    def open_questions(self) -> list[str]:
        """Keys of the questions that nobody has answered."""
        return [q.key for q in QUESTIONS if not self.answers.get(q.key, "").strip()]

    def verdict(self) -> str:
        """The finding, its scope and what was not tested, in a few sentences; see `audit.verdict`."""
        from memguard.report.audit.verdict import audit_verdict  # that module reads this one

        return audit_verdict(self).text

    def answered(self, answers: Mapping[str, str]) -> AuditReport:
        """The same report with what people said; an empty answer takes one back.

        Args:
            answers: Key of a question -> answer.

        Raises:
            DataError: If a key is of no question.
        """
        check_answers(answers)
        merged = {**self.answers, **answers}
        return dataclasses.replace(self, answers={key: text for key, text in merged.items() if text.strip()})

    # -- its forms -----------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The report as JSON text that its schema accepts; numbers that are not finite become ``null``.

        Raises:
            DataError: If a field holds what the schema does not allow.
        """
        from memguard.report.audit.schema import check

        body = {"schema": SCHEMA, **encode(self)}
        check(body)
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> AuditReport:
        """Read what `to_json` wrote. Keys that this version does not know are left out.

        Raises:
            DataError: The text is no JSON, has another schema, or does not keep to it.
        """
        from memguard.report.audit.schema import check

        try:
            body = json.loads(text)
        except ValueError as error:
            raise DataError(
                f"text that is no JSON ({error})", "the file may be cut off", "write it again"
            ) from error
        seen = body.get("schema") if isinstance(body, dict) else type(body).__name__
        if seen != SCHEMA:
            raise DataError(
                f"a report with schema {seen!r}, and this version reads {SCHEMA!r}",
                "fields could be taken for something else",
                "read it with the memguard version named in the file",
            )
        check(body)
        return decode(cls, body)

    def save(self, folder: str | Path, records: pl.DataFrame | None = None) -> dict[str, Path]:
        """Write every form of it; see `memguard.report.audit.files.save`."""
        from memguard.report.audit.files import save

        return save(self, folder, records)

    @classmethod
    def load(cls, folder: str | Path) -> AuditReport:
        """Read the ``report.json`` of a folder that `save` wrote; see `memguard.report.audit.files.load`."""
        from memguard.report.audit.files import load

        return load(folder)


def _bound(bound: EpsilonShown) -> Estimate:
    return Estimate(
        value=bound.epsilon,
        low=bound.epsilon,
        high=float("inf"),
        n=bound.n,
        method=f"lower bound, {bound.method}",
        confidence=bound.confidence,
    )
