"""The upper end of each evidence: how far members reach beyond never-trained patients, counted, not named."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import tpr_at_fpr
from memguard.errors import MemguardError, ResolutionError
from memguard.report.audit.axes import patient_means
from memguard.report.audit.likes import EvidenceLike, ProbeLike, SubjectLike
from memguard.report.audit.parts import SideCounts, Tail
from memguard.report.text import MIN_CELL

__all__ = ["side_of", "tails_of"]

_QUANTILES = (0.5, 0.9, 0.99, 0.999)
_RATES = (0.01, 0.05, 0.1)


def tails_of(result: ProbeLike, subject: SubjectLike, *, min_cell: int = MIN_CELL) -> tuple[Tail, ...]:
    """One row for each evidence of a probe that both sides have.

    Averages do not answer the question whether *some* patient is exposed; the share of members beyond what 1 % of
    never-trained patients reach does, for those who are. It is pooled over patients, and is no one's own risk.

    Args:
        result: What the probe found.
        subject: Whom it was asked about.
        min_cell: A quantile is given only with so many patients of each side beyond it.
    """
    return tuple(
        row for one in result.evidence.values() if (row := _tail(one, result, subject, min_cell)) is not None
    )


def _tail(one: EvidenceLike, result: ProbeLike, subject: SubjectLike, min_cell: int) -> Tail | None:
    codes = np.unique(subject.patient[one.row])
    value = patient_means(one, subject, codes)
    codes, value = codes[np.isfinite(value)], value[np.isfinite(value)]
    member = np.isin(codes, subject.patient[: subject.n_members])
    inside, outside = value[member], value[~member]
    if not inside.size or not outside.size:
        return None
    fewest = min(inside.size, outside.size)
    kept = [q for q in _QUANTILES if fewest * (1 - q) >= min_cell - 1e-9]
    beyond, fpr = _beyond(value, member)
    flagged = None if one.p_value is None else int(np.isin(codes[member], result.flagged).sum())
    return Tail(
        probe=result.probe,
        evidence=one.name,
        n_members=int(inside.size),
        n_held_out=int(outside.size),
        n_flagged=flagged,
        quantiles={q: (float(np.quantile(inside, q)), float(np.quantile(outside, q))) for q in kept},
        beyond=beyond,
        fpr=fpr,
    )


def _beyond(value: NDArray[np.float64], member: NDArray[np.bool_]) -> tuple[Estimate | None, float]:
    """At 1 %, or at the next higher rate that the never-trained patients support."""
    for fpr in _RATES:
        try:
            return tpr_at_fpr(value, member, fpr), fpr
        except ResolutionError:
            continue
        except MemguardError:
            break
    return None, _RATES[0]


def side_of(subject: SubjectLike, *, member: bool) -> SideCounts:
    """Patients, records and records per patient of one side.

    The largest number of records is one patient's own, and is left out below 1,000 patients.

    Args:
        subject: Whom the audit is about.
        member: Which side.

    Example:
        >>> from types import SimpleNamespace
        >>> subject = SimpleNamespace(n_members=3, patient=np.array([0, 0, 1, 7]), strata={})
        >>> side_of(subject, member=True)
        SideCounts(n_patients=2, n_records=3, records_per_patient={'median': 1.5, 'p99': 1.99})
    """
    patient = subject.patient[: subject.n_members] if member else subject.patient[subject.n_members :]
    _, n = np.unique(patient, return_counts=True)
    if not n.size:
        return SideCounts(n_patients=0, n_records=0)
    spread = {"median": float(np.median(n)), "p99": float(np.quantile(n, 0.99))}
    if n.size >= 1000:
        spread["max"] = float(n.max())
    return SideCounts(n_patients=int(n.size), n_records=int(patient.size), records_per_patient=spread)
