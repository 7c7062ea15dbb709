"""Counts of what came after what, in place of reference models while the model trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.auditing.light import LightProbes
from memguard.auditing.models import CountModels, NoModels
from memguard.probes.asked import Models, Probe
from memguard.probes.subject import Subject
from memguard.probes.watch import Watch

__all__ = ["expected_seconds", "references_of"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_COUNTED = 2_000_000  # codes that are counted at most: some seconds, and 200 MB
# Seconds a code, on a slow core; only what is expected before anything is known.
_COUNTING, _SCORING = 3e-6, 8e-6


def expected_seconds(watch: Watch, light: LightProbes) -> float:
    """What the counts cost about, before any were made.

    Args:
        watch: Whose records are counted.
        light: Settings.
    """
    if light.references == "none" or watch.members.store.kind != "codes":
        return 0.0
    sides = [int(side.tokens.sum()) for side in (watch.members, watch.held_out)]
    return _COUNTING * min(sides[0], _COUNTED) + _SCORING * (sides[1] if "membership" in light.names else 0)


def references_of(
    light: LightProbes,
    subject: Subject,
    adapter: ModelAdapter | None,
    probes: Sequence[Probe],
    loss: Floats,
    seed: int,
) -> tuple[Models, Floats]:
    """Counts of the members' records. The model knows nothing of held-out patients, and neither do the counts.

    Args:
        light: Settings.
        subject: Whom the probes ask about.
        adapter: How the model is asked, if it can be.
        probes: That are to be asked.
        loss: ``(n,)`` of the model, NaN where not measured.
        seed: Of the draw of patients, where there are too many to count.

    Returns:
        The models, and their losses ``(K, n)``, NaN where nobody needs them.
    """
    codes = subject.content.codes
    if light.references == "none" or codes is None or not subject.n_members:
        return NoModels(len(subject)), np.zeros((0, len(subject)))
    size = adapter.vocabulary if adapter is not None else int(codes.values.max(initial=0)) + 1
    counts = CountModels(codes, subject.patient, size, _counted(subject, seed))
    # Only these read losses of references; they are dear where there are many records.
    read = any(one.name == "membership" or not type(one).__module__.startswith("memguard.") for one in probes)
    return counts, counts.losses(np.flatnonzero(np.isfinite(loss) & read))


def _counted(subject: Subject, seed: int) -> Bools:
    """Members' records, those of patients drawn at random where there are too many to count."""
    member = subject.member
    lengths = np.asarray(subject.sequences.lengths)
    if lengths[member].sum() <= _COUNTED:
        return member
    patients, code = np.unique(subject.patient[member], return_inverse=True)
    order = np.random.default_rng([seed, 47]).permutation(patients.size)
    size = np.bincount(code, weights=lengths[member], minlength=patients.size)[order]
    drawn = patients[order[np.cumsum(size) <= _COUNTED]]
    return member & np.isin(subject.patient, drawn)
