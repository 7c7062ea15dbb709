"""Modules to ask, and what one learns by asking them the slow way: one sequence, one position at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from memguard.records.content import Ragged

V = 23


class Plain(nn.Module):
    """A causal transformer with learned positions, dropout, and settings that break it."""

    def __init__(
        self, longest: int = 32, *, causal: bool = True, tied: bool = False, parameter: bool = False
    ) -> None:
        super().__init__()
        self.codes = nn.Embedding(V, 16)
        self.places = nn.Parameter(torch.randn(longest, 16)) if parameter else nn.Embedding(longest, 16)
        block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.3, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.out = None if tied else nn.Linear(16, V)
        self.causal = causal

    def hidden(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        where = (
            self.places[:length]
            if isinstance(self.places, nn.Parameter)
            else self.places(torch.arange(length))
        )
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        return self.blocks(self.codes(tokens) + where, mask=mask, is_causal=self.causal)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.hidden(tokens)
        return hidden @ self.codes.weight.T if self.out is None else self.out(hidden)


class Recurrent(nn.Module):
    """A GRU whose forward also returns its state."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.rnn = nn.Embedding(V, 12), nn.GRU(12, 14, batch_first=True)
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(14, V)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden, state = self.rnn(self.drop(self.codes(tokens)))
        return self.out(hidden), state


def made(build: type[nn.Module], seed: int = 0, **settings: object) -> nn.Module:
    """A model in float64 with weights large enough that predictions differ, in train mode."""
    torch.manual_seed(seed)
    model = build(**settings).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.mul_(2.0)
    return model.train()


def sequences(
    seed: int, n: int, longest: int, shortest: int = 0, first: int = 0, vocabulary: int = V
) -> Ragged:
    rng = np.random.default_rng(seed)
    return Ragged.from_lists(
        [rng.integers(first, vocabulary, rng.integers(shortest, longest + 1)).tolist() for _ in range(n)]
    )


@torch.no_grad()
def naive_next(model: nn.Module, tokens: np.ndarray) -> np.ndarray:
    """``(V,)`` log-probabilities after these tokens, read alone and without padding."""
    was = model.training
    model.eval()
    out = model(torch.as_tensor(np.asarray(tokens, np.int64))[None])
    out = getattr(out, "logits", out)
    out = out[0] if isinstance(out, tuple) else out
    model.train(was)
    return torch.log_softmax(out[0, -1], -1).numpy()


def naive_log_probs(model: nn.Module, ragged: Ragged) -> np.ndarray:
    parts = []
    for i in range(len(ragged)):
        row = ragged[i]
        parts += [[np.nan] if t == 0 else [naive_next(model, row[:t])[row[t]]] for t in range(len(row))]
    return np.concatenate(parts) if parts else np.zeros(0)
