"""Recurrent layers, attention, embeddings: the engine with hooks against the loop, stand-ins against layers."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from _engines import (
    CLASSES,
    PAD,
    VOCABULARY,
    WIDTH,
    Block,
    Cohort,
    Recurrent,
    Sequence,
    classify,
    compare,
    encoder,
    next_code,
    wide,
)

from memguard.privacy.engines.opacus import OpacusEngine
from memguard.privacy.engines.still import no_dropout

# -- sequences ---


class Attention(nn.Module):
    def __init__(self, mha, mask="causal", need_weights=False, keys=False):
        super().__init__()
        self.mha, self.mask, self.need_weights, self.keys = mha, mask, need_weights, keys

    def forward(self, h, batch):
        length = h.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        masks = {
            "causal": {"attn_mask": causal},
            "hint": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(length), "is_causal": True},
            "padding": {"key_padding_mask": ~batch["keep"]},
            "both": {"key_padding_mask": ~batch["keep"], "attn_mask": causal},
            "heads": {"attn_mask": torch.zeros(len(h) * 2, length, length).masked_fill(causal, -1e4)},
        }[self.mask]
        other = torch.cat([h, h], -1)[..., :5] if self.keys else h
        given = [h, other, other]
        if not self.mha.batch_first:
            given = [x.transpose(0, 1) for x in given]
        out, weights = self.mha(*given, need_weights=self.need_weights, **masks)
        out = out if self.mha.batch_first else out.transpose(0, 1)
        return out if weights is None else out + weights.square().sum(-1, keepdim=True)


class Encoder(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.encoder, self.first = encoder(**kwargs), kwargs["batch_first"]

    def forward(self, h, batch):
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1])
        keep = torch.zeros_like(batch["keep"], dtype=h.dtype).masked_fill(~batch["keep"], float("-inf"))
        if self.first:
            return self.encoder(h, mask, keep, is_causal=True)
        return self.encoder(h.transpose(0, 1), mask, keep, is_causal=True).transpose(0, 1)


class EncoderDecoder(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors
            self.net = nn.Transformer(WIDTH, 2, 1, 1, 16, 0.1, batch_first=batch_first)
        self.first = batch_first

    def forward(self, h, batch):
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1])
        pad = torch.zeros_like(batch["keep"], dtype=h.dtype).masked_fill(~batch["keep"], float("-inf"))
        x = h if self.first else h.transpose(0, 1)
        out = self.net(x, x, tgt_mask=mask, src_mask=mask, memory_mask=mask, src_key_padding_mask=pad,
                       tgt_key_padding_mask=pad, memory_key_padding_mask=pad)  # fmt: skip
        return out if self.first else out.transpose(0, 1)


class Bag(nn.Module):
    """No order: the mean of embedded codes."""

    def __init__(self, **kwargs):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(VOCABULARY, WIDTH, **kwargs), nn.Linear(WIDTH, CLASSES)

    def forward(self, batch):
        return self.head(self.bag(batch["codes"]))


SEQUENCES = {
    "gru": lambda: Sequence(Recurrent(wide(nn.GRU, batch_first=True))),
    "gru, time first, no bias": lambda: Sequence(Recurrent(wide(nn.GRU, bias=False))),
    "gru, two layers, both ways, packed": lambda: Sequence(
        Recurrent(wide(nn.GRU, num_layers=2, bidirectional=True, dropout=0.3, batch_first=True), packed=True),
        width=2 * WIDTH,
    ),
    "lstm, two layers, both ways, packed": lambda: Sequence(
        Recurrent(wide(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True), packed=True),
        width=2 * WIDTH,
    ),
    "gru, learned state": lambda: Sequence(
        Recurrent(wide(nn.GRU, num_layers=2, bidirectional=True, batch_first=True), packed=True, state=True),
        width=2 * WIDTH,
    ),
    "lstm": lambda: Sequence(Recurrent(wide(nn.LSTM, num_layers=2, batch_first=True))),
    "rnn": lambda: Sequence(Recurrent(wide(nn.RNN))),
    "rnn, relu, packed": lambda: Sequence(Recurrent(wide(nn.RNN, nonlinearity="relu"), packed=True)),
    "attention": lambda: Sequence(Attention(nn.MultiheadAttention(WIDTH, 2, 0.1, batch_first=True))),
    "attention, time first": lambda: Sequence(Attention(nn.MultiheadAttention(WIDTH, 2), "both")),
    "attention, hint": lambda: Sequence(Attention(nn.MultiheadAttention(WIDTH, 2, batch_first=True), "hint")),
    "attention, mask of heads": lambda: Sequence(
        Attention(nn.MultiheadAttention(WIDTH, 2, batch_first=True), "heads")
    ),
    "attention, padding, weights": lambda: Sequence(
        Attention(nn.MultiheadAttention(WIDTH, 2, batch_first=True, bias=False), "padding", need_weights=True)
    ),
    "attention, other keys": lambda: Sequence(
        Attention(nn.MultiheadAttention(WIDTH, 2, batch_first=True, kdim=5, vdim=5), "causal", keys=True)
    ),
    "attention, added rows": lambda: Sequence(
        Attention(
            nn.MultiheadAttention(WIDTH, 2, add_bias_kv=True, add_zero_attn=True), "both", need_weights=True
        )
    ),
    "encoder": lambda: Sequence(Encoder(batch_first=True), positions="plain"),
    "encoder, norm first, time first": lambda: Sequence(
        Encoder(batch_first=False, norm_first=True), positions="row"
    ),
    "encoder and decoder": lambda: Sequence(EncoderDecoder(batch_first=True), positions="expanded"),
    "encoder and decoder, time first": lambda: Sequence(
        EncoderDecoder(batch_first=False), positions="unsqueezed"
    ),
    "blocks": lambda: Sequence(Block(), positions="unsqueezed"),
    "blocks, checkpointed": lambda: Sequence(Block(reentrant=False), positions="row"),
    "blocks, checkpointed the old way": lambda: Sequence(Block(reentrant=True), positions="row"),
    "tied": lambda: Sequence(Block(), tied=True, positions="plain"),
    "tied, no padding row": lambda: Sequence(Block(), tied=True, padding_idx=None),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name):
    torch.manual_seed(0)
    compare(SEQUENCES[name](), next_code, kind="mass")


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags(mode):
    torch.manual_seed(0)
    compare(Bag(mode=mode, padding_idx=PAD), classify)


@pytest.mark.parametrize("name", SEQUENCES)
def test_stand_ins_compute_what_the_layer_computes(name):
    torch.manual_seed(0)
    net, cohort = SEQUENCES[name](), Cohort()
    batch = cohort.batch([3, 4, 5, 6])
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    with no_dropout():
        expected = net(batch)
        got, _ = engine._hooks.forward(4, lambda: net(batch))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
