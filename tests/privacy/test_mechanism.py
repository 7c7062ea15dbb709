"""One private step: parts of one draw in, noisy mean out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memguard.errors import PrivacyError
from memguard.privacy.engines.loop import LoopEngine
from memguard.privacy.mechanism import Mechanism, check_parameters
from memguard.privacy.noise import NoiseSource
from memguard.privacy.sampling import PatientSampler

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def mechanism(*, parts=2, rate=1.0, rank=0, reduce=None, net=None, seed=bytes(8), world=1):
    net = net or nn.Linear(3, 1, bias=False)
    parameters = list(net.parameters())
    sampler = PatientSampler(
        [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9], rates=rate, steps=3, chunks=parts, max_records=None, seed=seed,
        rank=rank, world=world,
    )  # fmt: skip
    made = Mechanism(
        LoopEngine(net, parameters), parameters, sampler, NoiseSource(), max_grad_norm=0.5, expected_owners=10.0,
        rank=rank, reduce=reduce,
    )  # fmt: skip
    return made, net, iter(sampler)


def take(made, net, batches, n):
    for _ in range(n):
        made.take(None, next(batches), lambda x: net(x).sum(), lambda i: X[i : i + 1])


def test_the_noisy_mean_is_divided_by_the_expected_number():
    made, net, batches = mechanism()
    take(made, net, batches, 2)
    exact = [total.clone() / 10 for total in made.sum.sums]
    released = made.release(0.0)
    assert torch.equal(released.gradients[0], exact[0])
    assert released.counts.owners == 10
    assert 0 <= released.counts.clipped_share <= 1
    assert net.weight.grad is None
    assert not made.sum.sums[0].any()  # forgotten


def test_noise_has_its_size_and_is_new():
    net = nn.Linear(3, 4000, bias=False)
    made, net, batches = mechanism(rate=1e-9, net=net, parts=1)
    updates = []
    for _ in range(2):
        take(made, net, batches, 1)
        updates.append(made.release(2.0).gradients[0])
    for update in updates:
        assert update.std().item() == pytest.approx(2.0 * 0.5 / 10, rel=0.05)
    assert torch.corrcoef(torch.stack([u.flatten() for u in updates]))[0, 1].abs() < 0.05


def test_parts_of_two_draws_make_no_step():
    made, net, batches = mechanism()
    take(made, net, batches, 3)
    with pytest.raises(PrivacyError, match="one optimizer step sums the parts"):
        made.release(1.0)
    made.begin()
    take(made, net, batches, 1)  # the second half of the second draw
    with pytest.raises(PrivacyError, match="one optimizer step sums the parts"):
        made.release(1.0)


def test_no_part_makes_no_step():
    made, _, _ = mechanism()
    with pytest.raises(PrivacyError, match="without any part of a draw"):
        made.release(1.0)


def test_records_that_were_not_drawn_are_refused():
    made, net, batches = mechanism()
    wanted = next(batches)
    with pytest.raises(PrivacyError, match="was to come"):
        made.take(None, wanted[::-1], lambda x: net(x).sum(), lambda i: X[i : i + 1])


def test_two_processes_add_up_to_one_and_noise_comes_from_the_first():
    net = nn.Linear(3, 1, bias=False)
    alone, _, batches = mechanism(net=net)
    take(alone, net, batches, 2)
    wanted = alone.release(0.0)
    sums = []
    for rank in (0, 1):
        made, _, batches = mechanism(net=net, rank=rank, world=2, reduce=lambda t: t)
        take(made, net, batches, 2)
        released = made.release(0.0)
        sums.append(released)
    assert torch.allclose(sums[0].gradients[0] + sums[1].gradients[0], wanted.gradients[0], atol=1e-7)
    assert sums[0].counts.owners + sums[1].counts.owners == 10
    made, _, batches = mechanism(net=net, rank=1, world=2, rate=1e-9, reduce=lambda t: t)
    take(made, net, batches, 2)
    assert not made.release(100.0).gradients[0].any()


def test_many_small_and_large_tensors_are_reduced_as_one(monkeypatch):
    from memguard.privacy import mechanism as module

    monkeypatch.setattr(module, "_BUCKET", 10)
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 30), nn.Linear(30, 1))
    calls = []

    def double(tensor):
        calls.append(tensor.numel())
        return 2 * tensor

    made, _, batches = mechanism(net=net, reduce=double)
    take(made, net, batches, 2)
    exact = [2 * total.clone() / 10 for total in made.sum.sums]
    for ours, theirs in zip(made.release(0.0).gradients, exact, strict=True):
        assert torch.allclose(ours, theirs)
    assert sum(calls) == sum(p.numel() for p in net.parameters()) + 3
    assert len(calls) > 3


def test_dtypes_are_those_of_the_parameters():
    net = nn.Linear(3, 1, bias=False).double()
    made, _, batches = mechanism(net=net)
    for _ in range(2):
        made.take(None, next(batches), lambda x: net(x).sum(), lambda i: X[i : i + 1].double())
    assert made.release(1.0).gradients[0].dtype == torch.float64


def test_other_parameters_than_at_the_start():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    check_parameters([a, b], [b, a])
    with pytest.raises(PrivacyError, match="1 parameters that were not clipped, and no longer 0"):
        check_parameters([a], [a, b])
    with pytest.raises(PrivacyError, match="0 parameters that were not clipped, and no longer 1"):
        check_parameters([a, b], [b])
