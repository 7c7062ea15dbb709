"""How to ask a model: log-probabilities, continuations and embeddings of code sequences, whatever the module."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memguard.adapters.base import Ability, ModelAdapter

if TYPE_CHECKING:
    from memguard.adapters.causal import CausalAdapter
    from memguard.adapters.counts import CountsAdapter
    from memguard.adapters.find import Found, find_adapter
    from memguard.adapters.hf import HFAdapter
    from memguard.adapters.meds_eic_ar import MEICARAdapter

__all__ = [
    "Ability",
    "CausalAdapter",
    "CountsAdapter",
    "Found",
    "HFAdapter",
    "MEICARAdapter",
    "ModelAdapter",
    "find_adapter",
]

# Probes import the contract, and are arithmetic: torch is loaded when an adapter of a module is first asked for.
_HOMES = {
    "CausalAdapter": "causal",
    "CountsAdapter": "counts",
    "Found": "find",
    "HFAdapter": "hf",
    "MEICARAdapter": "meds_eic_ar",
    "find_adapter": "find",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"memguard.adapters.{_HOMES[name]}"), name)
