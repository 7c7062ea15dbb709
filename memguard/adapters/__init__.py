"""How to ask a model: log-probabilities, continuations and embeddings of code sequences, whatever the module."""

from __future__ import annotations

from memguard.adapters.base import Ability, ModelAdapter

__all__ = ["Ability", "ModelAdapter"]
