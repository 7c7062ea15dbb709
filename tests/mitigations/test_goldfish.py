"""The goldfish mask against a loop over tokens, and what the weights keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memguard.errors import MemguardError
from memguard.mitigations.goldfish import GoldfishRule, goldfish_kept, goldfish_keys, goldfish_weights


def by_loop(targets, counted, k, keys):
    """The rule as a person would say it: one token after another, in Python's unbounded numbers."""
    keys = [int(key) % 2**64 for key in keys]
    h = len(keys) - 1
    kept = np.ones(targets.shape, bool)
    for i, row in enumerate(targets.tolist()):
        before = []
        for t, token in enumerate(row):
            if not counted[i, t]:
                continue
            if before:
                context = ([0] * h + [x + 1 for x in before])[-h:]
                value = (keys[0] + sum(a * x for a, x in zip(keys[1:], context, strict=True))) % 2**64
                kept[i, t] = value >> 33 >= 2**31 // k
            before.append(token)
    return kept


@pytest.mark.parametrize(("k", "h"), [(2, 1), (3, 5), (4, 13), (7, 40)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_mask_is_that_of_a_loop_over_tokens(k, h, dtype):
    generator = torch.Generator().manual_seed(h)
    targets = torch.randint(0, 50_000, (9, 30), generator=generator).to(dtype)
    counted = torch.rand(9, 30, generator=generator) < 0.8
    counted[3], counted[4] = False, True
    keys = goldfish_keys(h, seed=5)
    found = goldfish_kept(targets, counted, k, keys)
    assert np.array_equal(found.numpy(), by_loop(targets, counted, k, keys))
    assert not found.all()


def test_copies_are_masked_alike_wherever_they_stand():
    generator = torch.Generator().manual_seed(0)
    passage = torch.randint(1, 900, (40,), generator=generator)
    rows = torch.randint(1, 900, (200, 60), generator=generator)
    for i, row in enumerate(rows):
        row[i % 20 : i % 20 + 40] = passage
    keys, h = goldfish_keys(5), 5
    kept = goldfish_kept(rows, torch.ones_like(rows, dtype=torch.bool), 4, keys)
    inside = torch.stack([kept[i, i % 20 + h : i % 20 + 40] for i in range(200)])
    assert (inside == inside[0]).all()
    assert 0 < (~inside[0]).sum() < 35 - h
    # another order of the same tokens is another context
    swapped = passage.clone()
    swapped[:30] = passage[:30].flip(0)
    again = goldfish_kept(swapped[None], torch.ones(1, 40, dtype=torch.bool), 4, keys)
    assert (again[0, h:30] != kept[0, h:30]).any()


@pytest.mark.parametrize("k", [2, 4, 10])
def test_one_of_k_is_left_out_under_every_seed_and_neighbours_do_not_depend_on_each_other(k):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(1, 300, (400, 60), generator=generator)
    every = torch.ones_like(targets, dtype=torch.bool)
    for seed in range(5):
        out = ~goldfish_kept(targets, every, k, goldfish_keys(5, seed))[:, 5:]
        share, n = out.float().mean().item(), out.numel()
        assert abs(share - 1 / k) < 5 * (1 / k * (1 - 1 / k) / n) ** 0.5
        both = (out[:, 1:] & out[:, :-1]).float().mean().item()
        assert abs(both - 1 / k**2) < 5 * (1 / k**2 / n) ** 0.5
    other = ~goldfish_kept(targets, every, k, goldfish_keys(5, 99))[:, 5:]
    assert abs((other & out).float().mean().item() - 1 / k**2) < 5 * (1 / k**2 / n) ** 0.5


def test_short_contexts_hit_one_of_k_too_and_the_first_token_never():
    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(1, 100_000, (20_000, 6), generator=generator)
    out = ~goldfish_kept(targets, torch.ones_like(targets, dtype=torch.bool), 4, goldfish_keys(5))
    assert not out[:, 0].any()
    assert (out[:, 1:].float().mean(0) - 0.25).abs().max() < 5 * (0.1875 / 20_000) ** 0.5


def test_the_mask_of_a_record_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(1, 50, (12, 20), generator=generator)
    masses = (torch.arange(20) < torch.randint(1, 21, (12, 1), generator=generator)).float()
    keys = goldfish_keys(3)
    whole = goldfish_weights(targets, masses, 4, keys)
    for i in range(12):
        n = int(masses[i].sum())
        alone = goldfish_weights(targets[i : i + 1, :n], masses[i : i + 1, :n], 4, keys)
        assert torch.equal(whole[i, :n], alone[0])
    assert torch.equal(whole.flip(0), goldfish_weights(targets.flip(0), masses.flip(0), 4, keys))


def test_a_record_keeps_its_mass():
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(1, 50, (30, 20), generator=generator)
    masses = torch.rand(30, 20, generator=generator) + 0.1
    masses[torch.rand(30, 20, generator=generator) < 0.3] = 0
    masses[7] = 0  # a record without a target
    weights = goldfish_weights(targets, masses, 3, goldfish_keys(5))
    torch.testing.assert_close((weights * masses).sum(1), masses.sum(1))
    assert (weights[masses == 0] == 1).all() and torch.isfinite(weights).all()
    left_out = weights == 0
    assert left_out.any()
    same = [weights[i][(masses[i] != 0) & ~left_out[i]].unique().numel() for i in range(30) if i != 7]
    assert set(same) == {1}


@pytest.mark.parametrize("wrong", [{"k": 1}, {"k": 2.5}, {"k": True}, {"h": 0}, {"seed": -1}])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(MemguardError, match=f"pass {next(iter(wrong))}="):
        GoldfishRule(**{"k": 4, "h": 5, **wrong})
