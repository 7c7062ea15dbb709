"""The benchmark of Min-K% runs, and both ways give the same values."""

from __future__ import annotations

import pytest


def test_both_ways_agree_and_one_pass_is_faster():
    pytest.importorskip("transformers")
    from benchmarks.min_k_speed import main

    (row,) = main(
        ["--lengths", "40", "--sequences", "6", "--looped", "2", "--repeats", "2", "--vocabulary", "50"]
    )
    assert row.apart < 1e-9
    assert row.ratio > 4
