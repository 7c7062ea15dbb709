"""A training that is killed at any moment and resumed: no step that was taken is ever missing from the ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memguard.privacy.accounting import rdp_epsilon
from memguard.privacy.ledger import Ledger

HERE = Path(__file__).parent


def killed(folder, kills, seed):
    roots = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    env = {**os.environ, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "_private_killed.py"), str(folder), str(kills), str(seed)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def check(folder, kills, seed):
    found, said = killed(folder, kills, seed)
    before = 0
    for number, one in enumerate(found, 1):
        assert not one["failed"], said
        assert one["taken"] <= one["held"]  # every step that was taken is there
        assert one["held"] >= before  # and stays there
        assert one["held"] <= one["taken"] + number  # at most one a kill was written and not taken
        assert one["seeds"] >= 2 * number  # new noise and new draws at every start
        before = one["held"]
    assert found[-1]["taken"] >= kills  # steps were taken between the kills
    spent = []
    for path in (folder / "memguard-dp").glob("*.jsonl"):
        ledger = Ledger.read(path.parent, path.stem)
        history = ledger.history()
        spent.append(max(rdp_epsilon(history[:n], 1e-2) for n in range(1, len(history) + 1)))
        assert spent[-1] == rdp_epsilon(history, 1e-2)
    assert max(spent) > 0


def test_three_kills(tmp_path):
    check(tmp_path, 3, 0)


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    check(tmp_path, 50, 4)
