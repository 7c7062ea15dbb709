"""The engine that runs every record alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from memguard.errors import PrivacyError
from memguard.privacy.clipping import ClippedSum
from memguard.privacy.draws import Chunk
from memguard.privacy.engines.base import Work
from memguard.privacy.engines.loop import LoopEngine


def chunk(positions, owner):
    return Chunk(
        draw=0, part=0, parts=1, positions=np.array(positions), owner=np.array(owner), n_owners=max(owner) + 1
    )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.unused = nn.Linear(1, 1)
        self.reentrant = False

    def forward(self, x):
        h = checkpoint(self.first, x, use_reentrant=True) if self.reentrant else self.first(x)
        return self.frozen(self.second(torch.tanh(h)))[:, 0]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def data():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=rng), torch.randn(6, generator=rng)


def run(net, data, work, max_grad_norm=1e6, step=None, parameters=None):
    x, y = data
    parameters = list(net.parameters()) if parameters is None else parameters
    into = ClippedSum(parameters, max_grad_norm)
    step = step or (lambda batch: F.mse_loss(net(batch[0]), batch[1]))
    shown = LoopEngine(net, parameters).accumulate(work, step, lambda i: (x[i : i + 1], y[i : i + 1]), into)
    return into, shown


def work(data, positions, owner, average="mean"):
    return Work((data[0][positions], data[1][positions]), chunk(positions, owner), average)


@pytest.mark.parametrize("average", ["mean", "sum"])
@pytest.mark.parametrize("max_grad_norm", [1e6, 0.1])
def test_every_owner_is_clipped_as_computed_by_hand(net, data, average, max_grad_norm):
    positions, owner = [4, 1, 0, 5, 2], [0, 0, 1, 2, 2]
    into, shown = run(net, data, work(data, positions, owner, average), max_grad_norm)
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for who in range(3):
        mine = [i for i, o in zip(positions, owner, strict=True) if o == who]
        net.zero_grad()
        loss = sum(F.mse_loss(net(data[0][[i]]), data[1][[i]]) for i in mine)
        (loss / (len(mine) if average == "mean" else 1)).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for total, g in zip(expected, grads, strict=True):
            total += g * min(1, max_grad_norm / norm)
    for got, want in zip(into.sums, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    assert into.n_owners == 3 and into.n_clipped == (3 if max_grad_norm < 1 else 0)
    by_hand = torch.stack([F.mse_loss(net(data[0][[i]]), data[1][[i]]) for i in positions]).mean()
    assert not shown.requires_grad and torch.isclose(shown, by_hand)


def test_p_grad_and_mode_stay(net, data):
    mark = torch.ones_like(net.first.weight)
    net.first.weight.grad = mark
    net.eval()
    run(net, data, work(data, [0, 1], [0, 1]))
    assert net.first.weight.grad is mark and torch.equal(mark, torch.ones_like(mark))
    assert net.second.weight.grad is None and not net.training


@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad")
def test_reentrant_checkpointing_gives_the_same(net, data):
    task = work(data, [0, 1, 2], [0, 0, 1])
    plain, _ = run(net, data, task)
    net.reentrant = True
    data = (data[0].requires_grad_(), data[1])
    mark = net.first.weight.grad = torch.ones_like(net.first.weight)
    other, _ = run(net, data, task)
    for a, b in zip(plain.sums, other.sums, strict=True):
        torch.testing.assert_close(a, b)
    assert net.first.weight.grad is mark and net.second.weight.grad is None


def test_the_form_of_the_step_is_kept(net, data):
    def step(batch):
        loss = F.mse_loss(net(batch[0]), batch[1])
        return {"loss": loss, "prediction": net(batch[0]), "n": 1}

    _, shown = run(net, data, work(data, [0, 1], [0, 1]), step=step)
    assert set(shown) == {"loss", "prediction", "n"} and shown["n"] == 1
    assert not shown["loss"].requires_grad and not shown["prediction"].requires_grad


def test_a_record_without_a_loss_contributes_zero(net, data):
    def step(batch):
        return None if torch.equal(batch[0], data[0][:1]) else F.mse_loss(net(batch[0]), batch[1])

    alone, shown = run(net, data, work(data, [0], [0]), step=step)
    assert shown is None and alone.n_owners == 1 and all(not s.any() for s in alone.sums)
    both, _ = run(net, data, work(data, [0, 1], [0, 0]), step=step)
    other, _ = run(net, data, work(data, [1], [0]), step=step)
    for a, b in zip(both.sums, other.sums, strict=True):
        torch.testing.assert_close(2 * a, b)


@pytest.mark.parametrize(
    ("step", "seen"),
    [
        (lambda net, b: F.mse_loss(net(b[0]), b[1]).detach(), "no gradient"),
        (lambda net, b: net(torch.cat([b[0], b[0]])), r"shape \(2,\)"),
        (lambda net, b: {"preds": net(b[0])}, "returned dict"),
    ],
)
def test_refusals(net, data, step, seen):
    with pytest.raises(PrivacyError, match=seen):
        run(net, data, work(data, [0, 1], [0, 1]), step=lambda b: step(net, b))


def test_half_precision_parameters_are_summed_in_float32(data):
    net = nn.Linear(3, 1).to(torch.bfloat16)
    into = ClippedSum(list(net.parameters()), 1e6)
    x = data[0].to(torch.bfloat16)
    LoopEngine(net, list(net.parameters())).accumulate(
        Work(x, chunk(list(range(6)), [0] * 6), "sum"), lambda b: net(b).sum(), lambda i: x[i : i + 1], into
    )
    torch.testing.assert_close(into.sums[0][0], x.float().sum(0), rtol=1e-6, atol=1e-6)
