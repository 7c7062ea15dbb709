"""Losses of planted canaries under a model that gives no probabilities of codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from memguard.auditing.live import LiveRun
from memguard.auditing.planted import canaries_by
from memguard.capture.fetch import fetch
from memguard.probes.canary import CanaryProbe
from memguard.records.canaries import FeatureCanaries

__all__ = ["by_loss"]


def by_loss(run: LiveRun, canaries: Any, data: Any) -> Any:
    """Rows of a table that were planted as a probe with their losses, of included and left-out ones alike.

    They are read and measured as training records are: the items of the datamodule that planted them, the collate
    function of its training loader, the validation step of the run.

    Args:
        run: Under way.
        canaries: Of an audit.
        data: What the audit was called with.

    Returns:
        A `CanaryProbe`; the canaries as they are where they are sequences, or where nobody knows their items.
    """
    loader = run.capture.tracker.loader("train") if run.loader is None else run.loader
    known = canaries_by(data) is not None and hasattr(data, "items")
    if not isinstance(canaries, FeatureCanaries) or not known or not isinstance(loader, DataLoader):
        return canaries
    if loader.batch_sampler is None:  # batches are made by the data set itself
        return canaries
    windows = fetch(data.items(), np.arange(len(canaries)), loader.collate_fn)
    loss = np.full(len(canaries), np.nan)
    for positions, one in zip(
        windows.positions, run.capture.evaluate(windows, dataloader_idx=0), strict=True
    ):
        loss[positions] = one.loss.detach().double().cpu().numpy()
    return CanaryProbe(included=canaries.included, canary_loss=loss)
