"""The speed and power benchmarks at test size: they run, and the loops agree with the library."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.attack_power import GAPS, line, measured, recorded, simulated
from benchmarks.attack_speed import Row, rows


def test_every_line_is_measured() -> None:
    found = [row for row in rows(scale=0.005, repeats=1) if isinstance(row, Row)]
    assert len(found) >= 8
    for row in found:
        assert row.ours >= 0 and row.loop > 0 and row.name in str(Row(row.name, 1.0, row.bar, row.loop))


@pytest.mark.parametrize("gap", GAPS)
def test_power_of_all_attacks(gap: str) -> None:
    found = measured(*simulated(0, 8, 3000, gap))
    assert set(found) == {"LiRA pooled", "LiRA per record", "RMIA", "BaVarIA-n", "BaVarIA-t"}
    assert found["BaVarIA-n"][0] > found["LiRA pooled"][0] > 0.6
    assert "RMIA" in line([found, found])


def test_recorded_losses_are_read(tmp_path) -> None:
    for i, members in enumerate(([3, 9], [5, 8])):
        np.savez(tmp_path / f"half-0{i}.npz", members=np.array(members), every=np.full((2, 4), float(i)))
    losses, mask = recorded(tmp_path, 1)
    assert losses.tolist() == [[0.0] * 4, [1.0] * 4]
    assert mask.tolist() == [[True, False, False, True], [False, True, True, False]]
