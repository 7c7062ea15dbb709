"""One lineage: what was spent before counts, the ledger comes first, and no step goes beyond the promise."""

from __future__ import annotations

import stat

import pytest

from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.accounting import Phase, epsilon
from memguard.privacy.ledger import Ledger
from memguard.privacy.opening import open_run
from memguard.privacy.plan import EVERYBODY, make_plan
from memguard.privacy.run import RunSettings, delta_for, noise_for, rates_for
from memguard.records.patients import PatientMap

PATIENTS = PatientMap.from_ids(list(range(100)), source="a list")
PLAN = make_plan(PATIENTS, unit="patient", batch_size=10)
SEEDS = iter(range(10**6))


def opened(
    folder, *, state=None, plan=PLAN, planned=5, in_all=None, rank=0, step=None, broadcast=None, **settings
):
    given = RunSettings(**{"delta": 1e-3, **(settings or {"noise_multiplier": 2.0})})
    delta = delta_for(given, plan)
    rates, noise = rates_for(given, plan, in_all or planned, delta)
    return open_run(
        plan, given, folder=folder, state=state, global_step=(0 if state is None else 1) if step is None else step,
        planned=planned, planned_in_all=in_all or planned, rates=rates, fixed_noise=noise,
        seeds={"noise": f"n{next(SEEDS)}"}, facts={"engine": "loop"}, rank=rank,
        **({} if broadcast is None else {"broadcast": broadcast}),
    )  # fmt: skip


def stop(run):
    state = run.state_dict()
    run.close()
    return state


def test_steps_are_in_the_file_before_they_count(tmp_path):
    run = opened(tmp_path)
    for number in range(3):
        run.spend(number)
        assert Ledger.read(tmp_path, run.run).n_steps == number + 1 == run.steps
    assert run.history(EVERYBODY) == [Phase(2.0, 0.1, 3)]
    assert run.epsilon() == epsilon([Phase(2.0, 0.1, 3)], 1e-3).value <= run.epsilon_now()
    assert not run.complete
    assert not run.exhausted()
    assert stat.S_IMODE(run.ledger_path.stat().st_mode) == 0o600
    run.close()
    assert run.epsilon() > 0


def test_what_cannot_be_written_down_is_not_spent(tmp_path):
    run = opened(tmp_path)
    run.ledger.close()
    with pytest.raises(PrivacyError):
        run.spend(0)
    assert run.steps == 0


def test_a_resume_goes_on(tmp_path):
    first = opened(tmp_path)
    for number in range(3):
        first.spend(number)
    again = opened(tmp_path, state=stop(first), planned=2)
    for number in range(3, 5):
        again.spend(number)
    assert again.run == first.run
    assert again.steps == 5
    assert again.complete
    assert again.state_dict()["steps"] == 5
    assert again.state_dict()["parts"] == PLAN.parts
    assert Ledger.read(tmp_path, again.run).history() == [Phase(2.0, 0.1, 5)]
    again.close()


def test_a_target_is_never_exceeded(tmp_path):
    first = opened(tmp_path, target_epsilon=2.0, planned=4)
    for number in range(3):
        first.spend(number)
    state = stop(first)
    again = opened(tmp_path, state=state, target_epsilon=2.0, planned=1)
    assert again.noise_multiplier == first.noise_multiplier
    again.close()
    back = opened(tmp_path, state=state, target_epsilon=2.0, planned=3)  # rolled back by two steps
    assert back.noise_multiplier > first.noise_multiplier
    for number in range(3):
        back.spend(number)
        assert back.epsilon_now() <= 2.0
    assert back.exhausted()
    with pytest.raises(PrivacyError, match="a step more than the 3"):
        back.spend(3)
    assert back.steps == 6
    assert 1.9 < back.epsilon() <= 2.0
    back.close()
    with pytest.raises(PrivacyError, match=r"6 steps have spent epsilon .* target_epsilon=2"):
        opened(tmp_path, state=state, target_epsilon=2.0, planned=3)


def test_noise_needs_an_end():
    settings = RunSettings(target_epsilon=2.0)
    with pytest.raises(PrivacyError, match="without a planned end"):
        noise_for(settings, PLAN, 1e-3, None, [])
    with pytest.raises(PrivacyError, match="without a planned end"):
        rates_for(RunSettings(budgets={"a": 1.0}, strata=["a"] * 100), PLAN, None, 1e-3)


def test_a_run_without_its_state_is_not_gone_on_with(tmp_path):
    with pytest.raises(PrivacyError, match="no state of DPSGD"):
        opened(tmp_path, step=3)
    assert not list(tmp_path.iterdir())


def test_other_processes_learn_from_the_first(tmp_path):
    told = []

    def listens(one):
        told.append(one)
        return one

    first = opened(tmp_path, broadcast=listens)
    second = opened(tmp_path, rank=1, broadcast=lambda _: told[-1])
    assert second.ledger is None
    assert (second.run, second.noise_multiplier, second.planned) == (
        first.run,
        first.noise_multiplier,
        first.planned,
    )
    first.spend(0)
    second.spend(0)
    assert second.epsilon_now() == first.epsilon_now()
    assert second.ledger_path == first.ledger_path
    state = stop(first)
    (tmp_path / f"{first.run}.jsonl").unlink()
    with pytest.raises(PrivacyError, match="no ledger") as problem:
        opened(tmp_path, state=state, broadcast=listens)
    with pytest.raises(PrivacyError, match="no ledger"):  # nobody waits for a process that has stopped
        opened(tmp_path, state=state, rank=1, broadcast=lambda _: told[-1])
    assert told[-1] is problem.value


def test_budgets_are_spent_together_and_hold_over_a_rollback(tmp_path):
    plan = make_plan(PATIENTS, unit="patient", batch_size=10, strata=["a"] * 30 + ["b"] * 70)
    budgets = {"budgets": {"a": 1.0, "b": 3.0}, "strata": ["a"] * 30 + ["b"] * 70}
    first = opened(tmp_path, plan=plan, planned=6, **budgets)
    for number in range(4):
        first.spend(number)
    state = stop(first)
    with pytest.warns(MemguardWarning, match="4 steps to come, and budgets for 2"):
        again = opened(tmp_path, plan=plan, state=state, planned=4, in_all=6, **budgets)
    for number in range(2):
        again.spend(number)
    assert again.exhausted()
    spent = {name: epsilon(again.history(name), 1e-3).value for name in ("a", "b")}
    assert 0.9 < spent["a"] <= 1.0
    assert 2.7 < spent["b"] <= 3.0
    again.close()
    with pytest.raises(PrivacyError, match="another length or other rates"):
        opened(tmp_path, plan=plan, state=state, planned=9, in_all=11, **budgets)


def test_a_ledger_that_could_not_be_begun_is_let_go(tmp_path):
    with pytest.raises(PrivacyError):
        opened(tmp_path, target_epsilon=2.0, planned=None, in_all=5)
    (path,) = tmp_path.glob("*.jsonl")
    assert Ledger.read(tmp_path, path.stem).n_steps == 0
    assert Ledger.others(tmp_path, PLAN.fingerprint) == []


@pytest.mark.parametrize("name", ["max_grad_norm", "sample_rate", "physical_batch_size", "noise_multiplier"])
@pytest.mark.parametrize("value", ["1e-1", True, [1.0]])
def test_what_is_no_number_is_said_to_be_none(name, value):
    settings = {"target_epsilon": 8.0} if name != "noise_multiplier" else {}
    with pytest.raises(PrivacyError, match=rf"{name}=.*read as no number.*{name}= as a number"):
        RunSettings(**settings, **{name: value})
