"""A small next-code transformer as an ordinary LightningModule: it knows nothing of privacy."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from benchmarks.cohort import VOCABULARY
from memguard.records.content import Ragged

__all__ = ["NextCode", "Records", "losses"]

PAD = 0


class Records(Dataset[Tensor]):
    """Padded code sequences, with the patient of each."""

    def __init__(self, codes: Ragged, patient: np.ndarray, length: int) -> None:
        mask = np.arange(length) < codes.lengths[:, None]
        tokens = np.full(mask.shape, PAD, dtype=np.int64)
        tokens[mask] = codes.values
        self.tokens, self.patient_ids = torch.from_numpy(tokens), patient

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> Tensor:
        return self.tokens[i]


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        b, t, d = h.shape
        q, k, v = self.qkv(self.norm1(h)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return h + self.down(F.gelu(self.up(self.norm2(h))))


class NextCode(pl.LightningModule):
    """Causal transformer over codes; the loss of a record is the mean over its predicted codes, in nats."""

    def __init__(self, *, length: int, width: int, layers: int, rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.codes, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)
        for table in (self.codes, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def each(self, tokens: Tensor) -> Tensor:
        """Loss of each record ``(B,)`` of ``tokens`` (B, T)."""
        x, y = tokens[:, :-1], tokens[:, 1:]
        h = self.codes(x) + self.places(torch.arange(x.shape[1]).expand_as(x))
        for block in self.blocks:
            h = block(h)
        logits = self.head(self.norm(h))
        token = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none", ignore_index=PAD)
        return token.view_as(y).sum(1) / (y != PAD).sum(1)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.each(batch).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["rate"], weight_decay=0.0)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


@torch.no_grad()
def losses(model: NextCode, records: Records, size: int = 512) -> np.ndarray:
    """Eval-mode loss of each record, float32."""
    model.eval()
    return torch.cat([model.each(part) for part in records.tokens.split(size)]).numpy()
