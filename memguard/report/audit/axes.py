"""Two evidences of the same patients, counted in cells: what a scatter plot shows, without a dot for a patient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.report.audit.likes import EvidenceLike, SubjectLike
from memguard.report.audit.parts import TwoAxes

__all__ = ["patient_means", "two_axes"]

_CELLS = (12, 10)


def two_axes(memorization: EvidenceLike, inference: EvidenceLike, subject: SubjectLike) -> TwoAxes | None:
    """Patients by what was inferred (across) and what was memorized (up), members beside never-trained ones.

    Patients with several records count once, at the mean of their values. Cells reach from the 1 % to the 99 %
    quantile of both sides, rounded; who lies beyond is counted in the outermost cell.

    Args:
        memorization: Model against a model that never saw the patient.
        inference: How far the prompt alone explains the code.
        subject: Whom both are about.

    Returns:
        ``None`` where no patient has both, or one of them is the same for all.
    """
    codes = np.intersect1d(subject.patient[memorization.row], subject.patient[inference.row])
    up, across = patient_means(memorization, subject, codes), patient_means(inference, subject, codes)
    known = np.isfinite(up) & np.isfinite(across)
    if not known.any() or np.ptp(up[known]) == 0 or np.ptp(across[known]) == 0:
        return None
    codes, up, across = codes[known], up[known], across[known]
    x_edges, y_edges = _edges(across, _CELLS[0]), _edges(up, _CELLS[1])
    member = np.isin(codes, subject.patient[: subject.n_members])
    counts = {
        name: _counts(across[side], up[side], x_edges, y_edges)
        for name, side in (("members", member), ("held-out", ~member))
    }
    return TwoAxes(
        title="Memorized, or inferred?",
        x=inference.name,
        y=memorization.name,
        x_edges=tuple(map(float, x_edges)),
        y_edges=tuple(map(float, y_edges)),
        counts=counts,
        note="Far to the right: the prompt gives it away to any model. Far up: this model says more than one that "
        "never saw the patient.",
    )


def patient_means(
    evidence: EvidenceLike, subject: SubjectLike, codes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean of an evidence over the records of each patient.

    Args:
        evidence: One value a record.
        subject: Whose records.
        codes: ``(P,)`` sorted codes of patients.

    Returns:
        ``(P,)``, NaN for a patient without a value.
    """
    patient = subject.patient[evidence.row]
    wanted = np.isin(patient, codes) & np.isfinite(evidence.value)
    place = np.searchsorted(codes, patient[wanted])
    total = np.bincount(place, weights=evidence.value[wanted], minlength=codes.size)
    n = np.bincount(place, minlength=codes.size)
    means: NDArray[np.float64] = np.full(codes.size, math.nan)
    np.divide(total, n, out=means, where=n > 0)
    return means


def _edges(values: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """Borders that are round numbers: the value of nobody in particular."""
    low, high = np.quantile(values, (0.01, 0.99))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    step = 10.0 ** math.floor(math.log10((high - low) / cells))
    width = next(step * by for by in (1, 2, 2.5, 5, 10) if step * by * cells >= high - low)
    first = math.floor(low / width) * width
    edges: NDArray[np.float64] = np.round(
        first + width * np.arange(math.ceil((high - first) / width) + 1), 12
    )
    return edges


def _counts(x: Any, y: Any, x_edges: Any, y_edges: Any) -> tuple[tuple[int, ...], ...]:
    at_x = np.clip(np.searchsorted(x_edges, x, side="right") - 1, 0, len(x_edges) - 2)
    at_y = np.clip(np.searchsorted(y_edges, y, side="right") - 1, 0, len(y_edges) - 2)
    shape = (len(y_edges) - 1, len(x_edges) - 1)
    flat = np.bincount(at_y * shape[1] + at_x, minlength=shape[0] * shape[1])
    return tuple(tuple(int(n) for n in row) for row in flat.reshape(shape))
