"""What a trajectory probe found, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memguard.attacks.estimate import Estimate
from memguard.probes.trajectory.reading import Reader
from memguard.probes.trajectory.summary import TierResult

__all__ = ["answer_text", "notes"]


def answer_text(results: Sequence[TierResult], found: Mapping[str, Estimate], samples: int) -> str:
    """What was found, in a sentence."""
    chosen = max(results, key=lambda r: int(r.counted().sum()))
    tier, n = chosen.plan.tier, int((chosen.counted() & chosen.member).sum())
    against = "than references that never saw them" if chosen.depth else "to the truth"
    parts = [f"Asked with {chosen.words} of {n} members and as many never-trained patients,"]
    key = f"{tier}.distance.mean.minus_held_out"
    if key in found:
        parts.append(
            f"the model's continuations come {found[key]} closer {against} for members than for never-trained "
            f"patients (transport distance, mean of {samples} samples);"
        )
    key = f"{tier}.run.best.minus_held_out"
    parts.append(f"the longest run written word for word is {found[key]} codes longer for members.")
    return " ".join(parts)


def notes(results: Sequence[TierResult], how: str, source: str, reader: Reader) -> list[str]:
    """Caveats."""
    out = [how]
    if not any(r.depth for r in results):
        out.append("Without references a member's number is compared with never-trained patients alone.")
    elif any(r.depth and not r.counted().all() for r in results):
        out.append("Patients compared with too few references, as time ran out, are left out.")
    if source == "of the target":
        out.append(
            "Code vectors are the target's own, for target and references alike: codes that the model holds to be "
            "alike are near."
        )
    out.append(
        "Structural tokens (time, padding, begin and end) count neither as codes nor as verbatim evidence; a run's "
        "information weighs each code by the log of patients over its carriers."
        if reader.structural.any()
        else "No names of structural tokens are known: every token counts as a code; a run's information weighs each "
        "code by the log of patients over its carriers."
    )
    out.append(
        "A neighbour ratio below zero minus held-out is a leak; every other difference is one above zero."
    )
    return out
