"""Lightning callbacks: thin adapters that hold no arithmetic."""

from __future__ import annotations

from memguard.callbacks.monitor import LeakageMonitor

__all__ = ["LeakageMonitor"]
