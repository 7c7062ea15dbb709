"""What leaves the monitor: numbers for loggers, a frame of patients, a report, files. Aggregates only go to loggers."""

from __future__ import annotations

import datetime
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

import memguard
from memguard.probes.identifiable import PatientFacts
from memguard.probes.look import Look
from memguard.probes.memorization import Memorization
from memguard.probes.watch import Watch
from memguard.records.small_cells import patients_logged
from memguard.report.data import CurvePoint, WatchReport
from memguard.report.flags import check_flags, empty_flags, most_urgent
from memguard.report.page import write_report
from memguard.report.private import HashedIds, write_private
from memguard.report.text import percent
from memguard.report.words import unranked

__all__ = [
    "OutputSettings",
    "curve_point",
    "identifiable_note",
    "logged",
    "make_report",
    "patient_frame",
    "write_outputs",
]


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """How results are written.

    Attributes:
        min_cell: Counts of people from 1 to this minus one are not shown.
        hash_ids: Keyed hashes in place of patient ids.
        rare_at_most: A code carried by at most so many patients makes its carriers identifiable.
        quasi_identifiers: Codes (of feature vectors: columns) that somebody else may know; `None` for the first
            codes of a record (of feature vectors: every column of few values).
    """

    min_cell: int = 5
    hash_ids: bool = True
    rare_at_most: int = 3
    quasi_identifiers: Sequence[int] | None = None

    def rule(self, kind: Literal["codes", "features"] | None = "codes") -> str:
        """What "identifiable" means for records of this kind, in words.

        Example:
            >>> OutputSettings(quasi_identifiers=[0, 4]).rule("features")
            'carries a value that at most 3 training patients carry, or is alone in the equivalence class (the same
            values in 2 columns of quasi_identifiers=)'
        """
        if kind == "features":
            carried, default, named = "value", "in every column of few values", "in {} columns"
        else:
            carried, default, named = "code", "at the start of a record", "of {} codes"
        shared = default
        if self.quasi_identifiers is not None:
            shared = f"{named.format(len(set(self.quasi_identifiers)))} of quasi_identifiers="
        return (
            f"carries a {carried} that at most {self.rare_at_most} training patients carry, or is alone in the "
            f"equivalence class (the same {carried}s {shared})"
        )


def curve_point(
    look: Look, flag_rate: float, *, probe_seconds: float, train_seconds: float | None
) -> CurvePoint:
    """One point of the curve from one look."""
    seen, found = look.membership, look.memorization
    return CurvePoint(
        epoch=look.epoch,
        step=look.step,
        train_loss=look.train_loss,
        held_out_loss=None if seen is None else seen.held_out_loss,
        member_loss=None if seen is None else seen.member_loss,
        auc=None if seen is None else seen.auc,
        tpr={} if seen is None else seen.tpr,
        loss_gap=None if seen is None else seen.gap,
        coverage=look.coverage,
        surrogate_fit=look.surrogate_fit,
        flagged_patients=None if found is None else int(found.flagged(flag_rate).sum()),
        memorized_share=look.memorized_share,
        blind_auc=look.blind,
        refused=look.refused if found is None else "",
        probe_seconds=probe_seconds,
        train_seconds=train_seconds,
    )


def logged(point: CurvePoint, *, min_cell: int = 5) -> dict[str, float]:
    """The metrics of a point, by the names under which they are logged; what was not measured is left out.

    A count of patients from 1 to ``min_cell - 1`` becomes ``min_cell - 1``: never too low, and it does not tell
    how few.

    Example:
        >>> logged(CurvePoint(epoch=1, step=9, coverage=1.0, flagged_patients=2))
        {'memguard/coverage': 1.0, 'memguard/flagged_patients': 4.0, 'memguard/probe_seconds': 0.0}
    """
    flagged = point.flagged_patients
    if flagged is not None:
        flagged = patients_logged(flagged, min_cell)
    values: dict[str, float | None] = {
        "membership_auc": None if point.auc is None else point.auc.value,
        **{f"tpr_at_fpr_{fpr:g}": rate.value for fpr, rate in sorted(point.tpr.items(), reverse=True)},
        "loss_gap": None if point.loss_gap is None else point.loss_gap.value,
        "coverage": point.coverage,
        "surrogate_fit": point.surrogate_fit,
        "flagged_patients": flagged,
        "memorized_share": None if point.memorized_share is None else point.memorized_share.value,
        "blind_auc": None if point.blind_auc is None else point.blind_auc.value,
        "probe_seconds": point.probe_seconds,
        **{
            f"{probe}/{name}": one.value
            for probe, numbers in point.probes.items()
            for name, one in numbers.items()
            if one.n >= min_cell
        },
    }
    kept = {name: float(value) for name, value in values.items() if value is not None}
    return {f"memguard/{name}": value for name, value in kept.items() if math.isfinite(value)}


def patient_frame(
    watch: Watch,
    found: Memorization | None,
    flag_rate: float,
    settings: OutputSettings,
    hashed: HashedIds | None,
) -> pl.DataFrame:
    """One row per scored patient, most memorized first.

    Columns are those of `memguard.report.flags.FLAG_COLUMNS` and ``score``, by which ``rank`` goes.
    """
    if found is None:
        return empty_flags().with_columns(pl.Series("score", [], pl.Float64))
    ids = watch.members.patients.ids[found.patient].tolist()
    facts = watch.contents.facts(
        rare_at_most=settings.rare_at_most, quasi_identifiers=settings.quasi_identifiers
    )
    unknown: list[None] = [None] * found.patient.size
    frame = pl.DataFrame(
        {
            "patient": hashed(ids) if hashed is not None else [str(one) for one in ids],
            "rank": found.rank,
            "severity": found.severity,
            "severity_low": found.severity_low,
            "severity_high": found.severity_high,
            "bits": found.bits,
            "p": found.p,
            "q": found.q,
            "flagged": found.flagged(flag_rate),
            "lt_iqr": watch.members.lt_iqr()[found.patient],
            "first_epoch": watch.first_flagged[found.patient].astype(np.float64),
            "n_records": found.records,
            "n_tokens": found.tokens,
            **{
                fact.name: unknown if facts is None else getattr(facts, fact.name)[found.patient]
                for fact in fields(PatientFacts)
            },
            "score": found.score,
        }
    )
    nan = [pl.col(name).fill_nan(None) for name in ("first_epoch", "lt_iqr", "score", "severity")]
    return check_flags(frame.with_columns(nan).sort("rank"))


def identifiable_note(patients: pl.DataFrame, settings: OutputSettings) -> str | None:
    """A caveat where so many patients count as identifiable that the word says nothing.

    Args:
        patients: Of `patient_frame`.
        settings: As given to it.

    Returns:
        ``None`` where at most half of the scored patients are identifiable, or where it is not known.

    Example:
        >>> settings = OutputSettings()
        >>> identifiable_note(pl.DataFrame({"identifiable": [True, True, True, False]}), settings)
        '75 % of the patients count as identifiable: ... Pass quasi_identifiers= ...'
        >>> identifiable_note(pl.DataFrame({"identifiable": [True, False]}), settings) is None
        True
    """
    share = patients["identifiable"].cast(pl.Float64).mean()
    if not isinstance(share, float) or share <= 0.5:
        return None
    fix = (
        "Pass quasi_identifiers= with what somebody else may plausibly know of a patient."
        if settings.quasi_identifiers is None
        else "Pass fewer quasi_identifiers=, or ones that more patients share."
    )
    return f"{percent(share)} of the patients count as identifiable: that sets hardly anybody apart. {fix}"


def make_report(
    watch: Watch,
    curve: Sequence[CurvePoint],
    found: Memorization | None,
    *,
    flag_rate: float,
    settings: OutputSettings,
    notes: Sequence[str],
    model: str,
    roc: Sequence[tuple[float, float]] = (),
    privacy: str = "",
) -> WatchReport:
    """The whole run as one report; counts of flagged patients are read off the frame when it is written."""
    members, held_out = watch.members.patients, watch.held_out.patients
    return WatchReport(
        version=memguard.__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        unit=members.unit,
        patients_source=members.source,
        n_members=members.n_patients,
        n_held_out=held_out.n_patients,
        flag_rate=flag_rate,
        curve=curve,
        n_ranked=0 if found is None else found.patient.size,
        identifiable_rule=settings.rule(watch.members.store.kind),
        p_method=None if found is None else found.p_method,
        p_resolution=None if found is None else found.p_resolution,
        loss_unit=watch.unit,
        score="" if found is None else found.detail,
        notes=[*notes, *unranked(curve)],
        versions=_versions(),
        seeds={"monitor": watch.settings.seed},
        model=model,
        dataset=f"fingerprint {watch.fingerprint}: {len(members)} training and {len(held_out)} held-out records",
        roc=roc,
        min_cell=settings.min_cell,
        hashed_ids=settings.hash_ids,
        privacy=privacy,
    )


def write_outputs(report: WatchReport, patients: pl.DataFrame, folder: Path) -> dict[str, Path]:
    """Report, flags, everybody's scores and the page, readable by their owner alone; a full disk only warns."""
    written = write_report(report, most_urgent(patients, None), folder)
    everybody = write_private(folder / "patients.parquet", patients)
    return written if everybody is None else {**written, "patients": everybody}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "lightning", "numpy", "scipy", "polars"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
