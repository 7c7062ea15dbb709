"""Prompts: against loops over records."""

from __future__ import annotations

import numpy as np
import pytest

from memguard.errors import DataError
from memguard.probes.prompts import beginnings, first_places, log_probs_of, mean_over_out, prompts_before
from memguard.records.content import Ragged


@pytest.fixture
def records() -> tuple[Ragged, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 20, rng.integers(1, 30)).tolist() for _ in range(200)]
    sequences = Ragged.from_lists(rows)
    return sequences, np.minimum(rng.integers(0, 4, 200), sequences.lengths)


def test_first_places_equal_a_loop(records: tuple[Ragged, np.ndarray]) -> None:
    sequences, static = records
    which = np.isin(np.arange(20), (3, 17))
    naive = []
    for i in range(len(sequences)):
        hits = [j for j, token in enumerate(sequences[i]) if j >= static[i] and which[token]]
        naive.append(hits[0] if hits else -1)
    assert first_places(sequences, static, which).tolist() == naive


def test_first_places_refuses_a_table_that_is_too_short(records: tuple[Ragged, np.ndarray]) -> None:
    with pytest.raises(DataError, match="token 19 with 5 truth values"):
        first_places(*records, np.zeros(5, bool))


@pytest.mark.parametrize("k", [0, 1, 3, 50])
@pytest.mark.parametrize("longest", [None, 6])
def test_prompts_equal_a_loop(records: tuple[Ragged, np.ndarray], k: int, longest: int | None) -> None:
    sequences, static = records
    rng = np.random.default_rng(1)
    row = rng.integers(0, 200, 300)
    place = np.array([rng.integers(static[i], len(sequences[i]) + 1) for i in row])
    before = prompts_before(sequences, row, place, static, k, longest=longest)
    begun = beginnings(sequences, row, static, k, longest=longest)
    for n, (i, at) in enumerate(zip(row, place, strict=True)):
        tokens, head = sequences[i].tolist(), static[i]
        known = tokens[head:at][-k:] if k else []
        if longest is not None:
            known = known[max(0, len(known) - (longest - head)) :]
        assert before[n].tolist() == tokens[:head] + known
        start = tokens[: head + k]
        assert begun[n].tolist() == (start if longest is None else start[:longest])


def test_the_code_itself_is_never_in_the_prompt() -> None:
    sequences = Ragged.from_lists([[1, 2, 9, 3]])
    prompt = prompts_before(sequences, np.array([0]), np.array([2]), np.array([1]), 50)
    assert prompt[0].tolist() == [1, 2]


class _Fixed:
    """Always the same distribution."""

    abilities = frozenset({"log_probs"})
    vocabulary, longest = 4, None

    def __init__(self) -> None:
        self.patients: list[np.ndarray] = []

    def next_log_probs(self, prompts: Ragged, *, patient: np.ndarray | None = None) -> np.ndarray:
        assert patient is not None
        self.patients.append(patient)
        return np.tile(np.log([0.1, 0.2, 0.3, 0.4]), (len(prompts), 1))


def test_log_probs_of_tokens_and_of_groups() -> None:
    model, prompts = _Fixed(), Ragged.from_lists([[0], [1], [2]])
    patient = np.array([7, 8, 9])
    assert np.exp(log_probs_of(model, prompts, np.array([0, 3, 1]), patient=patient)) == pytest.approx(
        [0.1, 0.4, 0.2]
    )  # type: ignore[arg-type]
    groups = np.array([[True, True, False, False], [False, False, False, False]])
    found = log_probs_of(model, prompts, groups, patient=patient)  # type: ignore[arg-type]
    assert np.exp(found[:, 0]) == pytest.approx([0.3] * 3)
    assert np.all(np.isneginf(found[:, 1]))
    assert np.concatenate(model.patients).tolist() == [7, 8, 9, 7, 8, 9]


def test_mean_over_out_is_of_probabilities() -> None:
    log_p = np.log(np.random.default_rng(2).random((5, 40)))
    out = np.random.default_rng(3).random((5, 40)) < 0.5
    found = mean_over_out(log_p, out)
    for i in range(40):
        mine = np.exp(log_p[out[:, i], i])
        assert np.isnan(found[i]) if not len(mine) else found[i] == pytest.approx(np.log(mine.mean()))
