"""What stands on the page, as text ready to be placed: tiles, rows, facts, and what is read aloud."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from memguard.report.data import CurvePoint, WatchReport
from memguard.report.flags import check_flags, flag_counts, flag_rows, most_urgent
from memguard.report.svg import inline_svg, to_svg
from memguard.report.table import thin
from memguard.report.text import DASH, cell, count, estimate, number, percent, share
from memguard.report.verdict import verdict
from memguard.report.words import does_not_show, shows

__all__ = ["counted", "page_context"]

_MOST_LOOKS = 120


def counted(report: WatchReport, flags: pl.DataFrame | None) -> WatchReport:
    """The report with the counts of the very frame that is shown, so that sentence and list agree.

    Args:
        report: The watched run.
        flags: One row per patient, or ``None`` to leave the report as it is.

    Example:
        >>> from memguard.report.flags import empty_flags
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> report.flagged_patients, counted(report, empty_flags()).flagged_patients
        (None, 0)
    """
    if flags is None or report.n_ranked == 0 or not {"flagged", "identifiable"} <= set(flags.columns):
        return report  # of nobody ranked, an empty frame does not say that nobody is memorized
    flagged, both = flag_counts(flags)
    return dataclasses.replace(report, flagged_patients=flagged, flagged_identifiable=both)


def page_context(report: WatchReport, flags: pl.DataFrame | None, top: int) -> dict[str, Any]:
    """Everything that the template names.

    Args:
        report: The watched run.
        flags: One row per patient, or ``None`` for a page of aggregates.
        top: At most so many flagged patients.

    Raises:
        DataError: ``flags`` lacks a column.

    Example:
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> page_context(report, None, top=50)["private"]
        False
    """
    checked = None if flags is None else check_flags(flags)
    report = counted(report, checked)
    shown = None if checked is None or report.n_ranked == 0 else most_urgent(checked, top)
    return {
        "report": report,
        "units": f"{report.unit}s",
        "by_token": report.loss_unit != "nats/record",  # else each record counts one
        "verdict": verdict(report),
        "tiles": _tiles(report),
        "curve_svg": to_svg(
            "curve", report, title="Losses and leakage over training", description=_spoken(report)
        ),
        "rates_svg": to_svg(
            "rates",
            report,
            title="True-positive rate at low false-positive rates",
            description=_spoken_rates(report),
        ),
        "fprs": _fprs(report),
        "rates": _rate_rows(report),
        "all_shown": shown is not None and shown.height == report.flagged_patients,
        "looks": _looks(report),
        "varies": _varies(report),
        "n_looks": len(report.curve),
        "rows": None if shown is None else flag_rows(shown, report.min_cell),
        "n_flagged": cell(report.flagged_patients, report.min_cell),
        "private": shown is not None,
        "measured": any(_has_numbers(point) for point in report.curve),
        "top": top,
        "shows": shows(report),
        "does_not_show": does_not_show(report),
        **_probed(report),
        "facts": _facts(report),
    }


def _probed(report: WatchReport) -> dict[str, Any]:
    """Probes of the audit, where any were asked; most runs have none, and import nothing of them."""
    if not any(point.probes for point in report.curve):
        return {"probed": [], "probes_svg": ""}
    from memguard.report.probed import probes_figure, series_of, spoken

    rows = [one.row() for one in series_of(report, every=True)]
    svg = inline_svg(
        lambda colors: probes_figure(report, colors),
        "probes",
        title="Probes of the audit over training",
        description=spoken(report),
    )
    return {"probed": rows, "probes_svg": svg if rows else ""}


def _tiles(report: WatchReport) -> list[dict[str, str]]:
    """The four numbers of the first screen, each with what it is out of."""
    last, units = report.last, f"{report.unit}s"
    tiles = [
        {
            "label": "Membership AUC",
            "value": share(last.auc.value) if last and last.auc else DASH,
            "note": f"{_range(last.auc.low, last.auc.high)}, chance .50"
            if last and last.auc
            else "not measured",
        }
    ]
    if last and last.tpr:
        fpr = min(last.tpr)
        tpr, rate = last.tpr[fpr], percent(fpr, _digits(fpr))
        tiles.append(
            {
                "label": f"Found at {rate} false alarms",
                "value": percent(tpr.value, 1 if tpr.value < 0.1 else 0),
                "note": f"{percent(tpr.low, 1)} to {percent(tpr.high, 1)}, chance {rate}",
            }
        )
    tiles.append(
        {
            "label": "Flagged as memorized",
            "value": cell(report.flagged_patients, report.min_cell),
            "note": f"of {count(report.n_ranked)} {units}, false-discovery rate {percent(report.flag_rate)}"
            if report.flagged_patients is not None
            else "not ranked",
        }
    )
    tiles.append(
        {
            "label": "Flagged and identifiable",
            "value": DASH
            if report.flagged_patients is None
            else cell(report.flagged_identifiable, report.min_cell),
            "note": _first(report),
        }
    )
    return tiles


def _first(report: WatchReport) -> str:
    if report.flagged_patients is None:
        return "not ranked"
    return "first in the list below" if report.flagged_identifiable else "of the flagged"


def _range(low: float, high: float) -> str:
    return f"{share(low)} to {share(high)}"


def _digits(fpr: float) -> int:
    return max(0, math.ceil(-math.log10(fpr) - 1e-9) - 2)


def _fprs(report: WatchReport) -> list[float]:
    return sorted({fpr for point in report.curve for fpr in point.tpr}, reverse=True)


def _rate_rows(report: WatchReport) -> list[tuple[str, list[str]]]:
    """False-positive rate -> true-positive rate at the last look and, where it is another, the best one."""
    looks = [look for look in (report.last, report.best) if look is not None]
    looks = looks[:1] if len(looks) == 2 and looks[0] is looks[1] else looks
    return [(f"{100 * fpr:g} %", [estimate(look.tpr.get(fpr), 3) for look in looks]) for fpr in _fprs(report)]


def _looks(report: WatchReport) -> list[dict[str, Any]]:
    best = [i for i, point in enumerate(report.curve) if point is report.best]
    return [_look(point, report) for point in thin(report.curve, _MOST_LOOKS, best)]


def _has_numbers(point: CurvePoint) -> bool:
    return any(one is not None for one in (point.auc, point.train_loss, point.held_out_loss))


def _varies(report: WatchReport) -> dict[str, bool]:
    """Columns that are worth their room; what never changes stands under "How this was made"."""
    blind = {p.blind_auc.value for p in report.curve if p.blind_auc is not None}
    covered = [p.coverage for p in report.curve if p.coverage is not None]
    return {"blind": len(blind) > 1, "coverage": any(one < 0.995 for one in covered)}


def _look(point: CurvePoint, report: WatchReport) -> dict[str, Any]:
    spent = point.probe_seconds
    cost = percent(spent / point.train_seconds, 1) if point.train_seconds else f"{spent:.1f} s"
    return {
        "best": point is report.best,
        "epoch": f"{point.epoch:g}",
        "train_loss": number(point.train_loss),
        "held_out_loss": number(point.held_out_loss),
        "member_loss": number(point.member_loss),
        "auc": estimate(point.auc),
        "tpr": [estimate(point.tpr.get(fpr), 3 if fpr < 0.05 else 2) for fpr in _fprs(report)],
        "flagged": cell(point.flagged_patients, report.min_cell),
        "memorized_share": percent(point.memorized_share.value) if point.memorized_share else DASH,
        "blind_auc": estimate(point.blind_auc),
        "coverage": percent(point.coverage),
        "surrogate_fit": share(point.surrogate_fit),
        "cost": cost,
    }


def _spoken(report: WatchReport) -> str:
    """The curve figure for who does not see it."""
    first = next((p for p in report.curve if p.auc is not None), None)
    last, best = report.last, report.best
    if first is None or last is None:
        return "No membership AUC was measured."
    parts = [f"Membership AUC goes from {estimate(first.auc)} at epoch {first.epoch:g}"]
    parts.append(f" to {estimate(last.auc)} at epoch {last.epoch:g}; chance is .50.")
    if best is not None:
        parts.append(f" The held-out loss is lowest, {number(best.held_out_loss)}, at epoch {best.epoch:g}")
        parts.append(f", and {number(last.held_out_loss)} at the end. The table below has every value.")
    return "".join(parts)


def _spoken_rates(report: WatchReport) -> str:
    last = report.last
    if last is None or not last.tpr:
        return "No true-positive rate was measured."
    said = [f"{estimate(last.tpr[fpr], 3)} at a false-positive rate of {fpr:g}" for fpr in sorted(last.tpr)]
    return f"At epoch {last.epoch:g} the true-positive rate is {'; '.join(said)}."


def _facts(report: WatchReport) -> list[tuple[str, str]]:
    last = report.last
    resolution = f"{report.p_resolution:.2g}" if report.p_resolution else DASH
    facts: list[tuple[str, str]] = [
        ("Made", f"{report.created}, memguard {report.version}"),
        ("Model", report.model),
        ("Data", report.dataset),
        ("Unit", f"{report.unit}; record → patient from {report.patients_source}"),
        (
            "Members",
            f"{count(report.n_members)} {report.unit}s, "
            + (f"{count(report.n_ranked)} of them ranked" if report.n_ranked else "none of them ranked"),
        ),
        ("Held-out", f"{count(report.n_held_out)} {report.unit}s"),
        ("Score", report.score),
        (
            "P-values",
            f"{report.p_method}; by counting alone the smallest is {resolution}" if report.p_method else "",
        ),
        ("Coverage", f"{percent(last.coverage)} of the training records seen at least once" if last else ""),
        (
            "Surrogate fit",
            f"r = {share(last.surrogate_fit)} on held-out {report.unit}s"
            if last and last.surrogate_fit is not None
            else "",
        ),
        ("AUC interval", f"{last.auc.method}, n = {count(last.auc.n)}" if last and last.auc else ""),
        ("Blind baseline", f"AUC {estimate(last.blind_auc)}" if last and last.blind_auc else ""),
        ("Probing", _cost(report.curve)),
        ("Seeds", _pairs(report.seeds)),
        ("Versions", _pairs(report.versions)),
    ]
    return [(name, value) for name, value in facts if value]


def _cost(curve: Sequence[CurvePoint]) -> str:
    spent = sum(point.probe_seconds for point in curve)
    trained = sum(point.train_seconds or 0.0 for point in curve)
    return f"{spent:.1f} s" + (f", {percent(spent / trained, 1)} of the training time" if trained else "")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
