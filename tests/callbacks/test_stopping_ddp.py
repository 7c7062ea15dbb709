"""LeakageStopping in two gloo processes: both stop at the same look and go back to the same weights."""

from __future__ import annotations

import math

import torch
from _processes import launch, saved
from safetensors.torch import load_file


def test_both_processes_stop_at_the_same_look_with_the_same_weights(tmp_path):
    launch("_stopping_ddp.py", tmp_path, 2)
    first, second = saved(tmp_path, 2)
    assert first["looks"] == second["looks"]
    for name in ("stopped", "best", "steps", "epochs", "logged"):
        assert first[name] == second[name]
    assert first["stopped"] == first["steps"] and first["epochs"] < 25
    assert first["best"] < first["stopped"]
    # a metric that differs between the processes: the first one's counts in both
    assert [step for step, _ in first["others"]] == [step for step, _ in second["others"]]
    mine, theirs = ([u for _, u in one["others"] if not math.isnan(u)] for one in (first, second))
    assert mine == theirs == [0.0] * len(mine) and mine
    assert first["weights"].keys() == second["weights"].keys()
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    # the first process alone writes
    assert first["path"] and not second["path"]
    kept = load_file(first["path"])
    assert all(torch.equal(value, kept[name]) for name, value in first["weights"].items())
