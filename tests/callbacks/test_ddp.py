"""Two gloo processes: both know every record, agree on every number, and one of them writes."""

from __future__ import annotations

import pytest
import torch
from _processes import launch, saved


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    launch("_ddp.py", folder, 2)
    return saved(folder, 2)


def test_both_ranks_agree_and_know_every_record(two):
    first, second = two
    assert first["curve"] == second["curve"]
    assert first["metric"] == second["metric"]
    assert torch.equal(first["traces"], second["traces"])
    assert first["traces"].shape == (3, 241)
    assert not first["traces"].isnan().any()
    assert first["held_out"].shape == (3, 161)
    assert not first["held_out"].isnan().any()
    assert [first["content"], second["content"]] == [241, 241]
    assert [point[3] for point in first["curve"]] == [1.0, 1.0, 1.0]


def test_only_rank_zero_writes(two):
    first, second = two
    assert "flags" in first["files"]
    assert second["files"] == []
    assert first["patients"] == 241
