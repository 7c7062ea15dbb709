"""Two gloo processes: both know every record, agree on every number, and one of them writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run(folder, devices):
    keep = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LOCAL_RANK", "MASTER_", "NODE_RANK", "WORLD"))
    }
    roots = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    env = {**keep, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "_ddp.py"), str(folder), str(devices)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{devices}_{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ddp"), 2)


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
