"""Two gloo processes: ids exact on each rank, padding removed when merged, the run bitwise the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run(folder, mode):
    keep = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("LOCAL_RANK", "MASTER_", "NODE_RANK", "WORLD"))
    }
    roots = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    env = {**keep, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "_ddp.py"), str(folder), mode]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{mode}_{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ddp"), "watched")


def test_ids_and_merged_traces(watched):
    first, second = watched
    half = len(first["ids"]) // 2  # one epoch
    seen = torch.cat([*first["ids"][:half], *second["ids"][:half]])
    assert len(seen) == 22  # one record is padded
    assert sorted(set(seen.tolist())) == list(range(21))
    assert torch.equal(first["traces"], second["traces"])
    assert first["traces"].shape == (2, 21)
    assert not first["traces"].isnan().any()
    assert torch.equal(first["probe"], second["probe"])


@pytest.mark.slow
def test_bitwise_the_same(watched, tmp_path):
    for rank, plain in enumerate(run(tmp_path, "plain")):
        with_us = watched[rank]
        assert all(torch.equal(a, with_us["weights"][k]) for k, a in plain["weights"].items())
        assert all(torch.equal(a, b) for a, b in zip(plain["losses"], with_us["losses"], strict=True))
        assert torch.equal(plain["rng"], with_us["rng"])
