"""The memorization probe: what its p-values rest on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from memguard.attacks import conformal_p_values, storey_share
from memguard.probes.memorization import Memorization, memorization_probe, memorized_share
from memguard.probes.watch import Watch
from memguard.records.patients import PatientMap
from memguard.records.surrogate import memorization_score


def probe(**how: bool) -> tuple[Memorization, np.ndarray]:
    """300 members, the last 30 memorized, against 400 held-out patients; and the held-out gaps."""
    rng = np.random.default_rng(0)
    early, held_early = rng.normal(3, 1, 300), rng.normal(3, 1, 400)
    now = early + rng.normal(0, 0.1, 300) - np.repeat([0, 2], [270, 30])
    held_now = held_early + rng.normal(0, 0.1, 400)
    scores = memorization_score(
        None,
        traces=[early, now],
        held_out_traces=[held_early, held_now - 1],
        loss=now,
        held_out_loss=held_now,
    )
    found = memorization_probe(
        scores,
        patient=np.arange(300),
        tokens=np.ones(300, int),
        held_out_patient=np.arange(400),
        held_out_tokens=np.ones(400, int),
        basis="evaluated",
        **how,
    )
    return found, scores.held_out_gap


def test_without_a_tail_p_values_are_counted_and_the_share_is_the_same() -> None:
    (with_tail, null), (counted, _) = probe(), probe(tail=False)
    assert (with_tail.p_method, counted.p_method) == ("tail", "empirical")
    assert counted.p.tolist() == conformal_p_values(counted.severity, null).tolist()
    assert with_tail.p.min() < 1 / 401 == counted.p.min()
    assert with_tail.p_resolution == counted.p_resolution == 1 / 401  # what counting alone can give
    share = memorized_share(counted, np.arange(300), 400)
    assert share == memorized_share(with_tail, np.arange(300), 400) == storey_share(counted.p, n_null=400)


def test_ranks_go_by_the_score_and_ties_keep_their_order() -> None:
    found, _ = probe()
    assert found.score[np.argsort(found.rank)].tolist() == sorted(found.score.tolist(), reverse=True)
    tied = dataclasses.replace(found, score=np.array([1.0, 3.0, np.nan, 3.0, 2.0]))
    assert tied.rank.tolist() == [4, 1, 5, 2, 3]


def test_a_look_tests_a_tail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of the sample is counted; only the members' own p-values may need a tail."""
    calls: list[int] = []
    real = memorization_probe.__globals__["tail_p_values"]

    def counting(scores: np.ndarray, null: np.ndarray) -> object:
        calls.append(len(scores))
        return real(scores, null)

    monkeypatch.setitem(memorization_probe.__globals__, "tail_p_values", counting)
    rng = np.random.default_rng(0)
    watch = Watch(PatientMap.of_records(500), PatientMap.of_records(300))
    hard, hard_out = rng.normal(3, 0.5, 500), rng.normal(3, 0.5, 300)
    for epoch in range(3):
        loss = (hard + 0.05 * rng.normal(size=500) - 0.3 * epoch).astype(np.float32)
        held = (hard_out + 0.05 * rng.normal(size=300) - 0.2 * epoch).astype(np.float32)
        watch.members.add(np.arange(500), loss, np.ones(500, np.int64))
        watch.held_out.add(np.arange(300), held, np.ones(300, np.int64))
        calls.clear()
        sample = watch.draw_sample()
        look = watch.look(epoch=epoch + 1, step=epoch + 1, sample_loss=loss[sample])
        watch.close_epoch(epoch, epoch + 1)
    assert look.memorization is not None and look.memorized_share is not None, look.refused
    assert calls == [500]
