"""The parts of the monitor by themselves: when it looks, what a failure costs, what it keeps."""

import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from memguard.callbacks.guard import Guard
from memguard.callbacks.outputs import OutputSettings
from memguard.callbacks.results import Results
from memguard.callbacks.schedule import due, due_between, epochs_done
from memguard.errors import DataError, MemguardError, MemguardWarning
from memguard.probes.watch import Watch
from memguard.records.patients import PatientMap


def run(**values):
    fit_loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(
            batch_progress=SimpleNamespace(current=SimpleNamespace(ready=values.pop("ready", 0)))
        )
    )
    usual = {
        "current_epoch": 0,
        "max_epochs": 6,
        "enable_validation": True,
        "num_training_batches": 8,
        "is_last_batch": False,
        "accumulate_grad_batches": 1,
        "global_step": 0,
    }
    return SimpleNamespace(fit_loop=fit_loop, **(usual | values))


def test_looks_at_the_first_epoch_every_so_many_and_the_last():
    def epochs(every, **values):
        return [e + 1 for e in range(6) if due(run(current_epoch=e, **values), "validation", "auto", every)]

    assert epochs(1) == [1, 2, 3, 4, 5, 6]
    assert epochs(2) == [1, 3, 5, 6]
    assert epochs(4) == [1, 5, 6]
    assert epochs(4, max_epochs=-1) == epochs(4, max_epochs=None) == [1, 5]  # nobody knows which is the last


@pytest.mark.parametrize(("log_on", "validation", "where"), [
    ("auto", True, "validation"), ("auto", False, "train"), ("train", True, "train"),
    ("validation", False, "validation"),
])  # fmt: skip
def test_one_loop_looks(log_on, validation, where):
    trainer = run(enable_validation=validation)
    assert [loop for loop in ("validation", "train") if due(trainer, loop, log_on, 1)] == [where]


def test_between_epochs_only_after_a_step_of_the_optimizer():
    def batches(every, accumulate, last=8):
        steps = [(b + 1) // accumulate for b in range(last)]
        runs = [
            run(global_step=s, accumulate_grad_batches=accumulate, is_last_batch=b == last - 1)
            for b, s in enumerate(steps)
        ]
        return [b for b, one in enumerate(runs) if due_between(one, every, b)]

    assert batches(None, 1) == []
    assert batches(3, 1) == [2, 5]
    assert batches(1, 2) == [1, 3, 5]
    assert batches(2, 2) == [3]


def test_epochs_done_counts_the_one_under_way_and_no_more_than_one():
    assert epochs_done(run(current_epoch=2, ready=3)) == 2.375
    assert epochs_done(run(current_epoch=2, ready=9)) == 3
    assert epochs_done(run(num_training_batches=float("inf"), ready=9)) == 0


def fails(guard, step, error):
    with guard.at_no_cost(step):
        raise error


def test_the_first_failure_ends_the_watch_once():
    guard = Guard(notes := [])
    with pytest.warns(MemguardWarning, match="training goes on") as caught:
        fails(guard, 7, ValueError("a"))
    fails(guard, 8, ValueError("b"))  # a second warning would be an error here
    assert guard.stopped
    assert notes == ["The watch ended at step 7: ValueError in a look."]
    assert "ValueError: a" in str(caught[0].message)  # where, for whoever mends it


@pytest.mark.parametrize(("on_problem", "early", "error", "raised"), [
    ("auto", True, MemguardError("x"), True), ("auto", True, ValueError("x"), False),
    ("auto", False, MemguardError("x"), False), ("raise", False, ValueError("x"), True),
    ("warn", True, MemguardError("x"), False),
])  # fmt: skip
def test_what_is_raised_and_what_is_a_warning(on_problem, early, error, raised):
    guard = Guard([], on_problem)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with guard.at_no_cost(1, early=early):
                raise error
        except type(error):
            assert raised
        else:
            assert not raised
    assert len(caught) == (not raised)
    assert guard.stopped is not raised


def test_an_interrupt_is_not_held_up():
    guard = Guard([])
    with pytest.raises(KeyboardInterrupt), guard.at_no_cost(1):
        raise KeyboardInterrupt
    assert not guard.stopped


@pytest.fixture
def looks():
    """A watch, and a function that looks at it."""
    rng = np.random.default_rng(0)
    watch = Watch(PatientMap.of_records(60), PatientMap.of_records(50), fingerprint="x")
    watch.members.add(np.arange(60), rng.normal(2, 1, 60).astype(np.float32), np.ones(60, np.int64))
    watch.held_out.add(np.arange(50), rng.normal(3, 1, 50).astype(np.float32), np.ones(50, np.int64))

    def look(step):
        sample = watch.draw_sample()
        return watch.look(epoch=1, step=step, sample_loss=watch.members.latest()[sample], rank=False)

    return watch, look


def test_a_second_look_at_a_step_takes_the_place_of_the_first_and_adds_its_cost(looks):
    _, look = looks
    results = Results(flag_rate=0.1, outputs=OutputSettings())
    for step in (4, 8, 8):
        results.keep(look(step), time.perf_counter() - 1.0)
    assert [point.step for point in results.curve] == [4, 8]
    first, second = (point.probe_seconds for point in results.curve)
    assert 1 <= first < 1.5
    assert 2 <= second < 2.5
    assert results.last_look.step == 8
    assert results.values["memguard/membership_auc"] == results.curve[-1].auc.value


def test_state_goes_on_with_the_same_curve_and_notes_and_refuses_other_data(looks):
    watch, look = looks
    results = Results(flag_rate=0.1, outputs=OutputSettings())
    assert results.state_dict() == {}
    results.watch = watch
    results.keep(look(4), time.perf_counter())
    results.notes.append("a caveat")
    other = Results(flag_rate=0.1, outputs=OutputSettings())
    other.watch = Watch(PatientMap.of_records(60), PatientMap.of_records(50), fingerprint="x")
    notes = other.notes
    other.load_state_dict(results.state_dict())
    assert other.curve == results.curve
    assert notes == ["a caveat"]  # the list that the session writes to
    other.watch = Watch(PatientMap.of_records(60), PatientMap.of_records(50), fingerprint="y")
    with pytest.raises(DataError, match="other data sets"):
        other.load_state_dict(results.state_dict())
