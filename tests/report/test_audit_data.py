"""The audit report as data: round trips, the schema, conversion from probes, small cells, records."""

from __future__ import annotations

import dataclasses
import json
import math
import stat
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from fake_audit import about, bare, evidence, found, report, shown, subject, table
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard.attacks.estimate import Estimate
from memguard.errors import DataError, MemguardWarning
from memguard.findings import Grid, Lines
from memguard.probes.result import Evidence, ProbeResult, Table
from memguard.probes.subject import Subject
from memguard.records.content import Ragged, RecordContent
from memguard.report import HashedIds
from memguard.report.audit import (
    QUESTIONS,
    AuditReport,
    EpsilonClaim,
    Gap,
    Number,
    Section,
    SideCounts,
    Tail,
    from_probe,
    read_answers,
    records_frame,
    side_of,
    tails_of,
    threats_of,
    write_answers,
)
from memguard.report.audit.axes import two_axes
from memguard.report.audit.markdown import render_markdown
from memguard.report.audit.nulls import null_of
from memguard.report.audit.parts import TwoAxes
from memguard.report.audit.schema import build, shipped
from memguard.report.audit.sections import flagged_of
from memguard.report.audit.suppress import suppressed, suppressed_table

numbers = st.floats(allow_nan=True, allow_infinity=True)
words = st.text(max_size=12)
counts = st.integers(0, 10**9)
estimates = st.builds(
    Estimate, value=numbers, low=numbers, high=numbers, n=counts, method=words, confidence=numbers
)
cells = st.one_of(st.none(), st.booleans(), st.integers(-(10**12), 10**12), numbers, words, estimates)
pairs = st.lists(st.tuples(numbers, numbers), max_size=3)
sections = st.builds(
    Section,
    probe=st.sampled_from(["membership", "attribute", "x.y"]),
    question=words,
    numbers=st.dictionaries(
        words, st.builds(Number, estimate=estimates, null=st.none() | numbers), max_size=3
    ),
    tables=st.dictionaries(
        words,
        st.lists(st.tuples(cells, cells), max_size=3).map(
            lambda rows: Grid(title="t", columns=["a", "b"], rows=rows)
        ),
        max_size=2,
    ),
    curves=st.dictionaries(
        words,
        st.builds(Lines, title=words, x=words, y=words, lines=st.dictionaries(words, pairs, max_size=2)),
        max_size=2,
    ),
    n_flagged=st.none() | counts,
    settings=st.dictionaries(words, st.one_of(st.none(), st.booleans(), counts, words), max_size=2),
    notes=st.lists(words, max_size=2),
    not_tested=st.lists(st.builds(Gap, what=words, why=words), max_size=2),
)
reports = st.builds(
    AuditReport,
    version=words,
    created=words,
    members=st.builds(SideCounts, n_patients=counts, n_records=counts),
    held_out=st.builds(SideCounts, n_patients=counts, n_records=counts),
    unit=st.sampled_from(["patient", "record"]),
    flag_rate=st.none() | numbers,
    sections=st.lists(sections, max_size=1),
    tail=st.lists(
        st.builds(
            Tail,
            probe=words,
            evidence=words,
            n_members=counts,
            n_held_out=counts,
            quantiles=st.dictionaries(st.floats(0, 1), st.tuples(numbers, numbers), max_size=2),
        ),
        max_size=2,
    ),
    answers=st.dictionaries(st.sampled_from([q.key for q in QUESTIONS]), words, max_size=2),
    notes=st.lists(words, max_size=2),
)


@settings(max_examples=40, deadline=None)
@given(reports)
def test_json_round_trip(one):
    text = one.to_json()
    assert "NaN" not in text.replace(json.dumps("NaN"), "")
    again = AuditReport.from_json(text)
    assert again == one
    assert again.to_json() == text
    assert [type(s) for s in again.sections] == [type(s) for s in one.sections]
    for mine, theirs in zip(one.sections, again.sections, strict=True):
        assert list(mine.numbers) == list(theirs.numbers)
        for name, number in mine.numbers.items():
            value, back = number.estimate.value, theirs.numbers[name].estimate.value
            assert back == value if math.isfinite(value) else math.isnan(back)


def test_full_report_round_trip_keeps_types():
    one = report()
    again = AuditReport.from_json(one.to_json())
    assert again == one
    assert again.watch == one.watch
    assert again.claim == one.claim
    assert again.strata == tuple(one.strata)
    assert again.sections[1].axes == one.sections[1].axes
    assert isinstance(again.sections[0].tables["attacks"].rows[0][2], Estimate)
    assert again.tail[0].quantiles == one.tail[0].quantiles
    assert again != dataclasses.replace(one, notes=["other"])
    assert again != one.to_json()


def test_shipped_schema_is_that_of_the_dataclasses():
    assert shipped() == build(), (
        "python -m memguard.report.audit.schema > memguard/report/schema/audit-1.json"
    )
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(shipped())


def _without(body, *path):
    *way, last = path
    inner = body
    for key in way:
        inner = inner[key]
    del inner[last]


def _with(body, value, *path):
    *way, last = path
    inner = body
    for key in way:
        inner = inner[key]
    inner[last] = value


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: _without(b, "version"),
        lambda b: _without(b, "members", "n_patients"),
        lambda b: _without(b, "sections", 0, "probe"),
        lambda b: _without(b, "sections", 0, "numbers", "loss.auc", "estimate", "low"),
        lambda b: _with(b, "many", "members", "n_patients"),
        lambda b: _with(b, 3.5, "members", "n_patients"),
        lambda b: _with(b, "hospital", "unit"),
        lambda b: _with(b, "no list", "sections"),
        lambda b: _with(b, "0.71", "sections", 0, "numbers", "loss.auc", "estimate", "value"),
        lambda b: _with(b, [[1.0]], "sections", 0, "curves", "roc", "lines", "LiRA"),
        lambda b: _with(b, {"schema": "memguard.watch/9"}, "watch"),
        lambda b: _with(b, "memguard.audit/2", "schema"),
        lambda b: _with(b, {"nobody": "x"}, "answers"),
        lambda b: _with(b, -1.0, "claim", "epsilon"),
        lambda b: _with(b, [["only one cell"]], "sections", 0, "tables", "attacks", "rows"),
    ],
)
def test_broken_files_are_refused(spoil):
    body = json.loads(report().to_json())
    spoil(body)
    with pytest.raises(DataError):
        AuditReport.from_json(json.dumps(body))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}'])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(DataError):
        AuditReport.from_json(text)


def test_what_cannot_be_a_report_is_not_written():
    with pytest.raises(DataError, match="flag_rate"):
        bare(flag_rate="a tenth").to_json()
    with pytest.raises(DataError, match="two sections"):
        bare(sections=[Section(probe="a", question="?"), Section(probe="a", question="?")])
    with pytest.raises(DataError, match="no question"):
        bare(answers={"nobody": "asked"})


def test_keys_of_later_versions_are_left_out():
    body = json.loads(report().to_json()) | {"later": 1}
    body["sections"][0]["later"] = 2
    assert AuditReport.from_json(json.dumps(body)) == report()


def test_without_jsonschema_types_are_still_checked(monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "jsonschema":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    body = json.loads(report().to_json())
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.warns(MemguardWarning, match=r"memguard-ehr\[audit\]"):
        assert AuditReport.from_json(json.dumps(body)) == report()
    body["members"]["n_patients"] = "many"
    with pytest.warns(MemguardWarning), pytest.raises(DataError):
        AuditReport.from_json(json.dumps(body))


# -- from probes -----------------------------------------------------------------------------------------------


def test_section_holds_no_value_of_a_record():
    one = subject()
    section = from_probe(found()[0], one)
    assert section.n_flagged == 60
    assert section.n_ranked == 2000
    assert section.headline == "strongest.auc"
    assert section.deciding.null == 0.5
    assert section.deciding.seed == 7
    assert section.numbers["blind.auc"].null is None
    text = json.dumps(json.loads(bare(sections=[section]).to_json()))
    values = found()[0].evidence["score"].value
    assert not any(repr(float(value)) in text for value in values[:200])
    assert len(section.curves["roc"].lines["LiRA"]) <= 160


def test_flags_need_somebody_ranked():
    nobody = dataclasses.replace(found()[2], evidence={}, flagged=np.zeros(0, int))
    assert from_probe(nobody, subject()).n_flagged is None
    one = subject()
    held_out = int(one.patient[-1])
    both = dataclasses.replace(found()[0], flagged=np.array([0, 0, held_out]))
    assert from_probe(both, one).n_flagged == 1


def test_two_axes_against_counting_by_hand():
    patient = np.array([0, 0, 1, 2, 3, 4])
    one = SimpleNamespace(n_members=4, patient=patient, strata={})
    rows = np.arange(6)
    up = SimpleNamespace(name="up", row=rows, value=np.array([0.0, 2.0, 3.0, -1.0, 1.5, 9.0]), p_value=None)
    across = SimpleNamespace(name="across", row=rows, value=np.array([5.0, 5, 1, 2, 3, 4]), p_value=None)
    made = two_axes(up, across, one)
    mean = {0: (1.0, 5.0), 1: (3.0, 1.0), 2: (-1.0, 2.0), 3: (1.5, 3.0), 4: (9.0, 4.0)}
    for side, codes in (("members", (0, 1, 2)), ("held-out", (3, 4))):
        cells = np.zeros((len(made.y_edges) - 1, len(made.x_edges) - 1), int)
        for code in codes:
            j = min(max(sum(edge <= mean[code][0] for edge in made.y_edges) - 1, 0), cells.shape[0] - 1)
            i = min(max(sum(edge <= mean[code][1] for edge in made.x_edges) - 1, 0), cells.shape[1] - 1)
            cells[j, i] += 1
        assert [list(row) for row in made.counts[side]] == cells.tolist()
    flat = SimpleNamespace(name="flat", row=rows, value=np.ones(6), p_value=None)
    assert two_axes(flat, across, one) is None


def test_evidences_of_a_pair_are_counted_on_two_axes():
    made = from_probe(found()[1], subject())
    assert list(made.axes) == ["memorization.k20"]
    total = sum(n for row in made.axes["memorization.k20"].counts["members"] for n in row)
    assert total == 2000
    alone = {name: one for name, one in found()[1].evidence.items() if name != "inference.k20"}
    assert not from_probe(dataclasses.replace(found()[1], evidence=alone), subject()).axes


def test_tail_finds_the_shifted_and_not_the_null():
    one = subject()
    leaks = SimpleNamespace(probe="p", evidence={"e": evidence(one, "e", 4.0, 5, 0.1)}, flagged=np.arange(3))
    (row,) = tails_of(leaks, one)
    assert row.beyond.low > row.fpr
    assert row.n_flagged == 3
    assert list(row.quantiles) == [0.5, 0.9, 0.99]
    null = SimpleNamespace(probe="p", evidence={"e": evidence(one, "e", 0.0, 6)}, flagged=np.zeros(0, int))
    (row,) = tails_of(null, one)
    assert row.beyond.covers(row.fpr)
    few = SimpleNamespace(n_members=3, patient=np.arange(5), strata={})
    tiny = SimpleNamespace(name="e", row=np.arange(5), value=np.arange(5.0), p_value=None)
    (row,) = tails_of(SimpleNamespace(probe="p", evidence={"e": tiny}, flagged=np.zeros(0, int)), few)
    assert row.beyond is None
    assert row.quantiles == {}


def test_sides_are_counted():
    one = subject()
    for member in (True, False):
        side = side_of(one, member=member)
        mine = one.patient[: one.n_members] if member else one.patient[one.n_members :]
        assert (side.n_patients, side.n_records) == (len(set(mine.tolist())), len(mine))
        each = np.bincount(mine)[np.unique(mine)]
        assert side.records_per_patient["median"] == np.median(each)
        assert ("max" in side.records_per_patient) is (side.n_patients >= 1000)


def test_nulls_by_name():
    known = {
        "strongest.tpr_at_fpr_0.001": 0.001,
        "tpr_at_fpr_1e-05": 1e-5,
        "codes_20.distance.mean.minus_held_out": 0.0,
        "rare.minus_rest": 0.0,
        "rare.enrichment": 1.0,
        "epsilon_lower_bound": 0.0,
        "blind.auc": None,
        "substance.linear.member_auc": None,
        "memorized_share": None,
        "auc": 0.5,
        "loss_gap": 0.0,
    }
    assert {name: null_of(name) for name in known} == known


@pytest.mark.parametrize(("strangers", "counted"), [(9, (0, 20)), (8, (None, None))])
def test_no_flags_are_not_counted_where_nobody_could_be_flagged(strangers, counted):
    n = 20 + strangers
    subject = Subject(
        n_members=20,
        patient=np.arange(n),
        content=RecordContent.from_codes(Ragged.from_lists([[1, 2]] * n)),
    )
    p_value = np.where(np.arange(n) < 20, 0.5, np.nan)
    result = ProbeResult(
        probe="membership",
        question="Who?",
        evidence={"score": Evidence(name="score", row=np.arange(n), value=np.zeros(n), p_value=p_value)},
        settings={"flag_rate": 0.1},
    )
    assert flagged_of(result, subject) == counted  # no p-value among 8 lies below 1/9
    rows = records_frame([result], subject, hashed=lambda ids: [str(one) for one in ids])
    assert ("membership.flagged" in rows.columns) is (counted[0] is not None)
    blank = dataclasses.replace(result.evidence["score"], p_value=np.full(n, np.nan))
    assert flagged_of(dataclasses.replace(result, evidence={"score": blank}), subject) == (None, None)


def test_why_a_probe_could_measure_nothing_is_said():
    gap = Gap(
        what="copies", why="the model cannot be asked for continuations", fix="pass an adapter= that can"
    )
    _, gaps = threats_of([Section(probe="copies", question="?", not_tested=(gap,))])
    said = next(one for one in gaps if "near-duplicates" in one.what)
    assert "cannot be asked for continuations" in said.why and said.fix == gap.fix
    assert "PlantedCanaries" in next(one for one in gaps if "canaries" in one.what).fix


def test_a_table_without_rows_is_no_table_and_a_test_that_was_not_asked_took_no_time():
    empty = ProbeResult(
        probe="copies", question="?", tables={"by": Table(title="t", columns=("a",), rows=())}
    )
    section = from_probe(empty)
    assert section.tables == {} and threats_of([section])[0] == ()
    text = render_markdown(dataclasses.replace(report(), sections=[section]))
    assert "Run with" not in text and "judged by intervals" not in text
    one = dataclasses.replace(
        report(), sections=[one for one in report().sections if one.probe == "membership"]
    )
    assert "With one test judged by intervals of 95 %, it would be found by chance" in render_markdown(one)


def test_threats_without_a_test_are_gaps():
    tried, gaps = threats_of(report().sections)
    assert [one.probes for one in tried] == [("membership",), ("attribute",), ("embedding",)]
    what = {gap.what.split(":")[0]: gap for gap in gaps}
    assert "could measure nothing" in what["Extraction"].why
    assert {"Planted canaries", "Model inversion", "Property inference"} <= set(what)
    assert len(threats_of([])[0]) == 0


# -- small cells -----------------------------------------------------------------------------------------------


def test_small_cells_of_tables():
    grid = Grid(
        title="t",
        columns=["group", "Patients", "recall", "flagged", "auc", "codes"],
        rows=[
            ["large", 40, 0.5, 4, about(0.6, n=40), 3],
            ["none", 0, None, 0, None, 0],
            ["small", 4, 0.25, 1, about(0.6, n=4), 2],
            ["few behind it", 40, 0.5, 9, about(0.6, n=4), 3],
        ],
    )
    rows = suppressed_table(grid, 5).rows
    assert rows[0] == ("large", 40, 0.5, "<5", about(0.6, n=40), 3)
    assert rows[1] == ("none", 0, None, 0, None, 0)
    assert rows[2] == ("small", "<5", None, "<5", None, None)
    assert rows[3][4] is None
    assert suppressed_table(grid, 1).rows == tuple(map(tuple, grid.rows))


def test_small_cells_of_axes_strata_and_numbers():
    axes = TwoAxes(
        title="t", x="x", y="y", x_edges=[0, 1, 2, 3], y_edges=[0, 1], counts={"members": [[0, 4, 5]]}
    )
    few = Number(estimate=about(0.9, n=4), null=0.5)
    section = Section(
        probe="p", question="?", axes={"a": axes}, numbers={"few": few, "many": Number(estimate=about(0.9))}
    )
    rows = [
        dataclasses.replace(report().strata[0], n_members=n, estimate=about(0.9, n=n + 90)) for n in (4, 5)
    ]
    seen = suppressed(bare(sections=[section], strata=rows))
    assert seen.sections[0].axes["a"].counts["members"] == ((0, None, 5),)
    assert math.isnan(seen.sections[0].numbers["few"].estimate.value)
    assert seen.sections[0].numbers["many"].estimate == about(0.9)
    assert [row.estimate is None for row in seen.strata] == [True, False]
    assert not seen.sections[0].numbers["few"].above


# -- records ---------------------------------------------------------------------------------------------------


def test_records_against_a_loop():
    one, results = subject(60, 40), []
    score = evidence(one, "score", 2.0, 4)
    results = [SimpleNamespace(probe="p", evidence={"score": score}, flagged=np.array([1, 5]))]
    hashed = HashedIds(b"a key for tests only")
    frame = records_frame(results, one, hashed=hashed)
    codes = sorted(set(one.patient.tolist()))
    assert frame["patient"].to_list() == hashed(codes)
    for code, row in zip(codes, frame.iter_rows(named=True), strict=True):
        mine = np.flatnonzero(one.patient == code)
        assert row["member"] == bool(mine[0] < one.n_members)
        assert row["n_records"] == len(mine)
        assert row["p.score"] == pytest.approx(score.value[mine].mean())
        p = set(score.p_value[mine][np.isfinite(score.p_value[mine])].tolist())
        assert row["p.score.p"] == (pytest.approx(min(1, min(p) * len(p))) if p else None)
        assert row["p.flagged"] == (code in (1, 5))
        assert row["stratum.rare code"] == bool(one.strata["rare code"][mine].any())
    assert frame["n_flags"].sum() == 2
    assert frame["severity"].null_count() == 100


def test_records_take_severity_from_the_monitor_and_refuse_wrong_ids():
    one = subject(10, 5)
    hashed = HashedIds(b"a key for tests only")
    flags = pl.DataFrame({"patient": hashed(["a0", "a1"]), "severity": [1.5, 0.5], "severity_low": [1.0, 0.0],
                          "severity_high": [2.0, 1.0], "bits": [9.0, 3.0], "identifiable": [True, False]})  # fmt: skip
    frame = records_frame([], one, hashed=hashed, ids=[f"a{i}" for i in range(15)], flags=flags)
    assert frame["severity"].to_list()[:3] == [1.5, 0.5, None]
    with pytest.raises(DataError, match="ids"):
        records_frame([], one, hashed=hashed, ids=["a"])
    with pytest.raises(DataError, match="pseudonym"):
        records_frame([], one, hashed=hashed, ids=["same"] * 15)


# -- answers, epsilon, files -----------------------------------------------------------------------------------


def test_answers_are_asked_and_never_made_up(tmp_path):
    one = bare()
    assert one.open_questions() == [q.key for q in QUESTIONS]
    path = write_answers(tmp_path / "answers.json", {"users": "Two groups."})
    assert read_answers(path) == {"users": "Two groups."}
    told = one.answered(read_answers(path))
    assert "users" not in told.open_questions()
    assert told.answered({"users": " "}) == one
    path.write_text('{"users": "plain"}')
    assert read_answers(path) == {"users": "plain"}
    for wrong in ("[", '{"nobody": "x"}', "[1]", '{"users": {"asks": ""}}'):
        path.write_text(wrong)
        with pytest.raises(DataError):
            read_answers(path)


@pytest.mark.parametrize(
    ("bound", "answer"),
    [
        ({"epsilon": 9.0}, True),
        ({"epsilon": 7.0}, False),
        ({"epsilon": 9.0, "delta": 1e-4}, True),
        ({"epsilon": 9.0, "delta": 1e-6}, None),
        ({"epsilon": 9.0, "unit": "record"}, None),
        ({"epsilon": math.nan}, None),
    ],
)
def test_a_bound_contradicts_only_what_it_can(bound, answer):
    claim = EpsilonClaim(epsilon=8.0, delta=1e-5, unit="patient")
    assert shown(**bound).contradicts(claim) is answer
    alarm = (
        "claim of differential privacy is contradicted" in bare(claim=claim, shown=[shown(**bound)]).verdict()
    )
    assert alarm is (answer is True)


def test_all_files_are_private_and_come_back(tmp_path):
    frame = records_frame(found(), subject(), hashed=HashedIds(b"a key for tests only"))
    written = report().save(tmp_path / "audit", frame)
    assert {name: path.name for name, path in written.items()} == {
        "json": "report.json",
        "records": "records.parquet",
        "markdown": "report.md",
        "card": "model_card.md",
        "page": "report.html",
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in written.values())
    assert AuditReport.load(tmp_path / "audit") == AuditReport.load(written["json"]) == report()
    assert pl.read_parquet(written["records"]).equals(frame)
    hashes = set(frame["patient"])
    for name in ("json", "markdown", "card", "page"):
        text = written[name].read_text(encoding="utf-8")
        assert not any(one in text for one in hashes)


def test_a_view_that_fails_costs_the_view(tmp_path, monkeypatch):
    monkeypatch.setattr("memguard.report.audit.files.render_audit_page", lambda _: 1 / 0)
    with pytest.warns(MemguardWarning, match=r"report\.html was not made"):
        assert sorted(bare().save(tmp_path)) == ["card", "json", "markdown"]
    with pytest.raises(DataError, match="patient"):
        bare().save(tmp_path, pl.DataFrame({"x": [1]}))
    with pytest.raises(DataError, match="cannot be read"):
        AuditReport.load(tmp_path / "nowhere")


def test_table_of_a_probe_with_ragged_rows_is_refused():
    with pytest.raises(DataError, match="heads"):
        table("t", ["a", "b"], [[1]])
