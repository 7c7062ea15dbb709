"""Probes of the audit in two gloo processes: one asks, both have the numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run(folder, devices, fault=""):
    keep = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LOCAL_RANK", "MASTER_", "NODE_RANK", "WORLD"))
    }
    roots = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    env = {**keep, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "_light_ddp.py"), str(folder), str(devices), fault]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{devices}_{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("light"), 2)


def test_one_process_asks_and_both_have_and_log_the_numbers(two):
    first, second = two
    assert first["curve"] == second["curve"]
    assert {probe for _, probe, *_ in first["curve"]} == {"attribute", "membership", "firsts"}
    assert first["logged"] == second["logged"]
    assert "memguard/firsts/second.minus_held_out" in first["logged"]
    assert (first["asked"], second["asked"]) == (True, False)
    firsts = [row for row in first["curve"] if row[1] == "firsts"]
    assert [row[0] for row in firsts] == [1, 2]
    assert firsts[0][-1] == 222  # every patient of both processes


def test_the_weights_of_both_stay_equal(two):
    first, second = two
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))


def test_a_fault_costs_the_probe_in_all_processes_or_ends_them_all(tmp_path):
    first, second = run(tmp_path, 2, "note")
    assert {probe for _, probe, *_ in first["curve"]} == {"attribute", "membership"}
    assert first["curve"] == second["curve"]
    assert len(first["notes"]) == len(second["notes"]) == 1
    first, second = run(tmp_path, 2, "raise")
    assert "a slip" in first["failed"]
    assert "a slip" in second["failed"]
