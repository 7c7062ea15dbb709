"""The two small models of the ranking benchmarks, in plain torch: a next-code GPT and an MLP."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memguard.records.content import Ragged

__all__ = ["GPT", "MLP", "SequenceData", "TabularData", "record_loss"]


class Block(nn.Module):
    """Pre-norm transformer block; all but the attention runs on real codes only, without padding."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, place: Tensor, b: int, t: int) -> Tensor:
        """``h`` (n, d) lies at the flat positions ``place`` (n,) of a (b, t) batch."""
        d = h.shape[1]
        padded = h.new_zeros(b * t, 3 * d).index_copy(0, place, self.qkv(self.norm1(h)))
        q, k, v = padded.view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(b * t, d)[place]
        h = h + F.dropout(self.out(mixed), self.dropout, self.training)
        return h + F.dropout(self.down(F.gelu(self.up(self.norm2(h)))), self.dropout, self.training)


class GPT(nn.Module):
    """Next-code model; nothing is computed for padding."""

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.codes, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        for table in (self.codes, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Logits ``(n, V)`` at the positions of ``x`` (B, T) where ``real`` is true."""
        b, t = x.shape
        place = real.flatten().nonzero()[:, 0]
        h = self.codes(x.flatten()[place]) + self.places(place % t)
        for block in self.blocks:
            h = block(h, place, b, t)
        return self.head(self.norm(h))


class MLP(nn.Module):
    """Two hidden layers of ReLU units."""

    def __init__(self, inputs: int, classes: int, *, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SequenceData:
    """Padded code sequences; the loss of a record is the mean over its predicted codes (nats per token)."""

    def __init__(self, codes: Ragged, vocabulary: int) -> None:
        self.vocabulary, self.length = vocabulary, int(codes.lengths.max())
        mask = np.arange(self.length) < codes.lengths[:, None]
        tokens = np.zeros(mask.shape, dtype=np.int64)
        tokens[mask] = codes.values
        self.tokens, self.sizes = torch.from_numpy(tokens), torch.from_numpy(codes.lengths)
        self.codes = codes

    def model(self, *, dropout: float = 0.0, width: int = 64) -> nn.Module:
        return GPT(self.vocabulary, self.length, dropout=dropout, width=width)

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        sizes = self.sizes[rows]
        tokens = self.tokens[rows, : int(sizes.max())]
        predicted = torch.arange(1, tokens.shape[1]) < sizes[:, None]
        logits = model(tokens[:, :-1], predicted)
        each = F.cross_entropy(logits, tokens[:, 1:][predicted], reduction="none")
        total = torch.zeros(len(rows)).index_add(0, predicted.nonzero()[:, 0], each)
        return total / (sizes - 1)


class TabularData:
    """Features and labels; the loss of a record is its cross-entropy (nats per record)."""

    def __init__(self, x: np.ndarray, y: np.ndarray, classes: int) -> None:
        self.x, self.y, self.classes = torch.from_numpy(x).float(), torch.from_numpy(y).long(), classes

    def model(self, *, dropout: float = 0.0, width: int = 64) -> nn.Module:
        return MLP(self.x.shape[1], self.classes, width=width)

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        return F.cross_entropy(model(self.x[rows]), self.y[rows], reduction="none")


@torch.no_grad()
def record_loss(
    model: nn.Module, data: SequenceData | TabularData, rows: np.ndarray, size: int = 256
) -> np.ndarray:
    """Eval-mode loss of each record, ``(len(rows),)`` float32; records of like length go together."""
    was_training = model.training
    model.eval()
    order = (
        np.argsort(data.sizes.numpy()[rows], kind="stable")
        if isinstance(data, SequenceData)
        else np.arange(len(rows))
    )
    out = np.zeros(len(rows), dtype=np.float32)
    for start in range(0, len(rows), size):
        part = order[start : start + size]
        out[part] = data.loss(model, torch.from_numpy(rows[part])).numpy()
    model.train(was_training)
    return out
