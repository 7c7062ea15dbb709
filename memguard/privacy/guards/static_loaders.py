"""Training loaders: can patients be drawn from them by coins?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import BatchSampler, IterableDataset, WeightedRandomSampler

from memguard.privacy.guards.finding import Finding

__all__ = ["scan_loaders"]


def scan_loaders(loaders: Any) -> list[Finding]:
    """Findings about what a training step takes its batches from.

    Args:
        loaders: A DataLoader, a collection of them or a CombinedLoader; ``None`` is not known yet.

    Returns:
        Findings.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> scan_loaders(DataLoader([1, 2, 3], shuffle=True)), scan_loaders([DataLoader([1]), DataLoader([2])])[0].id
        ([], 'static/loaders')
    """
    leaves = _leaves(loaders)
    found = []
    if len(leaves) > 1:
        found.append(
            Finding(
                "static/loaders",
                f"{len(leaves)} training loaders",
                "a step then holds patients of several draws, whose rates and overlaps are unknown",
                "concatenate the data sets and use one loader",
            )
        )
    for loader in leaves:
        found += _one(loader)
    return found


def _one(loader: Any) -> list[Finding]:
    dataset, name = getattr(loader, "dataset", None), type(loader).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        what = type(dataset).__name__ if dataset is not None else name
        return [
            Finding(
                "static/iterable",
                f"training data that cannot be indexed ({what})",
                "patients cannot be drawn by independent coins from a stream",
                "use a map-style dataset, with __getitem__ and __len__",
            )
        ]
    if isinstance(getattr(loader, "sampler", None), WeightedRandomSampler):
        return [
            Finding(
                "static/weighted_sampler",
                "a WeightedRandomSampler",
                "it draws with other rates than the accountant knows, the same record several times",
                "use budgets= for rates of one's own for groups of patients, or weights in the loss of each record",
            )
        ]
    batches = getattr(loader, "batch_sampler", None)
    own = type(batches).__module__.startswith("memguard.")
    if batches is not None and type(batches) is not BatchSampler and not own:
        return [
            Finding(
                "static/batch_sampler",
                f"a batch sampler of its own ({type(batches).__name__})",
                "it gives way to independent draws of patients, so that its batches (buckets by length, balanced "
                "classes) do not come about",
                "nothing, if training works without it",
                severity="ledger",
                warn=True,
            )
        ]
    return []


def _leaves(loaders: Any) -> list[Any]:
    if loaders is None:
        return []
    loaders = getattr(loaders, "flattened", loaders)  # of a CombinedLoader
    if isinstance(loaders, Mapping):
        return [leaf for each in loaders.values() for leaf in _leaves(each)]
    if isinstance(loaders, list | tuple):
        return [leaf for each in loaders for leaf in _leaves(each)]
    return [loaders]
