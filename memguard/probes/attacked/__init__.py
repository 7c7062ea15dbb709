"""T4, membership in full: every attack over patients, the strongest with an interval that allows for the choice."""

from __future__ import annotations

from memguard.probes.attacked.probe import MembershipProbe

__all__ = ["MembershipProbe"]
