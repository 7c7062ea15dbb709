"""A small cohort, small models, and the comparison of two engines on them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from memguard.privacy.clipping import ClippedSum
from memguard.privacy.draws import Chunk
from memguard.privacy.engines.base import Work
from memguard.privacy.engines.loop import LoopEngine
from memguard.privacy.engines.opacus import OpacusEngine
from memguard.privacy.engines.still import no_dropout

N, T, WIDTH, VOCABULARY, CLASSES = 24, 6, 8, 11, 3
OWNER = [0, 0, 1, 2, 2, 2, 3]
PAD = 0


class Cohort:
    """Codes of different lengths, padded to the longest of the batch; a label and features for each."""

    def __init__(self, seed=0, n=N):
        rng = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(2, T + 1, (n,), generator=rng)
        self.codes = torch.randint(1, VOCABULARY, (n, T), generator=rng)
        self.x = torch.randn(n, T, WIDTH, generator=rng)
        self.y = torch.randint(0, CLASSES, (n,), generator=rng)

    def batch(self, positions, pad_to=None):
        at = torch.as_tensor(positions)
        lengths = self.lengths[at]
        longest = pad_to or int(lengths.max())
        keep = torch.arange(longest)[None] < lengths[:, None]
        return {
            "codes": self.codes[at, :longest].masked_fill(~keep, PAD),
            "keep": keep,
            "lengths": lengths,
            "x": self.x[at],
            "y": self.y[at],
        }

    def read(self, position):
        return self.batch([position])


def chunk(positions, owner):
    return Chunk(
        draw=0, part=0, parts=1, positions=np.array(positions), owner=np.array(owner), n_owners=max(owner) + 1
    )


def sums(engine, step, cohort, *, average="mean", owner=OWNER, max_grad_norm=1.0, parts=((3, 10), (11, 18))):
    """The clipped sum over some chunks, as one flat tensor, and the sum's counts."""
    into = ClippedSum(engine.parameters, max_grad_norm)
    for begin, _ in parts:
        positions = list(range(begin, begin + len(owner)))
        work = Work(cohort.batch(positions), chunk(positions, owner), average)
        engine.accumulate(work, step, cohort.read, into)
    return into


def compare(net, step, *, rtol=1e-6, looped=0, bare=0, calibrated=True, cohort=None, kind=None, **kwargs):
    """Both engines on the same records; the hooks must have done it, and left nothing."""
    cohort = cohort or Cohort()
    parameters = [p for p in net.parameters() if p.requires_grad]
    before = {name: (set(vars(m)), dict(m._parameters)) for name, m in net.named_modules()}
    engine = OpacusEngine(net, parameters)
    engine.attach()
    run = lambda batch: step(net, batch)  # noqa: E731
    if calibrated:
        positions = [0, 1, 2, 3, 4]
        work = Work(cohort.batch(positions), chunk(positions, positions))
        with no_dropout():
            engine.calibrate(work, run, cohort.read)
            assert kind is None or engine.weighting.kind == kind
    with no_dropout():
        for average, max_grad_norm in (("mean", 0.05), ("sum", 1e6)):
            settings = {"average": average, "max_grad_norm": max_grad_norm, **kwargs}
            expected = sums(LoopEngine(net, parameters), run, cohort, **settings)
            got = sums(engine, run, cohort, **settings)
            largest = max(s.abs().max() for s in expected.sums)
            assert largest > 0 and got.n_owners == expected.n_owners and got.n_clipped == expected.n_clipped
            for (name, p), a, b in zip(_named(net), got.sums, expected.sums, strict=True):
                assert (a - b).abs().max() <= 3 * rtol * largest, name
                assert p.grad is None
    assert engine.n_looped == looped and len(engine._hooks.bare) == bare
    engine.detach()
    for name, m in net.named_modules():
        attributes, own = before[name]
        assert set(vars(m)) == attributes and not m._forward_hooks and not m._backward_hooks
        assert all(m._parameters[k] is p for k, p in own.items())
        assert all(not vars(p) for p in own.values() if p is not None)
    return engine


def _named(net):
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad]


def classify(net, batch):
    return F.cross_entropy(net(batch), batch["y"])


class On(nn.Module):
    """A body on the features, pooled, and a head."""

    def __init__(self, body, width=WIDTH, transpose=False, keys=False):
        super().__init__()
        self.body, self.head, self.transpose = body, nn.Linear(width, CLASSES), transpose

    def forward(self, batch):
        x = batch["x"]
        h = self.body(x.transpose(1, 2) if self.transpose else x)
        h = h.transpose(1, 2) if self.transpose else h
        return self.head(h.flatten(1, -2).mean(1) if h.dim() > 2 else h)


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, WIDTH))


def encoder(batch_first, layers=2, norm_first=False):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.2, batch_first=batch_first, norm_first=norm_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class Sequence(nn.Module):
    """Codes in, one prediction a position or a record."""

    def __init__(self, body, padding_idx=PAD, tied=False, width=WIDTH, positions=None):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding_idx)
        self.body, self.head = body, nn.Linear(width, VOCABULARY, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight
        self.positions = None if positions is None else nn.Embedding(T, WIDTH)
        self.how = positions

    def embedded(self, batch):
        codes = batch["codes"]
        h = self.embed(codes)
        steps = torch.arange(codes.shape[1])
        if self.how == "plain":
            h = h + self.positions(steps)
        elif self.how == "row":
            h = h + self.positions(steps[None])
        elif self.how == "unsqueezed":
            h += self.positions(steps).unsqueeze(0)
        elif self.how == "expanded":
            h = h + self.positions(steps.expand(len(codes), -1))
        return h

    def forward(self, batch):
        return self.head(self.body(self.embedded(batch), batch))


def next_code(net, batch):
    """The mean over positions that count, of which every record has another number."""
    logits = net(batch)[:, :-1]
    target = batch["codes"][:, 1:].masked_fill(~batch["keep"][:, 1:], -100)
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), target.reshape(-1))


class Recurrent(nn.Module):
    def __init__(self, rnn, packed=False, state=False):
        super().__init__()
        self.rnn, self.packed = rnn, packed
        self.state = nn.Parameter(torch.randn(4, 1, WIDTH)) if state else None

    def forward(self, h, batch):
        n = len(h)
        hx = None if self.state is None else self.state.expand(-1, n, -1).contiguous()
        if self.packed:
            h = pack_padded_sequence(h, batch["lengths"], batch_first=True, enforce_sorted=False)
            out, last = self.rnn(h, hx)
            out, _ = pad_packed_sequence(out, batch_first=True, total_length=batch["codes"].shape[1])
        elif self.rnn.batch_first:
            out, last = self.rnn(h, hx)
        else:
            out, last = self.rnn(h.transpose(0, 1), hx)
            out = out.transpose(0, 1)
        last = last[0] if isinstance(last, tuple) else last
        # Only a packed sequence has last states that do not depend on the padding, and so on the other records.
        return out + last.mean(0).mean(1)[:, None, None] if self.packed else out


def wide(kind, **kwargs):
    return kind(WIDTH, WIDTH, **kwargs)


class Block(nn.Module):
    """A block as people write them: one projection for query, key and value, and a mask."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.feed, self.drop, self.reentrant = mlp(), nn.Dropout(0.1), reentrant

    def run(self, h):
        n, length, _ = h.shape
        q, k, v = self.qkv(self.norm(h)).view(n, length, 3, 2, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        h = h + self.out(a.transpose(1, 2).reshape(n, length, -1))
        return self.drop(h + self.feed(h))

    def forward(self, h, batch):
        return (
            self.run(h) if self.reentrant is None else checkpoint(self.run, h, use_reentrant=self.reentrant)
        )
