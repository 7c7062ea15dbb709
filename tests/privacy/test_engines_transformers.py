"""Hugging Face models, built from their configs and used as they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))

from _engines import PAD, VOCABULARY, WIDTH, compare

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 16, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT = {
    "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def labelled(net, batch):
    """The loss that the model computes by itself: a mean over positions that count."""
    keep = batch["keep"]
    labels = batch["codes"].masked_fill(~keep, -100)
    return net(input_ids=batch["codes"], attention_mask=keep.long(), labels=labels).loss


def positioned(net, batch):
    codes = batch["codes"]
    positions = torch.arange(codes.shape[1]).repeat(len(codes), 1)
    logits = net(input_ids=codes, attention_mask=batch["keep"].long(), position_ids=positions).logits[:, :-1]
    target = codes[:, 1:].masked_fill(~batch["keep"][:, 1:], -100)
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), target.reshape(-1))


MODELS = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, "tie_word_embeddings": False}, labelled),
    "Llama, tied": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, "tie_word_embeddings": True}, labelled),
    "GPT-2, tied": ("GPT2LMHeadModel", "GPT2Config", GPT, labelled),
    "GPT-2, positions given": ("GPT2LMHeadModel", "GPT2Config", {**GPT, "tie_word_embeddings": False}, positioned),
    "ModernBERT, tied": (
        "ModernBertForMaskedLM", "ModernBertConfig", {**SIZES, "cls_token_id": 1, "sep_token_id": 2}, labelled,
    ),
    "BERT": ("BertForMaskedLM", "BertConfig", SIZES, labelled),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    model, config, sizes, step = MODELS[name]
    torch.manual_seed(0)
    net = getattr(transformers, model)(getattr(transformers, config)(**sizes)).train()
    compare(net, step, rtol=2e-6, kind="mass")
