"""Dropout off, training mode on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from memguard.privacy.engines.still import no_dropout

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


def recurrent(kind, packed):
    net = kind(8, 8, num_layers=3, dropout=0.5, batch_first=True)
    given = pack_padded_sequence(X, torch.tensor([5, 4, 2]), batch_first=True) if packed else X
    return net, lambda: net(given)[0][0] if packed else net(given)[0]


def layer():
    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    return net, lambda: net(X)


def attention():
    net = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    return net, lambda: net(X, X, X)[0]


def module(kind):
    net = kind(0.5)
    return net, lambda: net(X)


CASES = {
    "dropout": lambda: module(nn.Dropout),
    "dropout of channels": lambda: module(nn.Dropout1d),
    "alpha": lambda: module(nn.AlphaDropout),
    "feature alpha": lambda: module(nn.FeatureAlphaDropout),
    "in place": lambda: (nn.Identity(), lambda: F.dropout(X.clone(), 0.5, True, inplace=True)),
    "by keyword": lambda: (nn.Identity(), lambda: F.dropout(X, p=0.5, training=True)),
    "torch.dropout": lambda: (nn.Identity(), lambda: torch.dropout(X, 0.5, True)),
    "attention by hand": lambda: (
        nn.Identity(),
        lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=0.5),
    ),
    "attention": attention,
    "transformer": layer,
    "gru": lambda: recurrent(nn.GRU, False),
    "gru, packed": lambda: recurrent(nn.GRU, True),
    "lstm": lambda: recurrent(nn.LSTM, False),
    "lstm, packed": lambda: recurrent(nn.LSTM, True),
    "rnn": lambda: recurrent(nn.RNN, False),
}


@pytest.mark.parametrize("name", CASES)
def test_training_mode_computes_what_evaluation_computes(name):
    torch.manual_seed(0)
    net, run = CASES[name]()
    with torch.no_grad():
        assert not torch.allclose(run(), run())
        with no_dropout():
            still = run()
            assert net.training
        assert not torch.allclose(run(), run())
        net.eval()
        expected = X if isinstance(net, nn.Identity) and "hand" not in name else run()
        if name == "attention by hand":
            expected = F.scaled_dot_product_attention(X, X, X)
    torch.testing.assert_close(still, expected)


@pytest.mark.parametrize("way", ["backward", "grad", "torch.autograd.backward"])
def test_a_checkpointed_block_runs_again_without_it_too(way):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))

    def gradient(checkpointed):
        net.zero_grad()
        with no_dropout():
            loss = (checkpoint(net, X, use_reentrant=False) if checkpointed else net(X)).sum()
            if way == "grad":
                return torch.autograd.grad(loss, net[0].weight)[0]
            loss.backward() if way == "backward" else torch.autograd.backward(loss)
            return net[0].weight.grad.clone()

    before = F.dropout
    torch.testing.assert_close(gradient(True), gradient(False))
    assert F.dropout is before


def test_compiled_modules():
    net = torch.compile(nn.Dropout(0.5), backend="eager")
    net(X)
    with no_dropout():
        assert torch.equal(net(X), X)
