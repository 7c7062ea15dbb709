from __future__ import annotations

import functools
import json
import math
import re

import numpy as np
import pytest
from scipy.stats import norm

from memguard.errors import DataError
from memguard.privacy import accounting
from memguard.privacy import statement as module
from memguard.privacy.accounting import Phase
from memguard.privacy.ledger import Ledger
from memguard.privacy.statement import SCHEMA, Statement
from memguard.privacy.wording import bound, most_found

FACTS = {
    "unit": "patient", "n_owners": 1000, "most_records": 40, "max_records": 8, "engine": "loop", "average": "mean",
}  # fmt: skip
PHASE = {
    "expected_patients": 50,
    "max_grad_norm": 0.5,
    "delta": 1e-3,
    "target_epsilon": 20,
    "planned_steps": 20,
}
NEVER = re.compile(r"\b(anonym\w*|safe|compliant|HIPAA|GDPR)\b", re.IGNORECASE)


@functools.cache
def _epsilon(history, delta, *records):
    return (accounting.patient_epsilon if records else accounting.epsilon)(history, delta, *records)


def epsilon(history, delta):
    return _epsilon(tuple(history), delta)


def patient_epsilon(history, delta, records):
    return _epsilon(tuple(history), delta, records)


@pytest.fixture(autouse=True)
def _each_is_computed_once(monkeypatch):
    """The accountants take a second each, and most of these tests ask them the same."""
    monkeypatch.setattr(module, "epsilon", epsilon)
    monkeypatch.setattr(module, "patient_epsilon", patient_epsilon)


def made(folder, steps=20, *, sigma=1.0, rates=None, seed="a", fingerprint="f00d", facts=None, **phase):
    ledger = Ledger.create(folder, fingerprint=fingerprint, facts={**FACTS, **(facts or {})})
    ledger.phase(sigma, rates or {"everybody": 0.05}, **{**PHASE, **phase})
    ledger.append("started", seeds={"noise": seed})
    for number in range(steps):
        ledger.step(number)
    return ledger


def stated(ledger, others=()):
    ledger.close()
    return Statement.from_ledger(ledger, others=others)


def first_line(statement):
    return statement.text().splitlines()[0]


def test_it_says_what_the_ledger_holds(tmp_path):
    ledger = made(tmp_path)
    ledger.append("ended", at_step=20)
    statement = stated(ledger)
    text = statement.text()
    value = epsilon([Phase(1.0, 0.05, 20)], 1e-3)
    assert statement.epsilons == {"everybody": value} and statement.epsilon == value.value
    assert first_line(statement) == (
        f"Differential privacy for every patient: epsilon = {bound(value.value)} at delta = 0.001."
    )
    flat = " ".join(text.split())
    for said in (
        "add or remove one patient with all records", "poisson: each patient is in a step with probability 0.05",
        "clipped to a norm of 0.5 over all layers together", "at most 8 records", "engine: loop", "multiplier 1 ",
        "20 counted of 20 planned, in 1 start; ended", "expected number (50)", "by PRV (opacus", "RDP",
        "pseudo-random generator", "floating-point", "initial weights are taken as public",
        "number of patients, the sample rate", "weights after every step", ledger.run, "target of epsilon = 20",
    ):  # fmt: skip
        assert said in flat, said
    assert statement.versions["opacus"] in text
    assert "f00d" not in text + statement.to_json()  # whoever knows all others could test for one patient


def test_it_is_the_same_from_the_file_alone(tmp_path):
    ledger = made(tmp_path)
    one = stated(ledger)
    assert Statement.from_ledger(Ledger.read(tmp_path, ledger.run), others=()) == one


def test_a_resumed_run_counts_everything(tmp_path):
    ledger = made(tmp_path, 12)
    ledger.close()
    with Ledger.resume(tmp_path, ledger.run, fingerprint="f00d", steps=10) as again:
        again.phase(1.0, {"everybody": 0.05}, **{**PHASE, "planned_steps": 10})
        again.append("resumed", seeds={"noise": "b"}, at_step=10)
        for number in range(10, 20):
            again.step(number)
    statement = Statement.from_ledger(again, others=())
    assert (statement.steps, statement.planned_steps, statement.starts) == (22, 22, 2)
    assert statement.noise_multipliers == (1.0,)
    assert statement.epsilon == epsilon([Phase(1.0, 0.05, 22)], 1e-3).value
    assert "22 counted of 22 planned, in 2 starts; not ended, or cut off" in statement.text()


def test_strata_each_have_their_epsilon(tmp_path):
    statement = stated(made(tmp_path, rates={"rare": 0.01, "other": 0.06}, facts={"strata_from_data": True}))
    assert statement.epsilons["rare"] == epsilon([Phase(1.0, 0.01, 20)], 1e-3)
    assert statement.epsilons["rare"].value < statement.epsilons["other"].value == statement.epsilon
    text = " ".join(statement.text().split())
    assert "stratum rare:" in text and "rare 0.01; other 0.06" in text
    assert "strata were derived from the data" in text


def test_the_record_as_the_unit_promises_a_patient_less(tmp_path):
    statement = stated(made(tmp_path, facts={"unit": "record"}))
    assert list(statement.record_epsilons) == [2, 5, 10, 40]
    values = [statement.epsilon, *(one.value for one in statement.record_epsilons.values())]
    assert values == sorted(values) and values[1] > 1.5 * values[0]
    assert statement.record_epsilons[2] == patient_epsilon([Phase(1.0, 0.05, 20)], 1e-3, 2)
    assert "for ONE RECORD, less for a patient" in first_line(statement)
    text = " ".join(statement.text().split())
    assert (
        "a patient is promised LESS than a record" in text and "(40 is the most that one patient has)" in text
    )
    assert f"10 records {bound(statement.record_epsilons[10].value)}" in text


@pytest.mark.parametrize(("most", "shown"), [(1, []), (4, [2, 4]), (None, [2, 5, 10])])
def test_only_patients_that_there_may_be(tmp_path, most, shown):
    statement = stated(made(tmp_path, facts={"unit": "record", "most_records": most}))
    assert list(statement.record_epsilons) == shown


# -- no guarantee --------------------------------------------------------------------------------------------


def broken(ledger):
    ledger.close()
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:5] + lines[7:]))


def reseeded(ledger):
    ledger._write("resumed", {"seeds": {"noise": "a"}})


def failed_check(ledger):
    ledger.append("probe", what="sensitivity", passed=False)
    ledger.step(0)


@pytest.mark.parametrize(
    ("how", "spoil", "said"),
    [
        ({"sigma": 0.0}, None, "20 of 20 steps were taken without noise"),
        ({"steps": 0}, None, "no private step was taken"),
        ({"sampling": "shuffle"}, None, "the sampling was shuffle"),
        ({}, broken, "the ledger .* is broken: line 6 was removed"),
        ({}, reseeded, "its noise can be subtracted"),
        ({}, failed_check, "although a check had failed: sensitivity"),
        (
            {},
            lambda ledger: (ledger.phase(0.0, {"everybody": 0.05}, **PHASE), ledger.step(9)),
            "1 of 21 steps",
        ),
    ],
)
def test_the_first_line_says_that_there_is_none(tmp_path, how, spoil, said):
    ledger = made(tmp_path, **how)
    if spoil is not None:
        spoil(ledger)
    ledger.close()
    statement = Statement.from_ledger(Ledger.read(tmp_path, ledger.run), others=())
    text = statement.text()
    assert text.startswith("NO GUARANTEE of differential privacy: ")
    assert re.search(said, text.split("\n\n")[0].replace("\n", " "))
    assert statement.epsilon == math.inf and statement.epsilons == {}
    assert "Epsilon " not in text and "Covered" not in text and "Meaning" not in text
    assert Statement.from_json(statement.to_json()) == statement


def test_a_check_that_failed_before_it_was_mended_is_no_reason(tmp_path):
    ledger = made(tmp_path, 0)
    ledger.append("probe", what="sensitivity", passed=False)
    ledger.append("probe", what="sensitivity", passed=True)
    ledger.step(0)
    assert stated(ledger).no_guarantee == ()


def test_a_broken_ledger_gives_no_count(tmp_path):
    ledger = made(tmp_path)
    broken(ledger)
    text = Statement.from_ledger(Ledger.read(tmp_path, ledger.run), others=()).text()
    assert "not known; 2 before the place where the ledger is broken" in text


def test_a_ledger_changed_after_it_was_opened_shows(tmp_path):
    ledger = made(tmp_path)
    broken(ledger)
    assert first_line(Statement.from_ledger(ledger, others=())).startswith("NO GUARANTEE")


def test_seeds_of_another_run(tmp_path):
    made(tmp_path, 3).close()
    ledger = made(tmp_path, 3)  # the same seed
    ledger.close()
    assert "NO GUARANTEE" in first_line(Statement.from_ledger(ledger))


def test_a_target_that_was_not_kept(tmp_path):
    assert "ABOVE the target of 0.5" in first_line(stated(made(tmp_path, target_epsilon=0.5)))


# -- outside -------------------------------------------------------------------------------------------------

OUTSIDE = [
    ("feedback", {"what": "flags of LeakageMonitor"}, "changed the training (flags of LeakageMonitor)"),
    ("tuner", {"what": "LearningRateFinder", "steps": 4}, "(LearningRateFinder, 8 steps without noise)"),
    (
        "early_stop",
        {"monitor": "val_loss", "patients": "held-out"},
        "its held-out patients are not protected",
    ),
    ("early_stop", {"monitor": "train_loss", "patients": "training"}, "from training patients without noise"),
    ("monitored_checkpoint", {"monitor": "val_auc"}, "Checkpoints chosen by val_auc"),
    (
        "private_log",
        {"keys": ["train_loss", "memguard/dp/clipped_share"]},
        "train_loss, memguard/dp/clipped_share",
    ),
    ("probe", {"what": "sensitivity", "passed": True}, "without noise (sensitivity)"),
    (
        "note",
        {"seen": "a plateau on val_loss", "why": "it is private"},
        "A plateau on val_loss: it is private.",
    ),
    ("tuner", {"seen": "scaled batches.", "why": ""}, "Scaled batches."),
]


@pytest.mark.parametrize(("kind", "facts", "said"), OUTSIDE)
def test_each_entry_outside_is_said(tmp_path, kind, facts, said):
    ledger = made(tmp_path, 3)
    ledger.append(kind, **facts)
    ledger.append(kind, **facts)  # as a resumed run does
    statement = stated(ledger)
    assert len(statement.outside) == 1 and said in statement.outside[0]
    assert statement.outside[0].count(said) == 1
    assert "1 thing outside of it, below." in " ".join(statement.text().split())
    assert statement.fed_back == (kind == "feedback")
    assert ("NOT COUNTING what was fed back" in statement.text()) == (kind == "feedback")


def test_nothing_is_outside_where_nothing_happened(tmp_path):
    assert stated(made(tmp_path, 3)).outside == ()


def test_what_changes_nothing_is_noted_apart(tmp_path):
    ledger = made(tmp_path, 3)
    ledger.append("note", text="begun by hand")
    ledger.append("refused", what="gradient_clip_val")
    statement = stated(ledger)
    assert statement.outside == () and statement.noted == ("begun by hand.", "Refused: gradient_clip_val.")


def test_weights_of_the_record_alone_are_noted_and_others_leave_no_guarantee(tmp_path):
    ledger = made(tmp_path, 3)
    ledger.append(
        "mitigation", name="Own", depends_on="record", seen="Own(k=4)", why="weighs before clipping"
    )
    ledger.append(
        "mitigation",
        name="Own",
        depends_on="record",
        seen="Own(k=4)",
        why="weighs before clipping",
        at_step=2,
    )
    statement = stated(ledger)
    assert not statement.no_guarantee and statement.outside == () and not statement.fed_back
    assert statement.noted == (
        "Own(k=4): weighs before clipping.",
        "Own(k=4): weighs before clipping (in a start at step 2).",
    )
    for wrong in ({"depends_on": "data"}, {}):
        other = made(tmp_path / str(len(wrong)), 3)
        other.append("mitigation", name="FloorFlagged", **wrong)
        statement = stated(other)
        (reason,) = statement.no_guarantee
        assert "the data of others (FloorFlagged)" in reason
        assert statement.text().startswith("NO GUARANTEE") and not statement.epsilons


def test_an_entry_of_a_later_version_is_not_passed_over(tmp_path):
    ledger = made(tmp_path, 3)
    ledger._write("synthetic_release", {"n": 5})
    assert "synthetic_release" in stated(ledger).outside[0]


def test_many_logged_curves_stay_one_line(tmp_path):
    ledger = made(tmp_path, 3)
    ledger.append("private_log", keys=[f"curve{i}" for i in range(40)])
    assert "curve5 and 34 more" in stated(ledger).outside[0]


def test_other_runs_are_composed(tmp_path):
    ledger = made(tmp_path, 20, seed="a")
    made(tmp_path, 30, seed="b", sigma=2.0, rates={"x": 0.01, "y": 0.02}).close()
    made(tmp_path, 10, seed="c", facts={"unit": "record"}).close()
    made(tmp_path, 10, seed="d", fingerprint="beef").close()
    damaged = made(tmp_path, 10, seed="e")
    broken(damaged)
    ledger.close()
    statement = Statement.from_ledger(ledger)
    assert statement.together == epsilon([Phase(1.0, 0.05, 20), Phase(2.0, 0.02, 30)], 1e-3)
    assert statement.epsilon == epsilon([Phase(1.0, 0.05, 20)], 1e-3).value < statement.together.value
    said = " ".join(statement.outside)
    assert (
        "Another run trained on the same data (30 steps" in said and bound(statement.together.value) in said
    )
    assert "with the record as the unit; its 10 steps" in said
    assert f"What the run {damaged.run} spent is not known" in said
    assert Statement.from_json(statement.to_json()) == statement


def test_another_run_without_noise_leaves_nothing_for_all_together(tmp_path):
    ledger = made(tmp_path, 20, seed="a")
    made(tmp_path, 1, seed="b", sigma=0.0).close()
    ledger.close()
    statement = Statement.from_ledger(ledger)
    assert statement.together.value == math.inf and statement.no_guarantee == ()
    assert "no epsilon holds for all together" in " ".join(statement.outside)
    assert Statement.from_json(statement.to_json()) == statement


# -- form ----------------------------------------------------------------------------------------------------


def test_the_fullest_statement_fits_a_page_and_claims_nothing(tmp_path):
    ledger = made(tmp_path, rates={"rare": 0.01, "other": 0.06}, facts={"strata_from_data": True})
    made(tmp_path, 5, seed="b").close()
    for kind, facts, _ in OUTSIDE:
        ledger.append(kind, **facts)
    ledger.close()
    text = Statement.from_ledger(ledger).text()
    assert len(text.splitlines()) <= 47
    assert max(map(len, text.splitlines())) <= 120
    assert not NEVER.search(text)


def test_json(tmp_path):
    statement = stated(made(tmp_path, 3, facts={"unit": "record"}))
    body = json.loads(statement.to_json())
    assert body["schema"] == SCHEMA
    again = Statement.from_json(json.dumps(body | {"later": 1}))
    assert again == statement and again.text() == statement.text()
    for wrong in ("", "[]", "{}", '{"schema": "memguard.watch/1"}', json.dumps({"schema": SCHEMA})):
        with pytest.raises(DataError, match="no statement"):
            Statement.from_json(wrong)


def test_an_epsilon_is_never_rounded_down():
    rng = np.random.default_rng(0)
    for value in [*np.exp(rng.uniform(-8, 12, 2000)), 1.0, 8.0, 9.999, 999.9, 1e-9]:
        shown = float(bound(float(value)))
        assert value * (1 - 1e-6) <= shown <= value * 1.0101


def test_no_attack_on_a_gaussian_finds_more_than_is_said():
    # the best attack on one step without sampling is known in closed form
    delta = 1e-3
    for sigma in (0.5, 1.0, 4.0):
        spent = epsilon([Phase(sigma, 1.0, 1)], delta).value
        for rate in (0.001, 0.01, 0.1):
            found = norm.sf(norm.isf(rate) - 1 / sigma)
            assert found <= most_found(spent, delta, rate) <= 1
