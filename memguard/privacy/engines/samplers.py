"""The gradient of each record for the layers that have a formula, from a layer's input and its output's gradient.

The formulas are Opacus's (``opacus.grad_sample``), with our own where Opacus 1.6 fails or differs from autograd:
embeddings with a padding row, layer norms without bias, Hugging Face's ``Conv1D``, embedding bags.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleHooks  # type: ignore[import-untyped]
from opacus.layers.dp_rnn import RNNLinear  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["Rule", "leading_dims", "linear_rows", "rule_of"]

Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]
"""``(layer, input (n, ...), gradient of the output (n, ...)) -> {parameter name: (n, *shape)}``."""


def linear_rows(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``x @ weight.T + bias``.

    Args:
        x: ``(n, ..., in)``.
        g: ``(n, ..., out)``.

    Returns:
        ``(n, out, in)`` and ``(n, out)``.

    Example:
        >>> weight, bias = linear_rows(torch.ones(2, 5, 3), torch.ones(2, 5, 1))
        >>> weight.tolist(), bias.tolist()
        ([[[5.0, 5.0, 5.0]], [[5.0, 5.0, 5.0]]], [[5.0], [5.0]])
    """
    x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    return torch.bmm(g.transpose(1, 2), x), g.sum(1)


def rule_of(layer: nn.Module) -> Rule | None:
    """The formula for a layer, ``None`` if there is none that is known to hold for it.

    Subclasses count as the layer whose ``forward`` they inherit.

    Example:
        >>> rule_of(nn.Linear(2, 2)).__name__, rule_of(nn.Bilinear(2, 2, 2))
        ('_linear', None)
    """
    own = {name for name, p in layer.named_parameters(recurse=False)}
    if not own <= {"weight", "bias"} or "weight" not in own:
        return None  # reparametrized: what the layer computes with is not what is trained
    if isinstance(layer, nn.modules.conv._ConvNd) and (
        layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return None
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
        return None
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return None
    if _is_hf_conv1d(layer):
        return _hf_conv1d
    for kind in type(layer).__mro__:
        if kind.__dict__.get("forward") is not None:
            return _OURS.get(kind) or _opacus(kind)
    return None


def leading_dims(layer: nn.Module, x: Tensor) -> int | None:
    """How many dimensions of a layer's input are no features, so that records, time and others may stand there.

    Returns:
        Their number; ``None`` for layers that want records first, whatever follows (convolutions, group norms).

    Example:
        >>> leading_dims(nn.Linear(8, 2), torch.zeros(4, 5, 8)), leading_dims(nn.Conv1d(8, 2, 1), torch.zeros(4, 8, 5))
        (2, None)
    """
    if isinstance(layer, nn.Embedding):
        return x.dim()
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return x.dim() - len(layer.normalized_shape)
    if isinstance(layer, nn.Linear) or _is_hf_conv1d(layer):
        return x.dim() - 1
    return None


def _linear(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    weight, bias = linear_rows(x, g)
    return {"weight": weight, "bias": bias}


def _hf_conv1d(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    weight, _ = linear_rows(g, x)  # its weight is (in, out)
    return {"weight": weight, "bias": g.reshape(len(g), -1, g.shape[-1]).sum(1)}


def _embedding(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    assert isinstance(layer, nn.Embedding)
    n, width = len(x), layer.embedding_dim
    rows = g.new_zeros(n, *layer.weight.shape)
    index = x.reshape(n, -1, 1).expand(-1, -1, width)
    rows.scatter_add_(1, index, g.reshape(n, -1, width))
    if layer.padding_idx is not None:
        rows[:, layer.padding_idx] = 0  # of this layer only: a tied output layer trains that row
    return {"weight": rows}


def _layer_norm(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    assert isinstance(layer, nn.LayerNorm)
    shape = layer.normalized_shape
    normal = F.layer_norm(x, shape, eps=layer.eps)
    return {
        "weight": (normal * g).reshape(len(x), -1, *shape).sum(1),
        "bias": g.reshape(len(x), -1, *shape).sum(1),
    }


def _rms_norm(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    assert isinstance(layer, nn.RMSNorm)
    shape = layer.normalized_shape
    normal = F.rms_norm(x, list(shape), eps=layer.eps)
    return {"weight": (normal * g).reshape(len(x), -1, *shape).sum(1)}


_OURS: dict[type, Rule] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
}


def _opacus(kind: type) -> Rule | None:
    sampler = GradSampleHooks.GRAD_SAMPLERS.get(kind)
    if sampler is None or kind in (nn.EmbeddingBag, RNNLinear):
        return None

    def rule(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        found = sampler(layer, [x], g)
        return {name: found[p] for name, p in layer.named_parameters(recurse=False) if p in found}

    return rule


def _is_hf_conv1d(layer: nn.Module) -> bool:
    """Without an import of transformers, which may not be there."""
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"
