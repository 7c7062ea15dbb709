"""The verdict: numeric rules in plain words, with its scope and with what was not tested."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memguard.report.audit.data import AuditReport
from memguard.report.audit.parts import Section
from memguard.report.audit.wording import listed, named, null_text, written
from memguard.report.text import cell, count, percent

__all__ = ["RULE", "AuditVerdict", "audit_verdict", "finding"]

RULE = (
    "A test counts as having found something when the whole interval of its deciding number (fixed by its "
    "name, before it is measured) lies above what the number would be if the model knew nothing of its training "
    "patients, or when it flags a training patient at the stated error rate. Each test is judged by itself."
)


@dataclass(frozen=True, kw_only=True)
class AuditVerdict:
    """The finding in parts that a page can set apart.

    Attributes:
        headline: What the tests found, in one sentence.
        findings: The numbers behind it, one test each.
        scope: What this holds for.
        untested: What was not tested.
        alarms: What contradicts a claim or spoils a number, one sentence each.
    """

    headline: str
    findings: tuple[str, ...]
    scope: str
    untested: str
    alarms: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it in one paragraph, alarms first."""
        found = f"{'; '.join(self.findings)}." if self.findings else ""
        return " ".join(
            part for part in (*self.alarms, self.headline, found, self.scope, self.untested) if part
        )


def finding(section: Section) -> str:
    """What one test found, as a rule gives it.

    Args:
        section: Of the test.

    Returns:
        ``"found"``, ``"nothing above chance"``, ``"not judged"`` where it has numbers of which none decides, or
        ``"not measured"``.

    Example:
        >>> finding(Section(probe="membership", question="?"))
        'not measured'
    """
    deciding = section.deciding
    if deciding is not None and (deciding.null is None or math.isnan(deciding.estimate.low)):
        deciding = None
    if (deciding is not None and deciding.above) or section.n_flagged:
        return "found"
    if deciding is not None or section.n_flagged == 0:
        return "nothing above chance"
    some = any(math.isfinite(number.estimate.value) for number in section.numbers.values())
    return "not judged" if some or section.tables or section.curves else "not measured"


def audit_verdict(report: AuditReport) -> AuditVerdict:
    """Say what a report found, and no more than that.

    Args:
        report: With exact counts; small ones are written ``<5``.

    Example:
        >>> from memguard.report.audit.parts import SideCounts
        >>> side = SideCounts(n_patients=900, n_records=1400)
        >>> report = AuditReport(version="0.1.0", created="2026-01-31", members=side, held_out=side)
        >>> audit_verdict(report).headline
        'Nothing was measured: no test ran, so this report neither accuses nor clears the model.'
    """
    by = {section.probe: finding(section) for section in report.sections}
    measured = [
        section for section in report.sections if by[section.probe] in ("found", "nothing above chance")
    ]
    found = [section for section in measured if by[section.probe] == "found"]
    return AuditVerdict(
        headline=_headline(report, len(measured), len(found)),
        findings=tuple(_said(section, report) for section in found or measured),
        scope=_scope(report),
        untested=_untested(report),
        alarms=tuple(_alarms(report)),
    )


def _headline(report: AuditReport, measured: int, found: int) -> str:
    if not measured:
        why = "no test ran" if not report.sections else "no test that ran gave a number with a null"
        return f"Nothing was measured: {why}, so this report neither accuses nor clears the model."
    units = f"{report.unit}s"
    which = "The one test" if measured == 1 else f"{found or 'None'} of the {measured} tests"
    which += " that could be judged"
    if not found:
        told = "did not tell" if measured == 1 else "told"
        return (
            f"{which} {told} training {units} from {units} that the model never saw. That is missing "
            "evidence of leakage, not evidence that there is none."
        )
    return f"{which} got more out of the model about training {units} than about {units} that it never saw."


def _said(section: Section, report: AuditReport) -> str:
    parts = []
    deciding = section.deciding
    if deciding is not None and deciding.null is not None:
        name = named(section.headline)
        parts.append(f"{name} {written(deciding.estimate)}, {null_text(deciding.null)} without a leak")
    if section.n_flagged is not None:
        ranked = section.n_ranked or report.members.n_patients
        rate = "" if report.flag_rate is None else f" at a {percent(report.flag_rate)} false-discovery rate"
        parts.append(
            f"{cell(section.n_flagged, report.min_cell)} of {count(ranked)} {report.unit}s flagged{rate}"
        )
    return (
        f"{named(section.probe).capitalize()}: {'; '.join(parts)}"
        if parts
        else named(section.probe).capitalize()
    )


def _scope(report: AuditReport) -> str:
    side, other, unit = report.members, report.held_out, report.unit
    what = report.provenance.model or "one model whose name was not given"
    hash_ = (
        f", checkpoint {report.provenance.checkpoint.split(':')[-1][:12]}"
        if report.provenance.checkpoint
        else ""
    )
    kind = {"none": "no reference models", "counts": "a model of counts as reference"}.get(
        report.references.kind, f"{report.references.count} reference models ({report.references.kind})"
    )
    tried = f" against {listed([one.name.lower() for one in report.threats])}" if report.threats else ""
    return (
        f"This holds for {what}{hash_}, {count(side.n_patients)} training {unit}s beside {count(other.n_patients)} "
        f"never-trained ones, {kind}{tried}, and for attackers no stronger than these."
    )


def _untested(report: AuditReport) -> str:
    first = [gap.what for gap in report.not_tested]
    more = sum(len(section.not_tested) for section in report.sections)
    if not first and not more:
        return "No list of untested attacks was given, which does not mean that all were tried."
    rest = f"{more} further part{'s' if more > 1 else ''} of tests that ran" if more else ""
    return f"Not tested: {'; '.join([*first, rest] if rest else first)}."


def _alarms(report: AuditReport) -> list[str]:
    said = []
    for bound in report.shown:
        if report.claim is not None and bound.contradicts(report.claim):
            said.append(
                f"The claim of differential privacy is contradicted: {bound.probe} shows epsilon of at least "
                f"{bound.epsilon:.2f} at delta {bound.delta:g} ({percent(bound.confidence)} confidence), "
                f"and epsilon = {report.claim.epsilon:.2f} at delta {report.claim.delta:g} is claimed. At this "
                "confidence the claim is false."
            )
    if report.no_claim is not None:
        why = "; ".join(one.rstrip(".") for one in report.no_claim.reasons)
        said.append(f"No promise of differential privacy can be claimed for this model: {why}.")
    if report.unit != "patient":
        said.append(
            "The unit is the record: records of one patient count as strangers, intervals are too narrow, and "
            "nothing here is a statement about a patient."
        )
    if report.references.alike is False:
        said.append(
            "The reference models are not like the audited one (chapter 16): what compares with them may measure "
            "the difference between the models."
        )
    return said
