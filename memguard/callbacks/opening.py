"""The watch of a run, before its first step."""

from __future__ import annotations

from typing import Any

from memguard.capture.heldout import HeldOutSource
from memguard.capture.session import Capture
from memguard.capture.sides import fingerprint, two_sides
from memguard.probes.sides import WatchSettings
from memguard.probes.watch import Watch

__all__ = ["open_watch"]


def open_watch(
    capture: Capture,
    source: HeldOutSource,
    record_to_patient: Any,
    settings: WatchSettings,
    *,
    strict: bool = True,
) -> Watch:
    """A watch of both sides; arguments and errors are those of `memguard.capture.sides.two_sides`."""
    members, held_out = two_sides(capture, source, record_to_patient, strict=strict)
    return Watch(members, held_out, settings, fingerprint=fingerprint(members, held_out))
