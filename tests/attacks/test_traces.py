"""Trace scores against column-by-column loops."""

from __future__ import annotations

import time

import numpy as np
import pytest

from memguard.attacks import best_minus_final, last_seen, lt_iqr
from memguard.errors import MemguardError


def sparse_trace(rng, shape, dtype):
    trace = rng.random(shape).astype(dtype)
    trace[rng.random(shape) < 0.3] = np.nan
    return trace


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_lt_iqr_equals_numpy_on_each_record(dtype):
    trace = sparse_trace(np.random.default_rng(0), (9, 300), dtype)
    want = np.full(300, np.nan)
    for i in range(300):
        seen = trace[:, i][~np.isnan(trace[:, i])].astype(np.float64)
        if len(seen) >= 2:
            want[i] = np.quantile(seen, 0.75) - np.quantile(seen, 0.25)
    np.testing.assert_allclose(lt_iqr(trace), want, rtol=1e-5, atol=1e-6)


def test_last_seen_and_best_minus_final_equal_a_loop():
    trace = sparse_trace(np.random.default_rng(1), (6, 200), np.float32)

    def last(upto, i):
        seen = [x for x in trace[: upto + 1, i] if not np.isnan(x)]
        return seen[-1] if seen else np.nan

    np.testing.assert_allclose(last_seen(trace), [last(5, i) for i in range(200)])
    want = [last(2, i) - last(5, i) for i in range(200)]
    np.testing.assert_allclose(best_minus_final(trace, 2), want, atol=1e-6)
    np.testing.assert_allclose(best_minus_final(trace, -4), want, atol=1e-6)
    assert np.nanmax(np.abs(best_minus_final(trace, -1))) == 0


def test_many_records_in_chunks_and_in_time():
    trace = np.random.default_rng(2).random((20, 300_000)).astype(np.float16)
    start = time.process_time()
    score = lt_iqr(trace)
    assert time.process_time() - start < 3
    assert score[-1] == pytest.approx(lt_iqr(trace[:, -1:])[0])


def test_refuses_bad_input():
    with pytest.raises(MemguardError, match=r"shape \(3,\)"):
        lt_iqr([1.0, 2.0, 3.0])
    with pytest.raises(MemguardError, match="at least one snapshot"):
        last_seen(np.zeros((0, 4)))
    with pytest.raises(MemguardError, match="best = 2"):
        best_minus_final([[1], [2]], best=2)
    assert np.isnan(lt_iqr([[1.0, 2.0]])).all()
