"""Starts a script of this folder that trains in gloo processes, and reads what each of them saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
# What a launcher around the tests has set is not meant for theirs.
LAUNCHED = ("LOCAL_RANK", "MASTER_", "NODE_RANK", "WORLD")


def launch(script, folder, devices, *words):
    """Run a script of this folder on so many processes."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    roots = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    env = {**keep, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / script), str(folder), str(devices), *words]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


def saved(folder, devices, case=""):
    """What each process saved, rank by rank."""
    return [torch.load(folder / f"{case}{devices}_{rank}.pt", weights_only=True) for rank in range(devices)]
