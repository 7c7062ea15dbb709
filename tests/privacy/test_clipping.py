"""The clipped sum: no owner adds more than C, whatever his gradient is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from memguard.errors import PrivacyError
from memguard.privacy.clipping import ClippedSum
from memguard.privacy.draws import Chunk
from memguard.privacy.engines.base import Work
from memguard.privacy.engines.opacus import OpacusEngine

SHAPES = [(3, 2), (4,), ()]


def parameters():
    return [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]


def contributions(n, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(n, *shape, generator=generator) for shape in SHAPES]


def plain(rows, clip):
    total = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for owner in range(len(rows[0])):
        own = [each[owner].double() for each in rows]
        norm = sum(each.square().sum() for each in own).sqrt()
        for at, each in enumerate(own):
            total[at] += each * min(1.0, clip / norm)
    return total


@given(
    st.integers(0, 6), st.integers(0, 1000), st.sampled_from([1e-6, 0.1, 1.0, 1e6]), st.floats(0.01, 100.0)
)
def test_sums_are_those_of_a_loop_and_no_owner_exceeds_c(n, seed, scale, clip):
    rows = contributions(n, seed, scale)
    many, one = ClippedSum(parameters(), clip), ClippedSum(parameters(), clip)
    many.add(rows)
    for owner in range(n):
        before = [total.clone() for total in one.sums]
        one.add_one([each[owner] for each in rows])
        moved = sum((a - b).square().sum() for a, b in zip(one.sums, before, strict=True)).sqrt()
        assert moved <= clip * (1 + 1e-4) + 1e-6 * clip * n
    for a, b, c in zip(many.sums, one.sums, plain(rows, clip), strict=True):
        assert torch.allclose(a.double(), c, rtol=1e-4, atol=1e-5 * clip)
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * clip)
    assert (many.n_owners, many.n_clipped) == (one.n_owners, one.n_clipped)
    assert many.n_owners == n


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_gradient_that_is_no_number_adds_nothing_and_is_counted(bad):
    rows = contributions(3, 0)
    for each in rows:
        each[1] = bad
    total = ClippedSum(parameters(), 1.0)
    total.add(rows)
    total.add_one([each[1] for each in rows])
    rest = ClippedSum(parameters(), 1.0)
    rest.add([each[[0, 2]] for each in rows])
    for a, b in zip(total.sums, rest.sums, strict=True):
        assert torch.allclose(a, b)
    assert (total.n_owners, total.n_nonfinite) == (4, 2)  # 1e30 overflows in the square of its norm


def test_a_nan_of_one_owner_stays_his_own():
    x = torch.ones(4, 2)
    x[3, 0] = torch.nan
    net = nn.Linear(2, 1, bias=False)
    parameters = list(net.parameters())
    engine, into = OpacusEngine(net, parameters, reduction="mean"), ClippedSum(parameters, 10.0)
    owner = np.array([0, 0, 1, 1])
    chunk = Chunk(draw=0, part=0, parts=1, positions=np.arange(4), owner=owner, n_owners=2)
    engine.attach()
    engine.accumulate(Work(x, chunk), lambda batch: net(batch).mean(), lambda at: x[at : at + 1], into)
    engine.detach()
    assert (into.n_owners, into.n_nonfinite) == (2, 1)
    assert into.sums[0].tolist() == [[1.0, 1.0]]


def test_zero_gradients_and_missing_ones():
    total = ClippedSum(parameters(), 1.0)
    total.add([torch.zeros(2, *shape) for shape in SHAPES])
    total.add_one([None, None, None])
    total.add_one([None, torch.full((4,), 3.0), None])
    assert total.sums[1].tolist() == [0.5] * 4
    assert not total.sums[0].any()
    assert (total.n_owners, total.n_clipped, total.n_nonfinite) == (4, 1, 0)


def test_sums_are_float32_for_half_precision_and_are_forgotten():
    half = [nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))]
    total = ClippedSum(half, 1.0)
    for _ in range(1000):
        total.add_one([torch.full((4,), 1e-3, dtype=torch.bfloat16)])
    assert total.sums[0].dtype == torch.float32
    assert torch.allclose(total.sums[0], torch.ones(4), rtol=5e-3)
    total.reset()
    assert not total.sums[0].any()
    assert total.n_owners == total.n_clipped == 0


@pytest.mark.parametrize("clip", [0, -1, float("inf"), float("nan")])
def test_a_clip_norm_that_bounds_nothing(clip):
    with pytest.raises(PrivacyError, match="max_grad_norm"):
        ClippedSum(parameters(), clip)
