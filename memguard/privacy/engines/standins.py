"""Recurrent layers and attention, computed so that the gradients of single records come up.

torch runs these layers as one operation over packed weights. A stand-in computes the same outputs from the same
parameters while an engine listens; the layer itself stays in the model, with its parameters and its checkpoint keys,
and runs as ever in evaluation.

Opacus's own replacements are not used: its recurrent layers number the rows of a packed batch by length, so that one
row would hold parts of two patients, and its attention refuses causal hints and a mask with ``batch_first``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from memguard.privacy.engines.rows import Rows
from memguard.privacy.engines.samplers import linear_rows
from memguard.privacy.engines.spread import Spread, UntoldError

__all__ = ["StandIn", "stand_in_of"]

StandIn = Callable[..., Any]
"""``(rows, layer, *args, **kwargs)`` -> what ``layer(*args, **kwargs)`` returns."""


def stand_in_of(layer: nn.Module) -> StandIn | None:
    """The stand-in for a layer, ``None`` if it needs none or there is none.

    Example:
        >>> stand_in_of(nn.GRU(2, 2)).__name__, stand_in_of(nn.Linear(2, 2))
        ('recurrent', None)
    """
    if type(layer) in (nn.GRU, nn.LSTM, nn.RNN) and not getattr(layer, "proj_size", 0):
        return recurrent
    return attention if type(layer) is nn.MultiheadAttention else None


def linear(
    rows: Rows,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    part: slice | None = None,
) -> Tensor:
    """``F.linear`` with the rows ``part`` of a packed weight and bias, watched.

    Args:
        rows: The pass.
        x: ``(n, ..., in)``.
        weight: ``(out, in)``, the whole parameter.
        bias: ``(out,)``, the whole parameter.
        part: Which outputs.
    """
    at = slice(None) if part is None else part
    y = F.linear(x, weight[at], None if bias is None else bias[at])
    seen = x.detach()

    def take(g: Tensor) -> None:
        of_weight, of_bias = linear_rows(_like(seen, g), _wide(g))
        rows.add(weight, of_weight, part)
        if bias is not None:
            rows.add(bias, of_bias, part)

    rows.watch(y, take)
    return y


# -- recurrent layers ---


def recurrent(rows: Rows, layer: nn.RNNBase, input: Any, hx: Any = None) -> Any:  # noqa: A002
    """``nn.GRU``, ``nn.LSTM`` and ``nn.RNN``, of any depth, both directions, padded or packed.

    The gradient of a layer's input projection, over all steps at once, tells that of its recurrent projection too:
    they are added before the gates, but for the GRU's reset gate, which is a known factor.
    """
    packed = isinstance(input, PackedSequence)
    if packed:
        x, lengths = pad_packed_sequence(input, batch_first=True)
        alive = torch.arange(x.shape[1])[None] < lengths[:, None]
        alive = alive.to(x.device)[..., None]
    else:
        x = input if layer.batch_first else input.transpose(0, 1)
        alive = None
    if x.dim() != 3 or isinstance(x, Spread) or len(x) != rows.n:
        raise UntoldError(
            f"{type(layer).__name__} got {tuple(x.shape)} for {rows.n} records", "rows are no records"
        )
    is_lstm, directions = layer.mode == "LSTM", 2 if layer.bidirectional else 1
    shape = (layer.num_layers * directions, rows.n, layer.hidden_size)
    given = hx if is_lstm else (hx,)
    h0, c0 = (x.new_zeros(shape), x.new_zeros(shape)) if hx is None else (given[0], given[-1])
    lasts: list[tuple[Tensor, Tensor]] = []
    for depth in range(layer.num_layers):
        if depth and layer.dropout:
            x = F.dropout(x, layer.dropout, layer.training)
        outs = []
        for direction in range(directions):
            at = depth * directions + direction
            one, h, c = _one_direction(rows, layer, depth, bool(direction), x, h0[at], c0[at], alive)
            outs.append(one)
            lasts.append((h, c))
        x = torch.cat(outs, -1) if len(outs) > 1 else outs[0]
    h_n, c_n = (torch.stack([last[k] for last in lasts]) for k in range(2))
    if packed:
        order = input.sorted_indices
        data = x if order is None else x.index_select(0, order)
        long = lengths if order is None else lengths[order.to(lengths.device)]
        data = pack_padded_sequence(data, long, batch_first=True).data
        out: Any = PackedSequence(data, input.batch_sizes, order, input.unsorted_indices)
    else:
        out = x if layer.batch_first else x.transpose(0, 1)
    return out, ((h_n, c_n) if is_lstm else h_n)


def _one_direction(
    rows: Rows,
    layer: nn.RNNBase,
    depth: int,
    reverse: bool,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    alive: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(n, T, in)`` -> ``(n, T, hidden)`` and the last states; steps that are not ``alive`` leave the state."""
    suffix = f"_l{depth}{'_reverse' if reverse else ''}"
    w_ih, w_hh = (getattr(layer, f"weight_{kind}{suffix}") for kind in ("ih", "hh"))
    b_ih, b_hh = (getattr(layer, f"bias_{kind}{suffix}") if layer.bias else None for kind in ("ih", "hh"))
    gates = F.linear(x, w_ih, b_ih)
    steps = gates.unbind(1)
    before: list[Tensor] = [h] * len(steps)
    resets: list[Tensor] = []
    outs: list[Tensor] = [h] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        before[t] = h.detach()
        recur = F.linear(h, w_hh, b_hh)
        if layer.mode == "GRU":
            (i_r, i_z, i_n), (h_r, h_z, h_n) = steps[t].chunk(3, 1), recur.chunk(3, 1)
            r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
            resets.append(r.detach())
            n = torch.tanh(i_n + r * h_n)
            h_next, c_next = n + z * (h - n), c
        elif layer.mode == "LSTM":
            i, f, g, o = (steps[t] + recur).chunk(4, 1)
            c_next = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h_next = torch.sigmoid(o) * torch.tanh(c_next)
        else:
            h_next = (
                torch.tanh(steps[t] + recur) if layer.mode == "RNN_TANH" else torch.relu(steps[t] + recur)
            )
            c_next = c
        if alive is not None:
            now = alive[:, t]
            outs[t] = torch.where(now, h_next, torch.zeros_like(h_next))
            h, c = torch.where(now, h_next, h), torch.where(now, c_next, c)
        else:
            outs[t], h, c = h_next, h_next, c_next
    if reverse:
        resets.reverse()
    seen = x.detach()

    def take(g: Tensor) -> None:
        of_weight, of_bias = linear_rows(_like(seen, g), _wide(g))
        rows.add(w_ih, of_weight)
        if b_ih is not None:
            rows.add(b_ih, of_bias)
        g = _wide(g)
        if resets:
            width = layer.hidden_size
            g = torch.cat([g[..., : 2 * width], g[..., 2 * width :] * torch.stack(resets, 1).to(g.dtype)], -1)
        of_weight, of_bias = linear_rows(torch.stack(before, 1).to(g.dtype), g)
        rows.add(w_hh, of_weight)
        if b_hh is not None:
            rows.add(b_hh, of_bias)

    rows.watch(gates, take)
    return torch.stack(outs, 1), h, c


# -- attention ---


def attention(
    rows: Rows,
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention``; ``is_causal`` is a hint there, and the mask that comes with it says the same."""
    if any(t.dim() != 3 or isinstance(t, Spread) for t in (query, key, value)):
        raise UntoldError(
            "MultiheadAttention got inputs without a dimension for records", "rows are no records"
        )
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    if not layer.batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    n, heads, width = rows.n, layer.num_heads, layer.embed_dim
    if any(len(t) != n for t in (query, key, value)):
        raise UntoldError(f"MultiheadAttention got {len(query)} rows for {n} records", "rows are no records")
    mask = _additive(attn_mask, query.dtype)
    if mask is not None and mask.dim() == 3:
        mask = mask.view(n, heads, *mask.shape[1:])
    padding = _additive(key_padding_mask, query.dtype)

    q, k, v = _projected(rows, layer, query, key, value)
    if layer.bias_k is not None and layer.bias_v is not None:
        k = torch.cat([k, _copies(rows, layer.bias_k)], 1)
        v = torch.cat([v, _copies(rows, layer.bias_v)], 1)
    if layer.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    more = k.shape[1] - key.shape[1]
    if padding is not None:
        padding = F.pad(padding, (0, more))[:, None, None]
    if mask is not None:
        mask = F.pad(mask, (0, more))
        padding = mask if padding is None else mask + padding
    q, k, v = (t.reshape(n, t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
    p = layer.dropout if layer.training else 0.0
    weights = None
    if need_weights:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = F.dropout(torch.softmax(scores if padding is None else scores + padding, -1), p)
        out = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        out = F.scaled_dot_product_attention(q, k, v, padding, p)
    out = out.transpose(1, 2).reshape(n, -1, width)
    # A copy, since it is a view that is watched, and others may add to it in place.
    out = linear(rows, out, layer.out_proj.weight, layer.out_proj.bias).clone()
    return (out if layer.batch_first else out.transpose(0, 1)), weights


def _projected(
    rows: Rows, layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    width, bias = layer.embed_dim, layer.in_proj_bias
    done = []
    for at, x in enumerate((query, key, value)):
        part = slice(at * width, (at + 1) * width)
        if layer.in_proj_weight is not None:
            done.append(linear(rows, x, layer.in_proj_weight, bias, part=part))
            continue
        y = linear(rows, x, (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)[at], None)
        if bias is not None:
            y = y + bias[part]
            rows.watch(y, lambda g, part=part: rows.add(bias, _wide(g).sum(1), part))
        done.append(y)
    return done[0], done[1], done[2]


def _copies(rows: Rows, bias: Tensor) -> Tensor:
    """A ``(1, 1, width)`` parameter as ``(n, 1, width)``."""
    copies = bias.expand(rows.n, -1, -1)
    rows.watch(copies, lambda g: rows.add(bias, _wide(g)[:, None]))
    return copies


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores: minus infinity where a boolean mask is true."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.bool(), float("-inf"))


def _wide(g: Tensor) -> Tensor:
    return g.to(torch.promote_types(g.dtype, torch.float32))


def _like(x: Tensor, g: Tensor) -> Tensor:
    """An input in the precision that it was used in, then in that of sums."""
    return _wide(x.to(g.dtype))
