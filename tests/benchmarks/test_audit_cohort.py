"""The audit's cohort benchmark runs end to end with small models, and reads its own cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.audit_cohort.__main__ import run
from benchmarks.audit_cohort.models import Recipe, load_world
from benchmarks.audit_cohort.setting import adapters_of, audit_of, null_of

RECIPE = Recipe(n=600, epochs=1, width=16)


def test_quick_run_prints_every_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(1, RECIPE, 3, tmp_path, (0, 20), 2)
    said = capsys.readouterr().out
    assert said.count("Bar ") == 4
    assert "T5, k = 20" in said
    run(1, RECIPE, 3, tmp_path, (0, 20), 0)
    assert "trained 1-" not in capsys.readouterr().out


def test_null_sides_are_strangers_to_the_target(tmp_path: Path) -> None:
    world = load_world(2, 2, RECIPE, tmp_path)
    adapters = adapters_of(world)
    null, audit = null_of(world, adapters, 0, 5), audit_of(world, adapters, 0)
    seen = set(world.cohort.patient[world.inside[0]].tolist())
    assert not seen & set(null.subject.patient.tolist())
    assert set(audit.subject.patient[audit.subject.member].tolist()) == seen
    assert np.array_equal(audit.asked.references.in_mask[0], ~audit.subject.member)
    assert audit.asked.references.in_mask.shape == (1, 600)
