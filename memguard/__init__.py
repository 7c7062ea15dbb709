"""Watch a model while it trains on health records, and say which patients it memorizes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memguard.auditing.audit import audit
    from memguard.auditing.examine import Audit
    from memguard.auditing.light import LightProbes
    from memguard.callbacks.deduplicate import Deduplicate
    from memguard.callbacks.dpsgd import DPSGD
    from memguard.callbacks.goldfish import GoldfishLoss
    from memguard.callbacks.mitigate import DropFlagged, FloodFlagged, FloorFlagged, Reweight
    from memguard.callbacks.monitor import LeakageMonitor
    from memguard.callbacks.planted import PlantedCanaries
    from memguard.callbacks.stopping import LeakageStopping
    from memguard.comparing.compare import compare
    from memguard.comparing.study import Arm, Study
    from memguard.errors import MemguardError, MemguardWarning
    from memguard.preflight import check

__version__ = "0.1.0.dev0"

__all__ = [
    "DPSGD",
    "Arm",
    "Audit",
    "Deduplicate",
    "DropFlagged",
    "FloodFlagged",
    "FloorFlagged",
    "GoldfishLoss",
    "LeakageMonitor",
    "LeakageStopping",
    "LightProbes",
    "MemguardError",
    "MemguardWarning",
    "PlantedCanaries",
    "Reweight",
    "Study",
    "audit",
    "check",
    "compare",
]

# Lightning and torch take seconds to import: what needs them is loaded when it is first asked for. A module must
# not have the name of what it holds: once imported, it would stand in its place.
_HOMES = {
    "Arm": "memguard.comparing.study",
    "Audit": "memguard.auditing.examine",
    "DPSGD": "memguard.callbacks.dpsgd",
    "Deduplicate": "memguard.callbacks.deduplicate",
    "DropFlagged": "memguard.callbacks.mitigate",
    "FloodFlagged": "memguard.callbacks.mitigate",
    "FloorFlagged": "memguard.callbacks.mitigate",
    "GoldfishLoss": "memguard.callbacks.goldfish",
    "LeakageMonitor": "memguard.callbacks.monitor",
    "LeakageStopping": "memguard.callbacks.stopping",
    "LightProbes": "memguard.auditing.light",
    "PlantedCanaries": "memguard.callbacks.planted",
    "Reweight": "memguard.callbacks.mitigate",
    "MemguardError": "memguard.errors",
    "MemguardWarning": "memguard.errors",
    "Study": "memguard.comparing.study",
    "audit": "memguard.auditing.audit",
    "check": "memguard.preflight",
    "compare": "memguard.comparing.compare",
}
# So that ``memguard.metrics.MembershipAUROC`` works after ``import memguard`` alone.
_ROOMS = ("attacks", "metrics")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"memguard.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
