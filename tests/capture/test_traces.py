"""Traces: first observation wins, two bytes a record, and a state that resumes and merges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard.capture import LossTraces
from memguard.errors import DataError, IndexTrackingError

SEEN = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 100, width=16)), max_size=40)


@settings(deadline=None, max_examples=60)
@given(epochs=st.lists(SEEN, max_size=5), batch=st.integers(1, 7))
def test_against_a_dictionary(epochs, batch):
    traces, rows = LossTraces(10), []
    for seen in epochs:
        first: dict[int, float] = {}
        for position, loss in seen:
            first.setdefault(position, loss)
        for at in range(0, len(seen), batch):
            part = seen[at : at + batch]
            traces.add([p for p, _ in part], [v for _, v in part])
        assert traces.close() is bool(first)
        if first:
            rows.append([first.get(i, np.nan) for i in range(10)])
    expected = np.array(rows, dtype=np.float16).reshape(-1, 10)
    np.testing.assert_array_equal(traces.array(), expected)
    assert len(traces) == len(rows) == len(traces.epochs)
    assert traces.coverage == pytest.approx((~np.isnan(expected)).any(0).mean() if len(rows) else 0.0)


def test_storage_is_two_bytes_a_record_and_snapshot():
    traces = LossTraces(1000)
    for epoch in range(50):
        traces.add(np.arange(1000), np.full(1000, epoch))
        traces.close(epoch, step=epoch * 10)
    array = traces.array()
    assert array.dtype == np.float16
    assert array.nbytes == 2 * 50 * 1000
    assert not array.flags.writeable
    assert traces.array().base is array.base
    assert traces.epochs[-1] == 49
    assert traces.steps[-1] == 490
    assert traces.first().tolist() == [0.0] * 1000


def test_huge_and_missing_losses():
    traces = LossTraces(3)
    traces.add([0, 1, 2], [1e9, np.nan, 2.0])
    traces.add([1], [3.0])
    traces.close()
    assert traces.array()[0].tolist() == [65504.0, 3.0, 2.0]


def test_bad_input_is_refused():
    traces = LossTraces(3)
    with pytest.raises(IndexTrackingError, match="2 positions for 3 losses"):
        traces.add([0, 1], [1.0, 2.0, 3.0])
    for wrong in ([3], [-1]):
        with pytest.raises(IndexTrackingError, match="position"):
            traces.add(wrong, [1.0])
    with pytest.raises(DataError):
        LossTraces(3, np.float64)
    assert traces.close() is False


def half_way(fingerprint="rows:4"):
    traces = LossTraces(4, fingerprint=fingerprint)
    traces.add([0, 1, 2], [1.0, 2.0, 3.0])
    traces.close(0, 5)
    traces.add([3], [9.0])
    return traces


def test_state_survives_a_checkpoint(tmp_path):
    straight, saved = half_way(), half_way()
    torch.save({"traces": saved.state_dict()}, tmp_path / "state.ckpt")
    saved.add([0], [99.0])  # a state is a copy
    resumed = LossTraces(4, fingerprint="rows:4")
    resumed.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True)["traces"])
    for traces in (straight, resumed):
        traces.add([0, 3], [7.0, 1.0])
        traces.close(1, 10)
    np.testing.assert_array_equal(straight.array(), resumed.array())
    assert (straight.epochs, straight.steps, straight.coverage) == (
        resumed.epochs,
        resumed.steps,
        resumed.coverage,
    )


def test_state_of_another_dataset_is_refused():
    state = half_way().state_dict()
    for traces in (LossTraces(5), LossTraces(4, fingerprint="other:4")):
        with pytest.raises(DataError, match="other patients"):
            traces.load_state_dict(state)
    with pytest.raises(DataError, match="version"):
        LossTraces(4).load_state_dict({**state, "version": 99})


def test_ranks_merge_without_their_padding():
    # Five records on two ranks: the sampler pads the second one with record 0.
    ranks = [LossTraces(5), LossTraces(5)]
    ranks[0].add([0, 2, 4], [1.0, 3.0, 5.0])
    ranks[1].add([1, 3, 0], [2.0, 4.0, 99.0])
    payloads = [traces.payload() for traces in ranks]
    for traces in ranks:
        traces.merge(payloads)
        traces.close()
        assert traces.array()[0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
