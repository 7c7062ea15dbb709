"""What a pass over a batch leaves behind: nothing, not even in circles through the graph."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memguard.privacy.clipping import ClippedSum
from memguard.privacy.draws import Chunk
from memguard.privacy.engines import hooks
from memguard.privacy.engines.base import Work
from memguard.privacy.engines.opacus import OpacusEngine
from memguard.privacy.engines.rows import Rows


class Codes(nn.Module):
    """All ways in which gradients come up: formulas, a stand-in, a layer and a parameter used once for a batch."""

    def __init__(self, checkpoint=None):
        super().__init__()
        self.emb, self.pos = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.token = nn.Parameter(torch.zeros(8))
        self.rnn, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 20)
        self.checkpoint = checkpoint

    def forward(self, x):
        h = self.emb(x) + self.pos(torch.arange(x.shape[1])) + self.token
        h = self.rnn(h)[0]
        if self.checkpoint is not None:
            return torch.utils.checkpoint.checkpoint(self.head, h, use_reentrant=self.checkpoint)
        return self.head(h)


@pytest.mark.parametrize("checkpoint", [None, True, False])
def test_no_pass_outlives_its_batch(checkpoint, monkeypatch):
    passes = []

    class Watched(Rows):
        def __init__(self, *args):
            super().__init__(*args)
            passes.append(weakref.ref(self))

    monkeypatch.setattr(hooks, "Rows", Watched)
    net, x = Codes(checkpoint), torch.randint(1, 20, (9, 6), generator=torch.Generator().manual_seed(0))
    parameters = list(net.parameters())
    engine, into = OpacusEngine(net, parameters), ClippedSum(parameters, 1.0)

    def step(batch):
        return F.cross_entropy(net(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    def work(n):
        chunk = Chunk(draw=0, part=0, parts=1, positions=np.arange(n), owner=np.arange(n), n_owners=n)
        return Work(x[:n], chunk)

    engine.attach()
    engine.calibrate(work(5), step, lambda at: x[at : at + 1])
    for n in (7, 9, 7):
        engine.accumulate(work(n), step, lambda at: x[at : at + 1], into)
    engine.detach()
    gc.collect()
    alive = [ref() for ref in passes if ref() is not None]
    assert len(passes) >= 4
    assert len(alive) <= 1  # the last one is kept, and holds nothing
    assert not any(rows.edges or rows.of or rows._views for rows in alive)
    assert all(p.grad is None for p in parameters)
