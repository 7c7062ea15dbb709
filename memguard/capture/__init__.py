"""What a training loop already reveals: the loss of each record, and which record it was."""

from __future__ import annotations

from memguard.capture.content import batch_content
from memguard.capture.fetch import Fetched, fetch
from memguard.capture.ids import IndexTracker
from memguard.capture.losses import CapturedLoss, LossCall, LossCapture, attribute
from memguard.capture.session import Capture, Observation, collect
from memguard.capture.steps import StepCapture, evaluate
from memguard.capture.traces import LossTraces

__all__ = [
    "Capture",
    "CapturedLoss",
    "Fetched",
    "IndexTracker",
    "LossCall",
    "LossCapture",
    "LossTraces",
    "Observation",
    "StepCapture",
    "attribute",
    "batch_content",
    "collect",
    "evaluate",
    "fetch",
]
