"""T5: prompts made somebody else's, and whose leak it is that stays or goes."""

from __future__ import annotations

from memguard.probes.perturbation.probe import PerturbationProbe

__all__ = ["PerturbationProbe"]
