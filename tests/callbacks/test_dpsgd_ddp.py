"""Two gloo processes share one draw, take the same step as one process, and one of them writes."""

from __future__ import annotations

import pytest
import torch
from _processes import launch, saved


def run(folder, devices, *cases):
    launch("_private_ddp.py", folder, devices, *cases)
    return {case: saved(folder, devices, case) for case in cases}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def two(folder):
    return run(folder, 2, "exact", "empty", "noise", "sync", "gather")


@pytest.fixture(scope="module")
def one(folder):
    return run(folder, 1, "exact")


def test_an_update_of_two_processes_is_that_of_one(one, two):
    (alone,) = one["exact"]
    first, second = two["exact"]
    assert alone["global_step"] == first["global_step"] == len(first["steps"])
    for step, (positions, grads) in enumerate(alone["steps"]):
        ours, theirs = first["steps"][step][0], second["steps"][step][0]
        assert sorted(ours + theirs) == sorted(positions)  # one draw, shared out
        for name, gradient in grads.items():
            assert torch.equal(first["steps"][step][1][name], second["steps"][step][1][name])
            assert (first["steps"][step][1][name] - gradient).abs().max() < 1e-6
    for name, value in alone["weights"].items():
        assert (first["weights"][name] - value).abs().max() < 1e-6
        assert torch.equal(first["weights"][name], second["weights"][name])


@pytest.mark.parametrize("case", ["exact", "empty", "noise", "sync"])
def test_both_count_the_same_and_one_writes(two, case):
    first, second = two[case]
    assert first["problem"] == second["problem"] == ""
    assert first["run"] == second["run"] == first["global_step"] == second["global_step"] > 0
    assert first["batches"] == second["batches"] == first["run"] * first["parts"]
    assert first["ledgers"] == second["ledgers"] == 1
    assert first["epsilon"] == second["epsilon"]
    assert first["said"].splitlines()[0] == second["said"].splitlines()[0]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])


def test_processes_without_patients_wait_for_nobody(two):
    first, second = two["empty"]
    drawn = [len(one[0]) + len(other[0]) for one, other in zip(first["steps"], second["steps"], strict=True)]
    assert 0 in [len(one[0]) for one in first["steps"]] + [len(one[0]) for one in second["steps"]]
    assert len(drawn) == first["global_step"]


def test_noise_is_added_once(two):
    (gradients, _) = two["noise"]
    flat = torch.cat([g.flatten() for _, grads in gradients["steps"] for g in grads.values()])
    # 3 C / 10 patients expected; twice the noise would be 1.4 times as much
    assert flat.std().item() == pytest.approx(3.0 * 0.5 / 10, rel=0.15)
    assert two["noise"][0]["coverage"] == two["noise"][1]["coverage"]
    assert len(two["noise"][0]["coverage"]) == 2


def test_a_step_that_gathers_from_others_is_refused(two):
    for found in two["gather"]:
        assert "gathers from the other processes" in found["problem"]
        assert found["global_step"] == 0
