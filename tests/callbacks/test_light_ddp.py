"""Probes of the audit in two gloo processes: one asks, both have the numbers."""

from __future__ import annotations

import pytest
import torch
from _processes import launch, saved


def run(folder, fault=""):
    launch("_light_ddp.py", folder, 2, fault)
    return saved(folder, 2)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("light"))


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
    first, second = run(tmp_path, "note")
    assert {probe for _, probe, *_ in first["curve"]} == {"attribute", "membership"}
    assert first["curve"] == second["curve"]
    assert len(first["notes"]) == len(second["notes"]) == 1
    first, second = run(tmp_path, "raise")
    assert "a slip" in first["failed"]
    assert "a slip" in second["failed"]
