"""What the probes compare the audited model with, and what the report says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.auditing.models import CountModels, NoModels, Prepared, Wanted
from memguard.auditing.sides import Sides
from memguard.probes.subject import Subject
from memguard.references.match import Match, match
from memguard.report.audit import References

__all__ = ["compared"]


def compared(
    prepared: Prepared, wanted: Wanted, adapter: ModelAdapter | None, subject: Subject, sides: Sides
) -> tuple[Any, NDArray[np.float64], References]:
    """The references that are there, or counts in their place, or none.

    Args:
        prepared: Trained references, where there are any.
        wanted: As `memguard.audit` takes it.
        adapter: How the audited model is asked; references are asked in the same way.
        subject: Whom the audit is about.
        sides: Both of them, with the losses of the audited model.

    Returns:
        What the probes ask beside the audited model, its losses ``(K, N + M)``, and what the report says of it.
    """
    if prepared.pool is not None:
        pool = prepared.pool if adapter is None else prepared.pool.asked_through(adapter)
        unit = sides.target.unit
        like = match(
            sides.target.loss, prepared.loss, pool.in_mask, subject.member, subject.patient, unit=unit
        )
        said = References(
            kind=pool.kind,
            count=len(pool),
            comparison=_numbers(like),
            alike=like.matches,
            notes=(*prepared.notes, str(like)),
        )
        return pool, prepared.loss, said
    codes = sides.content.codes
    if wanted != "none" and codes is not None:
        size = adapter.vocabulary if adapter is not None else int(codes.values.max(initial=0)) + 1
        counts = CountModels(codes, subject.patient, size, subject.member)
        note = (
            "Counts of what came after what in the training records, without the patient who is asked about, stand in "
            "for reference models."
        )
        return counts, counts.losses(), References(kind="counts", count=1, notes=(*prepared.notes, note))
    return NoModels(len(subject)), prepared.loss, References(kind="none", notes=prepared.notes)


def _numbers(found: Match) -> dict[str, float]:
    """Of the audited model, and the mean over references."""
    held_out, gap = found.held_out[np.isfinite(found.held_out)], found.gap[np.isfinite(found.gap)]
    numbers = {
        "held-out loss": found.target_held_out,
        "gap to the loss on trained patients": found.target_gap,
    }
    if held_out.size and gap.size:
        numbers |= {
            "held-out loss of references": float(held_out.mean()),
            "gap of references": float(gap.mean()),
        }
    return numbers
