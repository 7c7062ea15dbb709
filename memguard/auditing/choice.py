"""Which probes an audit asks, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """

    sensitive: Sensitive | None = None
    canaries: Any = None
    claim: Any = None


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
    if isinstance(canaries, CanaryProbe):
        return canaries
    claim = setting.claim
    if claim is None:
        return CanaryProbe(canaries=canaries)
    return CanaryProbe(canaries=canaries, claimed_epsilon=claim.epsilon, delta=claim.delta)


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
    return found
