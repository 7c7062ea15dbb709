"""Two gloo processes say what one process with all records says, to the last digit but one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from _cases import METRICS, feed, full, numbers, records

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    roots = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    env = {**os.environ, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "_ddp.py"), str(folder)]
    running = [
        subprocess.Popen([*command, rank], env=env, cwd=folder, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(error[-2000:] for error in errors)
    return [torch.load(folder / f"said_{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("division", ["even", "uneven", "empty"])
@pytest.mark.parametrize("grouped", [False, True])
def test_merge_equals_a_single_process(said, name, division, grouped):
    metric = METRICS[name]()
    feed(metric, name, range(400), grouped=grouped)
    for rank in said:
        before, number, after = rank[f"{name} {division} {grouped}"]
        assert before == after
        # the order of the records is another, and with it the last digit of sums
        assert before == pytest.approx(numbers(metric, name), rel=1e-12)
        assert number == pytest.approx(float(metric.compute()), rel=1e-6)


def test_the_records_of_a_process_stay_its_own(said):
    metric = METRICS["auroc"]()
    feed(metric, "auroc", [*range(100), *range(40), *range(350, 390)])
    for rank in said:
        assert rank["continued"] == (full(metric, "auroc"), float(metric.compute()))
    for rank, rows in zip(said, (range(350), range(350, 400)), strict=True):
        alone = METRICS["auroc"]()
        feed(alone, "auroc", rows)
        assert rank["alone"] == full(alone, "auroc")


def test_types_may_differ_and_nothing_is_nan(said):
    preds, target, _ = records()
    metric = METRICS["auroc"]()
    metric.update(preds.half(), target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert math.isnan(METRICS["auroc"]().compute())
    for rank in said:
        assert rank["mixed"] == float(metric.compute()) and math.isnan(rank["nothing"])
