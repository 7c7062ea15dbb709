"""Groups of patients: from the breakdown of an evidence to the rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from memguard.attacks.estimate import Estimate
from memguard.report.audit.likes import EvidenceLike, SubjectLike
from memguard.report.audit.nulls import null_of
from memguard.report.audit.parts import Stratum

__all__ = ["BreakdownLike", "strata_of"]


class BreakdownLike(Protocol):
    """An evidence by strata (`memguard.probes.strata.Breakdown`), as far as a report needs it."""

    @property
    def numbers(self) -> Mapping[str, Estimate]:
        """``<stratum>.<key>`` -> number."""
        ...


def strata_of(
    found: BreakdownLike,
    subject: SubjectLike,
    *,
    probe: str,
    evidence: str,
    asked: EvidenceLike | None = None,
    keys: Sequence[str] = ("minus_held_out", "auc"),
) -> tuple[Stratum, ...]:
    """One row for each stratum and key, also where there is no number; everybody first.

    Args:
        found: The breakdown.
        subject: Whose strata; patients are counted in it.
        probe: Which probe.
        evidence: Key of the evidence in the probe's result.
        asked: The evidence, so that only patients who have it are counted; all of the stratum when left out.
        keys: Which numbers of a stratum.

    Example:
        >>> from types import SimpleNamespace
        >>> subject = SimpleNamespace(n_members=2, patient=np.arange(4), strata={"rare": np.arange(4) % 2 == 0})
        >>> rows = strata_of(SimpleNamespace(numbers={}), subject, probe="membership", evidence="score", keys=["auc"])
        >>> rows[0].stratum, rows[0].n_members, rows[0].n_held_out, rows[0].note
        ('rare', 1, 1, 'too few patients')
    """
    members = np.unique(subject.patient[: subject.n_members])
    known = subject.patient if asked is None else subject.patient[asked.row]
    rows = []
    for key in keys:
        everybody = (
            {"everybody": np.ones(len(subject.patient), np.bool_)}
            if f"everybody.{key}" in found.numbers
            else {}
        )
        for name, mask in {**everybody, **subject.strata}.items():
            codes = np.intersect1d(subject.patient[np.asarray(mask, np.bool_)], known)
            n = int(np.intersect1d(codes, members).size)
            estimate = found.numbers.get(f"{name}.{key}")
            rows.append(
                Stratum(
                    probe=probe,
                    number=f"{evidence}.{key}",
                    stratum=name,
                    estimate=None if estimate is None else Estimate(**estimate.as_dict()),  # type: ignore[arg-type]
                    n_members=n,
                    n_held_out=int(codes.size) - n,
                    null=null_of(key),
                    note="" if estimate is not None else "too few patients",
                )
            )
    return tuple(rows)
