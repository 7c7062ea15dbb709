"""The finding in words: what was measured, at which epoch, with which error, and what spoils it."""

from __future__ import annotations

from dataclasses import dataclass

from memguard.report.data import CurvePoint, WatchReport
from memguard.report.text import cell, count, estimate, percent

__all__ = ["Verdict", "verdict"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The finding, in parts that a page can set apart.

    Attributes:
        headline: One sentence with the numbers of the last look.
        timing: When leakage rose, against the best held-out epoch; may be empty.
        cautions: What makes the headline doubtful, one sentence each.

    Example:
        >>> Verdict(headline="A.", timing="", cautions=("B.",)).text
        'A. B.'
    """

    headline: str
    timing: str
    cautions: tuple[str, ...]

    @property
    def text(self) -> str:
        """Headline and cautions in one line, for a terminal or a ticket."""
        return " ".join((self.headline, *self.cautions))


def verdict(report: WatchReport) -> Verdict:
    """Say what a report found, and no more than that.

    Args:
        report: The watched run.

    Example:
        >>> from memguard.report.data import CurvePoint, WatchReport
        >>> from memguard.attacks.estimate import Estimate
        >>> auc = Estimate(value=.91, low=.89, high=.93, n=5200, method="x", confidence=.95)
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=4000, n_held_out=1200, flag_rate=.1, flagged_identifiable=31,
        ...     curve=[CurvePoint(epoch=24, step=9, auc=auc, flagged_patients=412)])
        >>> print(verdict(report).headline)
        At epoch 24 the membership AUC is .91 [.89, .93] (chance: .50); 412 of 4,000 patients are flagged as
        memorized at a 10 % false-discovery rate, 31 of them are also identifiable.
    """
    last = report.last
    if last is None:
        why = report.notes[0].rstrip(".") if report.notes else "no look at the model gave a membership AUC"
        return Verdict(
            headline=f"No membership number was measured: {why}.", timing="", cautions=_unit(report)
        )
    return Verdict(
        headline=f"At epoch {last.epoch:g} {_auc(last, report)}; {_flags(last, report)}.",
        timing=_timing(report),
        cautions=(*_unit(report), *_blind(last, report), *_share(last, report)),
    )


def _auc(point: CurvePoint, report: WatchReport) -> str:
    auc = point.auc
    assert auc is not None
    said = f"the membership AUC is {estimate(auc)}"
    if auc.low > 0.5:
        return f"{said} (chance: .50)"
    if auc.high < 0.5:
        return f"{said}, below chance (.50): members and held-out {report.unit}s differ in more than training"
    return f"{said}, which this many {report.unit}s cannot tell from chance (.50)"


def _flags(point: CurvePoint, report: WatchReport) -> str:
    flagged, units = report.flagged_patients, f"{report.unit}s"
    if flagged is None:
        why = f" ({point.refused.rstrip('.')})" if point.refused else ""
        return f"{units} were not ranked{why}, so nobody is flagged and nobody is cleared"
    rate = f"at a {percent(report.flag_rate)} false-discovery rate"
    if flagged == 0:
        return f"none of {count(report.n_ranked)} {units} is flagged as memorized {rate}"
    verb = "is" if flagged == 1 and report.min_cell <= 1 else "are"
    said = (
        f"{cell(flagged, report.min_cell)} of {count(report.n_ranked)} {units} "
        f"{verb} flagged as memorized {rate}"
    )
    both = report.flagged_identifiable
    if both is None:
        return said
    if both == 0:
        return f"{said}, none of them is also identifiable"
    return f"{said}, {cell(both, report.min_cell)} of them are also identifiable"


def _timing(report: WatchReport) -> str:
    first, best, last = report.first_above_chance, report.best, report.last
    if best is None or last is None:
        return ""
    known = best.auc is not None and best is not last
    there = f", where the AUC is {estimate(best.auc)}" if known else ""
    if first is None:
        return f"The held-out loss is lowest at epoch {best.epoch:g}{there}."
    gap = best.epoch - first.epoch
    epochs = "epoch" if abs(gap) == 1 else "epochs"
    when = f"{abs(gap):g} {epochs} {'later' if gap > 0 else 'earlier'}, at epoch {best.epoch:g}"
    return (
        f"The AUC interval lies above chance from epoch {first.epoch:g} on; the held-out loss is lowest "
        f"{when if gap else 'at that same epoch'}{there}."
    )


def _unit(report: WatchReport) -> tuple[str, ...]:
    if report.unit == "patient":
        return ()
    return (
        "The unit is the record: records of one patient count as "
        "strangers, intervals are too narrow, and nothing here is a statement about a patient (pass "
        "record_to_patient=).",
    )


def _blind(point: CurvePoint, report: WatchReport) -> tuple[str, ...]:
    blind = point.blind_auc
    if blind is None or not blind.low > 0.5:
        return ()
    return (
        f"A classifier that never saw the model already tells members from held-out {report.unit}s apart "
        f"(AUC {estimate(blind)}): part of the membership AUC comes from the split, not from the model.",
    )


def _share(point: CurvePoint, report: WatchReport) -> tuple[str, ...]:
    memorized = point.memorized_share
    if memorized is None or not memorized.value > 0.5:
        return ()
    return (
        f"An estimated {percent(memorized.value)} [{percent(memorized.low)}, {percent(memorized.high)}] of "
        "the members are memorized to some degree: being flagged is then no exception, and what counts is "
        f"the order of severity, identifiable {report.unit}s first.",
    )
