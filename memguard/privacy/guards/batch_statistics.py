"""Layers that mix the records of a batch, or keep what they saw of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from memguard.capture.stillness import forked_rng
from memguard.errors import PrivacyError
from memguard.privacy.guards.finding import Finding, Verdict

__all__ = ["BatchStatistics", "batch_statistics", "changed_buffers", "moving_buffers"]


@dataclass(frozen=True, kw_only=True)
class BatchStatistics(Verdict):
    """What :func:`batch_statistics`, :func:`changed_buffers` or :func:`moving_buffers` found.

    Attributes:
        names: Of the modules, or of the buffers.
    """

    names: tuple[str, ...]


def batch_statistics(module: nn.Module) -> BatchStatistics:
    """Find layers that normalize by the batch or keep running statistics of it, by their type.

    Args:
        module: The model, in the modes that it is trained in.

    Returns:
        The verdict: BatchNorm and SyncBatchNorm of any dimension, subclasses and lazy ones, and InstanceNorm with
        running statistics. One that is in eval mode and has statistics to use is left alone: it mixes nothing.

    Guarantees:
        The types of torch and their subclasses are found. A standardization that is written out in a ``forward`` is
        not; :func:`~memguard.privacy.guards.sensitivity.sensitivity` sees that one.

    Example:
        >>> batch_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))).names
        ('1',)
        >>> batch_statistics(nn.Sequential(nn.GroupNorm(1, 2), nn.InstanceNorm1d(2))).ok
        True
    """
    found = {name: layer for name, layer in module.named_modules() if _mixes(layer)}
    finding = None
    if found:
        kinds = sorted({type(layer).__name__ for layer in found.values()})
        finding = Finding(
            "batch_statistics/layer",
            f"{', '.join(kinds)} at {', '.join(list(found)[:5])}",
            "it normalizes each record by the others of the batch, or keeps averages of them in the model, without "
            "clipping and without noise",
            "replace it by GroupNorm or LayerNorm, or freeze it in eval mode with statistics of public data",
        )
    return BatchStatistics(finding=finding, names=tuple(found))


def changed_buffers(module: nn.Module, forwards: Sequence[Callable[[], Any]]) -> BatchStatistics:
    """Run the model in its modes and see which buffers the data change.

    Args:
        module: Whose buffers are watched; they are as before afterwards.
        forwards: One or more calls that run the model, each on the records of different patients. A buffer that all
            of them change in the same way (a counter, the vector of a spectral norm) knows nothing of the records and
            is left out; with a single call every change is a finding.

    Returns:
        The verdict.

    Raises:
        PrivacyError: Without a call.

    Guarantees:
        Buffers are saved with the model and are neither clipped nor noised, so one that the data change leaks them.
        Attributes that are no buffers are not seen, nor are branches that these records do not take.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> changed_buffers(net, [lambda: net(torch.zeros(4, 2)), lambda: net(torch.ones(4, 2))]).names
        ('running_mean',)
    """
    if not forwards:
        raise PrivacyError(
            "no forward call", "buffers are compared before and after one", "pass at least one call"
        )
    before = _buffers(module)
    after: list[dict[str, Tensor]] = []
    for forward in forwards:
        after += _after(module, [forward], before)
    if len(after) == 1:
        names = [name for name, value in after[0].items() if not _equal(value, before.get(name))]
    else:
        known = sorted({name for each in after for name in each})
        names = [
            name for name in known if any(not _equal(e.get(name), after[0].get(name)) for e in after[1:])
        ]
    finding = None
    if names:
        finding = Finding(
            "batch_statistics/buffer",
            f"{len(names)} buffer{'s' if len(names) > 1 else ''} that training data change: {', '.join(names[:5])}",
            "buffers are part of the model, and nothing clips or noises what they hold",
            "remove them, keep them fixed during training, or compute them on public data",
        )
    return BatchStatistics(finding=finding, names=tuple(names))


def moving_buffers(module: nn.Module, forward: Callable[[], Any]) -> BatchStatistics:
    """Run the model twice on the same records and see which buffers move on each time.

    Args:
        module: Whose buffers are watched; they are as before afterwards.
        forward: Runs the model in its modes.

    Returns:
        The verdict.

    Guarantees:
        Such a buffer (a counter, the vector of a spectral norm) knows nothing of what the records hold, and all the
        same how often the model ran. With patients drawn by chance that is a count of patients, saved without noise;
        and what is computed with it depends on who came before. A cache that is made once and then stays is none.

    Example:
        >>> net = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        >>> "parametrizations.weight.0._u" in moving_buffers(net, lambda: net(torch.ones(1, 3))).names
        True
    """
    once, twice = _after(module, [forward, forward], _buffers(module))
    moved = {name for name, value in twice.items() if not _equal(value, once.get(name))}
    # Where its power iteration has settled, a spectral norm moves as soon as the weights do.
    moved |= {
        f"{path}._u"
        for path, part in module.named_modules()
        if type(part).__name__ == "_SpectralNorm" and part.training
    }
    names = sorted(moved)
    finding = None
    if names:
        finding = Finding(
            "batch_statistics/moving",
            f"{len(names)} buffer{'s' if len(names) > 1 else ''} that every run of the model moves: "
            f"{', '.join(names[:5])}",
            "how often it runs depends on how many were drawn, which is saved with the model and not noised",
            "count steps in on_train_batch_start, and give up spectral_norm (each gradient is bounded as it is), or "
            "apply torch.nn.utils.parametrize.remove_parametrizations before training",
        )
    return BatchStatistics(finding=finding, names=tuple(names))


def _mixes(layer: nn.Module) -> bool:
    if not isinstance(layer, _NormBase):
        return False
    if isinstance(layer, _BatchNorm):
        return layer.training or layer.running_mean is None
    return bool(layer.track_running_stats) and layer.training


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_buffers()}


def _after(
    module: nn.Module, forwards: Sequence[Callable[[], Any]], before: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """The buffers after each of some runs, one upon the other; they are as before afterwards."""
    after = []
    try:
        for forward in forwards:
            with forked_rng(0):
                forward()
            after.append(_buffers(module))
    finally:
        _restore(module, before)
    return after


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))


def _restore(module: nn.Module, before: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in module.named_buffers():
            if name in before and value.shape == before[name].shape:
                value.copy_(before[name])
