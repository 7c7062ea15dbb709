"""Lightning callbacks: thin adapters that hold no arithmetic."""

from __future__ import annotations

from memguard.callbacks.dpsgd import DPSGD
from memguard.callbacks.monitor import LeakageMonitor

__all__ = ["DPSGD", "LeakageMonitor"]
