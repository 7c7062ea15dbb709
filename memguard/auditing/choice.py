"""Which probes an audit asks, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memguard.errors import MemguardError
from memguard.probes.asked import Probe
from memguard.probes.attacked import MembershipProbe
from memguard.probes.attribute import AttributeProbe
from memguard.probes.canary import CanaryProbe
from memguard.probes.copies import CopiesProbe
from memguard.probes.embedding import EmbeddingProbe
from memguard.probes.perturbation import PerturbationProbe
from memguard.probes.trajectory import TrajectoryProbe
from memguard.records.sensitivity import Sensitive

__all__ = ["PROBES", "Setting", "choose"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What probes are made from.

    Attributes:
        sensitive: Which tokens are sensitive; ``None`` where names are unknown.
        canaries: Planted ones; ``None`` without.
        claim: Claimed epsilon and delta; ``None`` without.
        comparable: Whether the claim is for what the coin of one canary decided on.
    """

    sensitive: Sensitive | None = None
    canaries: Any = None
    claim: Any = None
    comparable: bool = True


PROBES: dict[str, Callable[[Setting], Probe]] = {
    "membership": lambda s: MembershipProbe(),
    "attribute": lambda s: AttributeProbe(sensitive=s.sensitive),
    "perturbation": lambda s: PerturbationProbe(sensitive=s.sensitive),
    "trajectory": lambda s: TrajectoryProbe(),
    "embedding": lambda s: EmbeddingProbe(categories=_categories(s.sensitive)),
    "copies": lambda s: CopiesProbe(),
    "canary": lambda s: _canary(s),
}


def _categories(sensitive: Sensitive | None) -> dict[str, Any] | None:
    if sensitive is None:
        return None
    return {key: sensitive.member[:, c] for c, key in enumerate(sensitive.categories)}


def _canary(setting: Setting) -> Probe:
    canaries = setting.canaries
    if canaries is None:
        raise MemguardError(
            "no canaries",
            "there is nothing that a coin decided on",
            "pass canaries= with those that were planted (memguard.records.canaries)",
        )
    return canaries if isinstance(canaries, CanaryProbe) else CanaryProbe(canaries=canaries)


def _beside(probe: Probe, setting: Setting) -> Probe:
    """The probe with the delta of the claim, where a person set none: at a smaller one nothing could be compared."""
    if setting.claim is None or not isinstance(probe, CanaryProbe | MembershipProbe):
        return probe
    if probe.delta is None:
        probe = replace(probe, delta=setting.claim.delta)
    if isinstance(probe, CanaryProbe) and probe.claimed_epsilon is None and setting.comparable:
        probe = replace(probe, claimed_epsilon=setting.claim.epsilon)
    return probe


def choose(wanted: str | Sequence[str | Probe], setting: Setting) -> list[Probe]:
    """The probes to ask.

    Args:
        wanted: ``"all"``, names, or probes with settings of their own.
        setting: What those given by name are made from.

    Raises:
        MemguardError: If a name is unknown.
    """
    names: Sequence[str | Probe] = list(PROBES) if wanted == "all" else wanted
    if isinstance(names, str):
        names = [names]
    found: list[Probe] = []
    for one in names:
        if not isinstance(one, str):
            found.append(one)
        elif one in PROBES:
            if one != "canary" or setting.canaries is not None or wanted != "all":
                found.append(PROBES[one](setting))
        else:
            raise MemguardError(
                f"a probe named {one!r}", "nothing would be asked", f"use one of {', '.join(PROBES)}"
            )
    return [_beside(one, setting) for one in found]
