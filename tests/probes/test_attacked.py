"""The membership probe: right against naive arithmetic, quiet where nothing was learned, honest about gaps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from memguard.attacks import lira, logit_scale
from memguard.probes.asked import Budget
from memguard.probes.attacked import MembershipProbe
from memguard.probes.attacked.units import patient_units
from memguard.records.content import RecordContent
from tests.probes._attacked import Pool, Table, world

LIGHT = Budget(size="light")


def naive_auc(inside, outside):
    return np.mean([(a > b) + 0.5 * (a == b) for a in inside for b in outside])


def patient_loss(subject, asked, loss):
    """Nats per token of each patient, by a loop."""
    out = {}
    for code in np.unique(subject.patient):
        rows = np.flatnonzero(subject.patient == code)
        rows = rows[np.isfinite(asked.loss[rows])]
        out[int(code)] = np.sum(loss[rows] * asked.tokens[rows]) / np.sum(asked.tokens[rows])
    return np.array([out[code] for code in sorted(out)])


def test_scores_of_patients_are_those_of_a_naive_loop():
    subject, asked = world(3, 40, 30, gain=0.4, records=3, target=Table(np.arange(20), 0.5))
    found = MembershipProbe(fprs=(0.1,)).run(subject, asked, Budget())
    loss = patient_loss(subject, asked, asked.loss)
    assert found.numbers["loss.auc"].value == pytest.approx(naive_auc(-loss[:40], -loss[40:]))
    assert found.numbers["loss.auc"].n == 70
    reference = np.stack([patient_loss(subject, asked, row) for row in asked.reference_loss])
    mask = asked.references.in_mask[:, ::3]
    score = lira(logit_scale(loss=loss), logit_scale(loss=reference), mask).score
    assert found.numbers["lira_pooled.auc"].value == pytest.approx(naive_auc(score[:40], score[40:]))
    out = np.array([reference[~mask[:, i], i].mean() for i in range(70)]) - loss
    evidence = found.evidence["severity"]
    assert evidence.value[evidence.row.argsort()] == pytest.approx(np.repeat(out, 3))
    log_prob = asked.target.log_probs(subject.sequences, patient=subject.patient)
    least = []
    for code in range(70):
        mine = log_prob[np.isin(subject.sequences.rows, np.flatnonzero(subject.patient == code))]
        mine = np.sort(mine[np.isfinite(mine)])
        least.append(mine[: max(1, int(0.2 * len(mine)))].mean())
    assert found.numbers["min_k.auc"].value == pytest.approx(naive_auc(least[:40], least[40:]))


def test_p_values_of_records_are_those_of_their_patients():
    subject, asked = world(4, 30, 25, gain=0.5, records=2)
    found = MembershipProbe().run(subject, asked, LIGHT)
    evidence = found.evidence["score"]
    assert evidence.row.tolist() == list(range(110))
    assert np.isnan(evidence.p_value[60:]).all()
    null = evidence.value[60::2]
    naive = [(1 + np.sum(null >= v)) / 26 for v in evidence.value[:60]]
    assert evidence.p_value[:60] == pytest.approx(naive)


def test_the_few_who_are_memorized_are_flagged():
    subject, asked = world(5, 300, 300, gain=0.0)
    asked.loss[:30] -= 2.0
    found = MembershipProbe().run(subject, asked, LIGHT)
    assert found.settings["flagged_by"] == "difference"
    assert np.isin(np.arange(30), found.flagged).mean() >= 0.9
    assert np.count_nonzero(found.flagged >= 30) <= 0.25 * len(found.flagged)
    assert found.numbers["memorized_share"].covers(0.1)
    # references that learned nothing: the ratio of their IN to their OUT scores does not know these patients
    by_ratio = MembershipProbe(flag_by="lira_global").run(subject, asked, LIGHT)
    assert np.isin(np.arange(30), by_ratio.flagged).mean() < 0.7


@pytest.mark.parametrize(
    ("held_out", "k", "sides", "records"),
    [(60, 4, "both", 2), (10, 4, "both", 1), (60, 3, "members", 1), (60, 1, "none", 1)],
)
def test_where_nothing_was_learned_error_rates_hold(held_out, k, sides, records):
    """References learn; the target was trained on other patients."""
    runs = 40
    flagged = above = above_lira = share = wrong = low = 0
    for seed in range(runs):
        subject, asked = world(
            seed, 100, held_out, k=k, gain=0.4, target_gain=0.0, sides=sides, records=records
        )
        found = MembershipProbe().run(subject, asked, LIGHT)
        flagged += len(found.flagged) > 0
        above += found.numbers["strongest.auc"].low > 0.5
        above_lira += found.numbers["lira.auc"].low > 0.5
        low += found.numbers["tpr_at_fpr_0.1"].low > 0.1
        share += found.numbers["memorized_share"].low > 0
        wrong += not found.numbers["severity.minus_held_out"].covers(0)
    assert stats.binom.sf(flagged - 1, runs, 0.1) > 0.005
    for count in (above, above_lira, low, share):
        assert stats.binom.sf(count - 1, runs, 0.025) > 0.005
    assert stats.binom.sf(wrong - 1, runs, 0.05) > 0.005


def test_held_out_patients_leave_out_as_many_models_as_members():
    """Averaged over all models, their difference would scatter less, and low false-positive rates would mislead."""
    subject, asked = world(6, 400, 400, k=3, sides="members", gain=0.0)
    asked.reference_loss[:] += np.random.default_rng(0).normal(0, 2, asked.reference_loss.shape)
    units = patient_units(subject, asked, np.arange(800))
    assert not units.two_sided
    out = (~units.left_out(0)).sum(axis=0)
    counts = [np.bincount(out[units.member == side], minlength=4) / 400 for side in (True, False)]
    assert np.abs(counts[0] - counts[1]).max() < 0.1
    untouched = dataclasses.replace(units, in_mask=np.zeros_like(units.in_mask))
    assert not untouched.left_out(0).any()


@pytest.mark.parametrize("k", [0, 1, 2])
def test_few_references_give_what_they_can_and_say_the_rest(k):
    subject, asked = world(7, k=k, gain=0.5, sides="both" if k == 2 else "none")
    found = MembershipProbe(fprs=(0.1,)).run(subject, asked, LIGHT)
    names = {key.split(".")[0] for key in found.numbers}
    gaps = " ".join(gap.what for gap in found.not_tested)
    if k == 0:
        assert names == {"loss", "strongest", "loss_gap", "memorized_share", "tpr_at_fpr_0"}
        assert "LiRA" in gaps and found.settings["mode"] == "none" and found.settings["flagged_by"] == "loss"
        assert any("easy" in note for note in found.notes)
    elif k == 1:
        assert {"lira_fixed", "lira", "rmia", "difference"} <= names and "BaVarIA" in gaps
        assert found.numbers["lira.auc"].low > found.numbers["loss.auc"].value
    else:
        assert (
            {"bavaria", "rmia", "attack_r"} <= names and "LiRA" in gaps and found.settings["mode"] == "online"
        )


def test_offline_rmia_of_sequences_is_more_than_the_loss():
    subject, asked = world(8, k=1, gain=0.5, sides="none")
    found = MembershipProbe().run(subject, asked, LIGHT)
    assert found.settings["offline_a"] == 1.0
    assert found.numbers["rmia.auc"].low > found.numbers["loss.auc"].high
    asked = dataclasses.replace(asked, loss_unit="nats/record")
    assert MembershipProbe().run(subject, asked, LIGHT).settings["offline_a"] == 0.3
    assert MembershipProbe(offline_a=0.7).run(subject, asked, LIGHT).settings["offline_a"] == 0.7


def test_losses_that_are_not_numbers_are_left_out_and_counted():
    subject, asked = world(9, 50, 50, gain=0.5, records=2)
    asked.loss[[0, 10, 11]] = np.nan  # a record of patient 0, all of patient 5
    asked.reference_loss[2] = np.nan  # a reference that was not asked
    asked.reference_loss[0, 120] = np.nan  # a record of patient 60
    found = MembershipProbe().run(subject, asked, LIGHT)
    assert found.numbers["loss.auc"].n == 99
    assert found.numbers["lira_pooled.auc"].n == 98
    said = [gap.what for gap in found.not_tested]
    assert "3 of 200 records" in said and "1 references" in said
    assert found.settings["reference_models"] == 7
    assert (
        0 in subject.patient[found.evidence["score"].row]
        and 5 not in subject.patient[found.evidence["score"].row]
    )


def test_one_record_in_a_reference_is_a_patient_in_it():
    subject, asked = world(10, 20, 20, k=2, records=2)
    asked.references.in_mask[:] = False
    asked.references.in_mask[1, 7] = True
    units = patient_units(subject, asked, np.arange(80))
    assert np.flatnonzero(units.in_mask[1]).tolist() == [3] and not units.in_mask[0].any()


@pytest.mark.parametrize(("members", "held_out"), [(1, 60), (60, 1), (0, 60), (60, 0)])
def test_a_side_with_one_patient_or_none(members, held_out):
    subject, asked = world(11, members, held_out, k=4, gain=0.5, target=Table())
    found = MembershipProbe().run(subject, asked, Budget())
    if min(members, held_out) == 0:
        assert not found.numbers and found.not_tested[0].what == "Membership"
        return
    assert (found.numbers["loss.auc"].low, found.numbers["loss.auc"].high) == (0.0, 1.0)
    assert "loss" in found.answer.lower() or found.answer
    if held_out == 1:
        assert any("patients stand out" in gap.what for gap in found.not_tested) and len(found.flagged) == 0


@pytest.mark.parametrize("held_out", [8, 10, 100])
def test_rates_that_the_held_out_patients_cannot_show_are_said(held_out):
    subject, asked = world(12, 100, held_out, gain=0.6)
    found = MembershipProbe().run(subject, asked, LIGHT)
    missing = {gap.what: gap.fix for gap in found.not_tested}
    assert ("tpr_at_fpr_0.1" in found.numbers) == (held_out >= 10)
    assert ("tpr_at_fpr_0.01" in found.numbers) == (held_out >= 100)
    assert "1000 patients" in missing["TPR at a false-positive rate of 0.001"]
    assert ("Which patients stand out" in missing) == (held_out < 9)


def test_ties_say_nothing():
    subject, asked = world(13, 50, 50, k=4)
    asked.loss[:] = 1.0
    asked.reference_loss[:] = 1.0
    found = MembershipProbe().run(subject, asked, LIGHT)
    values = {key: e.value for key, e in found.numbers.items() if key.endswith(".auc")}
    assert set(values.values()) == {0.5} and len(found.flagged) == 0
    assert found.numbers["tpr_at_fpr_0.1"].value == 0.0


def test_the_strongest_has_the_widest_interval_and_its_name():
    subject, asked = world(14, gain=0.3)
    found = MembershipProbe().run(subject, asked, LIGHT)
    best, name = found.numbers["strongest.auc"], found.settings["strongest"]
    own = found.numbers[f"{name}.auc"]
    assert best.value == own.value == max(e.value for k, e in found.numbers.items() if k.endswith(".auc"))
    assert best.low < own.low < own.high < best.high and "Bonferroni over" in best.method
    assert found.numbers["tpr_at_fpr_0.01"] == found.numbers["strongest.tpr_at_fpr_0.01"]
    lira_auc = found.numbers["lira.auc"]
    assert "3 attacks" in lira_auc.method
    assert lira_auc.value == max(
        found.numbers[f"lira_{v}.auc"].value for v in ("pooled", "per_record", "global")
    )
    table = found.tables["attacks"]
    assert all(len(row) == len(table.columns) for row in table.rows) and "Bonferroni" in table.note


def test_an_attack_that_scores_few_patients_is_not_the_strongest():
    subject, asked = world(2, 200, 200, k=3, sides="members", gain=0.3)
    found = MembershipProbe().run(subject, asked, LIGHT)
    assert found.numbers["lira_per_record.auc"].n < 300
    assert found.settings["strongest"] != "lira_per_record"
    assert found.numbers["strongest.auc"].n == 400


def test_curves_are_thin_positive_and_rise():
    subject, asked = world(15, 300, 300, gain=0.3)
    curve = MembershipProbe().run(subject, asked, LIGHT).curves["roc"]
    assert curve.log and curve.lines["Chance"] == [(1 / 300, 1 / 300), (1.0, 1.0)]
    for points in curve.lines.values():
        x, y = np.transpose(points)
        assert (
            len(points) <= 60
            and (np.diff(x) > 0).all()
            and (np.diff(y) >= 0).all()
            and min(x.min(), y.min()) > 0
        )
    (band,) = curve.bands.values()
    assert all(0 < low <= high <= 1 for _, low, high in band)


def test_a_light_budget_asks_the_model_nothing():
    target = Table()
    subject, asked = world(16, target=target)
    found = MembershipProbe().run(subject, asked, dataclasses.replace(LIGHT, patients=50))
    assert target.asked == 0 and found.numbers["loss.auc"].n == 100 and "blind.auc" not in found.numbers
    assert len(np.unique(subject.patient[found.evidence["score"].row])) == 100


def test_spent_time_is_said():
    subject, asked = world(17, 300, 300, k=0, target=Table())
    found = MembershipProbe().run(subject, asked, Budget(seconds=0.0))
    assert asked.target.asked == 256 and found.numbers["min_k.auc"].n == 256
    assert any("344 of 600" in gap.what for gap in found.not_tested)
    assert found.settings["strongest"] == "loss"


def test_sequences_longer_than_the_model_reads_are_cut():
    target = Table()
    target.longest = 4
    subject, asked = world(18, target=target)
    found = MembershipProbe().run(subject, asked, Budget())
    assert "min_k.auc" in found.numbers and any("cut" in note for note in found.notes)


def test_a_token_of_probability_zero_is_the_least_likely_one():
    subject, asked = world(18, 30, 30, k=0, target=Table())
    usual = MembershipProbe().run(subject, asked, Budget()).numbers["min_k.auc"].value

    class Zero(Table):
        def log_probs(self, sequences, *, patient=None):
            value = super().log_probs(sequences, patient=patient)
            last = sequences.offsets[1:] - 1
            value[last[np.asarray(patient) >= 30]] = -np.inf
            return value

    found = MembershipProbe().run(subject, dataclasses.replace(asked, target=Zero()), Budget())
    assert found.numbers["min_k.auc"].value == 1.0 > usual


def test_losses_that_are_no_cross_entropies():
    subject, asked = world(19, gain=0.5)
    asked.loss[3] = -0.5
    found = MembershipProbe().run(subject, asked, LIGHT)
    assert "lira.auc" not in found.numbers and found.numbers["difference.auc"].low > 0.6
    assert found.settings["flagged_by"] == "difference"


def test_features_have_no_tokens():
    subject, asked = world(20, 60, 60, k=0)
    x = np.random.default_rng(1).normal(size=(120, 3))
    subject = dataclasses.replace(subject, content=RecordContent.from_features(x))
    asked = dataclasses.replace(asked, target=Table(), loss_unit="nats/record", tokens=np.zeros(0, np.int64))
    found = MembershipProbe().run(subject, asked, Budget())
    assert any("Min-K" in gap.what for gap in found.not_tested) and found.numbers["blind.auc"].covers(0.5)


def test_members_of_another_kind_are_seen_without_the_model():
    subject, asked = world(21, k=0)
    x = np.random.default_rng(0).normal(size=(400, 3)) + subject.member[:, None]
    subject = dataclasses.replace(subject, content=RecordContent.from_features(x))
    found = MembershipProbe().run(subject, asked, Budget())
    assert found.numbers["blind.auc"].low > 0.5 and any("blind AUC" in note for note in found.notes)


def test_epsilon_where_coins_decided():
    rng = np.random.default_rng(0)
    flips = int((rng.random(400) < 0.5).sum())
    subject, asked = world(22, flips, 400 - flips, gain=1.5)
    found = MembershipProbe(coins=True).run(subject, asked, LIGHT)
    bound = found.numbers["epsilon_lower_bound"]
    assert bound.value == bound.low > 1.5 and bound.n == 400 and "Bonferroni" in bound.method
    assert "epsilon_lower_bound" not in MembershipProbe().run(subject, asked, LIGHT).numbers
    subject, asked = world(22, 300, 60)
    found = MembershipProbe(coins=True).run(subject, asked, LIGHT)
    assert any("fair" in gap.why for gap in found.not_tested)


def test_epsilon_is_shown_falsely_in_few_runs():
    wrong, runs = 0, 40
    for seed in range(runs):
        flips = int((np.random.default_rng(seed).random(200) < 0.5).sum())
        subject, asked = world(seed, flips, 200 - flips, k=1, gain=0.4, target_gain=0.0, sides="none")
        wrong += MembershipProbe(coins=True).run(subject, asked, LIGHT).numbers["epsilon_lower_bound"].low > 0
    assert stats.binom.sf(wrong - 1, runs, 0.05) > 0.005


def test_a_reference_that_knows_some_held_out_patients_says_nothing_of_them():
    subject, asked = world(23, 100, 100, k=1, sides="none", gain=0.5)
    mask = np.zeros((1, 200), bool)
    mask[0, 100:140] = True
    asked = dataclasses.replace(asked, references=Pool(mask, "early-stopped"))
    found = MembershipProbe().run(subject, asked, LIGHT)
    assert found.numbers["lira_fixed.auc"].n == 160 and found.numbers["loss.auc"].n == 200
