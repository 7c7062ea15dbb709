"""T2: sensitive codes on two axes, what the model memorized and what anybody could infer."""

from __future__ import annotations

from memguard.probes.attribute.probe import AttributeProbe

__all__ = ["AttributeProbe"]
