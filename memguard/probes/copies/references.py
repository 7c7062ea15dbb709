"""What a model gives away beyond references that never saw a patient, and beyond those that saw no copy either."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.probes.asked import Asked
from memguard.probes.clock import Clock
from memguard.probes.copies.asking import Beginning
from memguard.probes.copies.groups import Groups
from memguard.probes.result import NotTested
from memguard.probes.strangers import never_saw
from memguard.probes.subject import Subject

__all__ = ["beyond_references"]

Floats = NDArray[np.float64]


def beyond_references(
    subject: Subject,
    asked: Asked,
    groups: Groups,
    begin: Beginning,
    own: Floats,
    clock: Clock,
    gaps: list[NotTested],
) -> dict[str, Floats]:
    """Nats per code beyond references that never saw the patient, and beyond those that saw no copy either."""
    models, n = asked.references, len(begin.rows)
    if len(models) == 0:
        gaps.append(
            NotTested(
                what="what the model gives beyond models that never saw the patient",
                why="there are no reference models",
                fix="train a pool of references",
            )
        )
        return {}
    out = {"patient": never_saw(models.in_mask, subject.patient)[:, begin.rows]}
    if models.kind == "counts":  # they leave the patient out and keep the copies
        gaps.append(
            NotTested(
                what="what the model gives beyond models that saw no copy",
                why="counts leave out the patient and no copies",
                fix="train a pool of references",
            )
        )
    else:
        out["copies"] = never_saw(models.in_mask, groups.unit)[:, begin.rows]
    total = {name: np.zeros(n) for name in out}
    count = {name: np.zeros(n, np.int64) for name in out}
    for k, adapter in enumerate(models.adapters()):
        who = np.flatnonzero(out["patient"][k])
        if who.size == 0 or "log_probs" not in adapter.abilities:
            continue
        if clock.over():
            why = "the time was used up"
            gaps.append(NotTested(what=f"references from number {k} on", why=why, fix="allow more seconds"))
            break
        part = Beginning(
            rows=begin.rows[who],
            prompts=begin.prompts.take(who),
            truth=begin.truth.take(who),
            reader=begin.reader,
        )
        value = part.log_prob(adapter, subject.patient[part.rows])
        for name, mask in out.items():
            of = mask[k, who]
            total[name][who[of]] += value[of]
            count[name][who[of]] += 1
    found = {}
    for name, sums in total.items():
        mean = np.divide(sums, count[name], out=np.full(n, np.nan), where=count[name] > 0)
        found[name] = own - mean
    return found
