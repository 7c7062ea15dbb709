"""Verdict and gates: rules against cases worked out by hand."""

from __future__ import annotations

import itertools
import re

import pytest
from fake_audit import about, bare, found, report, shown, subject

from memguard.attacks.estimate import Estimate
from memguard.errors import DataError
from memguard.report.audit import EpsilonClaim, Gap, Gate, Number, References, Section, evaluate, from_probe
from memguard.report.audit.verdict import audit_verdict, finding


def section(
    low: float, *, null: float | None = 0.5, flagged: int | None = None, probe: str = "membership"
) -> Section:
    number = Number(
        estimate=Estimate(value=low + 0.02, low=low, high=low + 0.04, n=900, method="x"), null=null
    )
    return Section(
        probe=probe, question="?", numbers={"auc": number}, headline="auc", n_flagged=flagged, n_ranked=900
    )


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (section(0.51), "found"),
        (section(0.5), "nothing above chance"),
        (section(0.49), "nothing above chance"),
        (section(0.49, flagged=1), "found"),
        (section(0.49, flagged=0), "nothing above chance"),
        (section(0.9, null=None), "not judged"),
        (section(0.9, null=None, flagged=0), "nothing above chance"),
        (section(float("nan")), "not measured"),
        (Section(probe="p", question="?"), "not measured"),
    ],
)
def test_rule(one, what):
    assert finding(one) == what


def test_headlines():
    leak, fine, nothing = (
        section(0.6),
        section(0.4, probe="embedding"),
        Section(probe="trajectory", question="?"),
    )
    said = audit_verdict(bare(sections=[leak, fine, nothing]))
    assert said.headline.startswith("1 of the 2 tests that could be judged got more")
    assert said.findings == ("Membership: AUC .620 [.600, .640], .5 without a leak",)
    said = audit_verdict(bare(sections=[fine]))
    assert said.headline.startswith("The one test that could be judged did not tell")
    assert "not evidence that there is none" in said.headline
    assert audit_verdict(bare(sections=[nothing])).headline.startswith("Nothing was measured")


def test_scope_and_gaps_stand_in_the_verdict():
    text = report().verdict()
    known = ("5f0c2ab1d4e9", "2,000 training patients", "900 never-trained", "8 reference models")
    for words in (*known, "Planted canaries", "2 further parts"):
        assert words in text
    assert "does not mean that all were tried" in bare().verdict()
    assert "Not tested: this." in bare(not_tested=[Gap(what="this", why="x")]).verdict()


def test_small_counts_of_flagged_are_not_said():
    text = audit_verdict(bare(sections=[section(0.4, flagged=3)])).text
    assert "<5 of 900 patients" in text
    assert not re.search(r"\b3 of", text)


def test_alarms_come_first():
    claim = EpsilonClaim(epsilon=1.0, delta=1e-5, unit="patient")
    one = report(claim=claim, shown=[shown(epsilon=1.3)], unit="record", references=References(alike=False))
    said = audit_verdict(one)
    assert len(said.alarms) == 3
    assert said.text.startswith("The claim of differential privacy is contradicted")


@pytest.mark.parametrize("one", [report(), bare(), report(unit="record"), bare(sections=[section(0.6)])])
def test_words_that_nobody_may_say(one):
    assert not re.search(r"anonym|\bsafe|complian", one.verdict(), re.IGNORECASE)


# -- gates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("membership.tpr_at_fpr_0.01.high > .05", "fails"),
        ("membership.tpr_at_fpr_0.01.high > .2", "passes"),
        ("membership.tpr_at_fpr_0.01.value <= 0.083", "fails"),
        ("membership.tpr_at_fpr_0.01.value < 0.083", "passes"),
        ("membership.strongest.auc.n>=2900", "fails"),
        ("membership.flagged.value > 1e1", "fails"),
        ("membership.flagged.n < 2000", "passes"),
        ("attribute.k20.memorized.minus_held_out.low > -.5", "fails"),
        ("epsilon.membership.low > 1.2", "fails"),
        ("membership.auc.in_rare_code.low > .5", "fails"),
        ("membership.auc.in_age_75_and_over.low > .9", "passes"),
        ("membership.auc.in_rare code.low > .5", None),
        ("membership.loss.auc.high > .5 and membership.lira.auc.high > .9", "passes"),
        ("membership.loss.auc.high > .9 OR membership.lira.auc.high > .6", "fails"),
        (
            "membership.loss.auc.high > .9 or membership.lira.auc.high > .6 and membership.flagged.value > 1000",
            "passes",
        ),
        ("membership.nothing.high > .5", "not evaluable"),
        ("membership.nothing.high > .5 and membership.loss.auc.high > .9", "passes"),
        ("membership.nothing.high > .5 and membership.loss.auc.high > .5", "not evaluable"),
        ("membership.nothing.high > .5 or membership.loss.auc.high > .5", "fails"),
        ("nobody.auc.high > .5", "not evaluable"),
    ],
)
def test_gates(text, status):
    if status is None:
        with pytest.raises(DataError):
            Gate.parse(text)
        return
    (result,) = evaluate([text], report())
    assert result.status == status
    assert result.ok is (status == "passes")
    (lenient,) = evaluate([Gate.parse(text)], report(), missing="pass")
    assert lenient.ok is (status in ("passes", "not evaluable"))


def test_reasons_name_the_number_and_what_is_near():
    fails, missing = evaluate(["membership.loss.auc.high > .5", "membership.los.auc.high > .5"], report())
    assert fails.reason == "membership.loss.auc.high = 0.6, > 0.5"
    assert "membership.loss.auc" in missing.reason
    assert str(fails).startswith("FAIL")
    assert str(evaluate(["membership.loss.auc.high > .9"], report())[0]).startswith("pass")


def test_a_number_without_a_value_is_not_evaluable():
    number = Number(estimate=Estimate(value=float("nan"), low=0.1, high=float("inf"), n=9, method="x"))
    one = bare(sections=[Section(probe="p", question="?", numbers={"x": number})])
    nan, inf = evaluate(["p.x.value < 1", "p.x.high > 5"], one)
    assert (nan.status, inf.status) == ("not evaluable", "fails")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "membership.auc > .5",
        "auc.high > .5",
        "membership.auc.high",
        "membership.auc.high >> 1",
        "membership.auc.high == .5",
        "membership.auc.high > five",
        "membership.auc.high > .5 and",
        "membership.auc.high > .5 xor a.b.low > 1",
        ".auc.high > nan",
        "membership.auc.mean > .5",
    ],
)
def test_gates_that_cannot_be_read(text):
    with pytest.raises(DataError, match="cannot be read"):
        Gate.parse(text)


@pytest.mark.parametrize("operator", [">", ">=", "<", "<="])
@pytest.mark.parametrize("limit", ["0.6", ".6", "+.6", "6e-1"])
def test_operators_against_python(operator, limit):
    for value in (0.5, 0.6, 0.7):
        one = bare(
            sections=[Section(probe="p", question="?", numbers={"a.b": Number(estimate=about(value, 0.1))})]
        )
        (result,) = evaluate([f"p.a.b.value {operator} {limit}"], one)
        assert (result.status == "fails") is eval(f"{value} {operator} 0.6")


def test_three_valued_logic():
    known = {True: "p.x.value > 0", False: "p.x.value < 0", None: "p.no.value > 0"}
    one = bare(sections=[Section(probe="p", question="?", numbers={"x": Number(estimate=about(1.0))})])
    for a, b in itertools.product(known, repeat=2):
        both, either = evaluate([f"{known[a]} and {known[b]}", f"{known[a]} or {known[b]}"], one)
        conjunction = False if False in (a, b) else None if None in (a, b) else True
        disjunction = True if True in (a, b) else None if None in (a, b) else False
        said = {True: "fails", False: "passes", None: "not evaluable"}
        assert (both.status, either.status) == (said[conjunction], said[disjunction])


def test_numbers_of_a_report_have_the_names_of_the_probes():
    names = report().numbers()
    assert {f"membership.{name}" for name in found()[0].numbers} <= set(names)
    assert names["membership.flagged"].estimate.n == 2000
    assert names["membership.auc.in_rare_code"].estimate.value == 0.81
    assert "trajectory.flagged" not in names
    assert from_probe(found()[3], subject()).n_flagged is None
