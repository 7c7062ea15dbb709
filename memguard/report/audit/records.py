"""One row a patient: every evidence, its p-value, the flags and the strata; the file that is never handed on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from memguard.errors import DataError
from memguard.report.audit.axes import patient_means
from memguard.report.audit.likes import EvidenceLike, ProbeLike, SubjectLike
from memguard.report.audit.sections import flagged_of

__all__ = ["records_frame"]


def records_frame(
    results: Iterable[ProbeLike],
    subject: SubjectLike,
    *,
    hashed: Callable[[Iterable[object]], list[str]],
    ids: Sequence[object] | None = None,
    flags: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The frame of ``records.parquet``.

    Columns: ``patient`` (hashed), ``member``, ``n_records``; for each evidence ``probe.evidence`` (mean over the
    patient's records) and ``probe.evidence.p`` (smallest p-value times the number of
    different ones, which stays valid);
    ``probe.flagged`` (null where the probe ranked nobody); ``n_flags``; ``stratum.name``; and of ``flags`` the
    columns ``severity``, ``severity_low``, ``severity_high``, ``bits`` and ``identifiable``.

    Args:
        results: What the probes found.
        subject: Whom they were asked about.
        hashed: `memguard.report.private.HashedIds`, or any other pseudonyms.
        ids: Patient id of each code ``0 ... P - 1``; the codes themselves when left out.
        flags: The monitor's flags, whose ``patient`` was hashed with the same key.

    Raises:
        DataError: If a code has no id, or two patients get one pseudonym.

    Example:
        >>> from types import SimpleNamespace
        >>> subject = SimpleNamespace(n_members=2, patient=np.array([0, 1, 2]), strata={"rare": np.eye(3)[0] > 0})
        >>> records_frame([], subject, hashed=lambda ids: [f"h{one}" for one in ids]).columns
        ['patient', 'member', 'n_records', 'n_flags', 'stratum.rare', 'severity', ..., 'identifiable']
    """
    codes, n = np.unique(subject.patient, return_counts=True)
    if ids is not None and codes.size and int(codes[-1]) >= len(ids):
        raise DataError(
            f"a patient of code {codes[-1]} and {len(ids)} ids",
            "rows would be given to the wrong patient",
            "pass ids= with the id of each code, members and held-out patients together",
        )
    names = hashed([int(code) if ids is None else ids[int(code)] for code in codes])
    if len(set(names)) != len(names):
        raise DataError(
            "two patients with one pseudonym",
            "their rows could not be told apart",
            "give each patient one id",
        )
    member = np.isin(codes, subject.patient[: subject.n_members])
    columns: dict[str, object] = {"patient": names, "member": member, "n_records": n}
    flagged = []
    for result in results:
        for name, one in result.evidence.items():
            columns[f"{result.probe}.{name}"] = patient_means(one, subject, codes)
            if one.p_value is not None:
                columns[f"{result.probe}.{name}.p"] = _p_values(one, subject, codes)
        if flagged_of(result, subject)[0] is not None:
            flagged.append(f"{result.probe}.flagged")
            columns[flagged[-1]] = np.isin(codes, result.flagged)
    columns["n_flags"] = sum(
        (np.asarray(columns[one], np.int64) for one in flagged), np.zeros(codes.size, np.int64)
    )
    for name, inside in subject.strata.items():
        columns[f"stratum.{name}"] = np.isin(codes, subject.patient[np.asarray(inside, np.bool_)])
    frame = pl.DataFrame(columns).with_columns(pl.selectors.float().fill_nan(None))
    return frame.join(_severity(flags), on="patient", how="left", maintain_order="left")


_OF_FLAGS = {
    "severity": pl.Float64,
    "severity_low": pl.Float64,
    "severity_high": pl.Float64,
    "bits": pl.Float64,
    "identifiable": pl.Boolean,
}


def _severity(flags: pl.DataFrame | None) -> pl.DataFrame:
    if flags is None:
        return pl.DataFrame(schema={"patient": pl.String, **_OF_FLAGS})
    return flags.select("patient", *_OF_FLAGS)


def _p_values(one: EvidenceLike, subject: SubjectLike, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Smallest p-value of each patient, times the number of different ones (Bonferroni); NaN where there is none."""
    p = np.asarray(one.p_value, float)
    known = np.isfinite(p)
    # the same p-value at every record of a patient is one test, not several
    pairs = np.unique(np.stack([subject.patient[one.row[known]].astype(float), p[known]]), axis=1)
    owner, first, n = np.unique(pairs[0], return_index=True, return_counts=True)
    values: NDArray[np.float64] = np.full(codes.size, np.nan)
    values[np.searchsorted(codes, owner)] = np.minimum(1.0, pairs[1][first] * n)
    return values
