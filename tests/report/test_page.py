from __future__ import annotations

import builtins
import errno
import functools
import os
import re
import stat
import xml.etree.ElementTree as ET

import polars as pl
import pytest
from fake_watch import about, flags, point, report
from outline import outline

from memguard.errors import DataError, MemguardWarning
from memguard.report import render_page, write_report
from memguard.report.data import WatchReport
from memguard.report.flags import FLAG_COLUMNS, empty_flags

CASES = {
    "leaks": (report(), flags()),
    "nobody flagged": (report(flagged_patients=0, flagged_identifiable=0), flags(flagged=0, identifiable=0)),
    "aggregates only": (report(), None),
    "nothing measured": (report(curve=[], notes=["no held-out data"]), None),
    "one look": (report(curve=[point(1)]), flags(50, 3, 1)),
    "records": (report(unit="record", hashed_ids=False), flags(50, 9, 2)),
    "no numbers": (
        report(curve=[point(1, auc=None, tpr={}, blind_auc=None, held_out_loss=None)]),
        empty_flags(),
    ),
    "blind": (report(curve=[point(5, blind_auc=about(0.7, 0.02)), point(6)]), None),
    "zero rates": (report(curve=[point(2, tpr={0.1: about(0.0, 0.01), 0.01: about(float("nan"), 0)})]), None),
    "private training": (
        report(privacy="Differential privacy: epsilon = 8 <for> patients\n\nUnit  patient"),
        flags(50, 3, 1),
    ),
    "fractions": (report(curve=[point(1, epoch=0.25 * i, coverage=0.25 * i) for i in range(4)]), None),
}


@functools.cache
def rendered(case: str) -> str:
    return render_page(*CASES[case])


@pytest.fixture(params=CASES)
def page(request):
    return rendered(request.param)


@pytest.fixture
def _no_figures(monkeypatch):
    """Drawing is the slow part, and some tests look at everything but."""
    monkeypatch.setattr("memguard.report.view.to_svg", lambda *_, **__: "")


def test_well_formed_and_self_contained(page):
    seen = outline(page)
    assert len(seen.ids) == len(set(seen.ids))
    assert all(link.startswith("#") for link in seen.links)
    assert {link[1:] for link in seen.links} <= set(seen.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(seen.ids)
    assert "http" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert len(page.encode()) < 600_000
    used = {ref for _, attrs in seen.tags for ref in (attrs.get("aria-labelledby") or "").split()}
    assert used <= set(seen.ids)


def test_words(page):
    text = " ".join(outline(page).text)
    assert not re.search(r"anonym|\bsafe|complian", text, re.IGNORECASE)
    assert "None" not in text
    assert not re.search(r"\bnan\b", text)
    assert "#0102" not in page  # a stand-in colour that was not replaced


def test_tables_have_headers_and_figures_a_name(page):
    seen = outline(page)
    assert all("scope" in attrs for tag, attrs in seen.tags if tag == "th")
    figures = [attrs for tag, attrs in seen.tags if tag == "svg"]
    assert len(figures) <= 2
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in figures)
    assert page.count("<table>") == page.count("<caption>")  # the small one stands beside its own text
    assert "prefers-color-scheme: dark" in page


@pytest.mark.usefixtures("_no_figures")
def test_rows_identifiable_first_then_by_severity():
    frame = flags()
    page = render_page(report(), frame)
    shown = re.findall(r'class="start id">([0-9a-f]+)<', page)
    chosen = frame.filter("flagged").sort("identifiable", "severity", descending=True).head(50)
    assert shown == chosen["patient"].to_list()
    assert page.count('<span class="tag">yes</span>') == 31
    assert re.findall(r'class="start id">([0-9a-f]+)<', render_page(report(), frame, top=3)) == shown[:3]


def test_aggregates_only_has_no_patient():
    page = rendered("aggregates only")
    assert not any(one in page for one in flags()["patient"].to_list())
    assert "Private" not in page


@pytest.mark.usefixtures("_no_figures")
def test_tokens_are_shown_where_losses_are_counted_by_token():
    for unit, columns in (("nats/token", 15), ("nats/record", 14)):
        page = render_page(report(loss_unit=unit), flags(9, 3, 1))
        table = page[page.index('id="flagged"') : page.index('id="rates"')]
        assert len(re.findall(r'<th scope="col"', table)) == columns
        assert sum(int(n) for n in re.findall(r'colspan="(\d+)"', table)) == columns
        row = table[table.index('class="start id"') :]
        assert row[: row.index("</tr>")].count("<td") == columns - 1


@pytest.mark.usefixtures("_no_figures")
def test_small_cells_of_people_are_suppressed():
    frame = flags().with_columns(rarest_code_patients=pl.lit(3), equivalence_class=pl.lit(4))
    page = render_page(report(curve=[point(3, flagged_patients=2)]), frame, top=1)
    row = page[page.index('class="start id"') :]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row[: row.index("</tr>")])
    assert cells.count("&lt;5") == 2
    assert "<td>2</td>" not in page[page.index("The curve in numbers") :]


@pytest.mark.usefixtures("_no_figures")
def test_what_users_named_is_escaped():
    frame = flags(9, 3, 1).with_columns(patient=pl.lit("<b>x</b>"))
    page = render_page(report(model="<script>alert(1)</script>", notes=["<img src=x>"]), frame)
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>" not in page


def test_long_runs_are_thinned_and_small():
    long = report(curve=[point(min(e, 60), epoch=e) for e in range(1, 2001)])
    page = render_page(long, flags())
    assert len(page.encode()) < 600_000
    assert "120 of 2000 looks" in page


def test_same_report_same_page():
    assert rendered("leaks") == render_page(*CASES["leaks"])


def test_svg_is_xml():
    for svg in re.findall(r"<svg.*?</svg>", rendered("aggregates only"), flags=re.DOTALL):
        ET.fromstring(svg)


@pytest.mark.usefixtures("_no_figures")
def test_sentence_and_list_count_the_same():
    page = render_page(report(flagged_patients=1, flagged_identifiable=1), flags(4000, 77, 9))
    assert "77 of 4,000 patients are flagged" in page
    assert ", 9 of them are also identifiable" in page
    assert "50 of 77 flagged patients" in page


@pytest.mark.usefixtures("_no_figures")
def test_an_empty_frame_of_nobody_ranked_clears_nobody(tmp_path):
    last = point(3, flagged_patients=None, surrogate_fit=None, refused="40 held-out patients")
    one = report(curve=[last], n_ranked=0, flagged_identifiable=None)
    written = write_report(one, empty_flags(), tmp_path)
    page = written["page"].read_text()
    assert "No patient was ranked, so nobody is flagged and nobody is cleared" in page
    assert "none of" not in page.split("What the numbers show")[0]
    assert "none of them ranked" in page
    assert "r = –" not in page
    assert WatchReport.from_json(written["json"].read_text()).flagged_patients is None
    assert pl.read_parquet(written["flags"]).height == 0


def test_nothing_measured_draws_nothing():
    page = rendered("nothing measured")
    assert "<svg" not in page
    assert "No patient was ranked" in page


def test_writes_three_private_files(tmp_path):
    written = write_report(report(), flags(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "flags.parquet",
        "report.json",
        "watch.html",
    ]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in written.values())
    again = WatchReport.from_json(written["json"].read_text())
    assert again.curve == report().curve
    assert (again.flagged_patients, again.flagged_identifiable) == (412, 31)
    assert pl.read_parquet(written["flags"]).columns == list(FLAG_COLUMNS)


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_extra_json_and_parquet_are_written(tmp_path, monkeypatch, missing):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.warns(MemguardWarning, match=r"pip install memguard-ehr\[report\]"):
        written = write_report(report(), flags(), tmp_path)
    assert sorted(written) == ["flags", "json"]


def test_a_full_disk_costs_files_not_the_training(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.warns(MemguardWarning, match="No space left") as seen:
        assert write_report(report(), flags(), tmp_path) == {}
    assert len(seen) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_fault_in_the_page_costs_the_page(tmp_path):
    with pytest.warns(MemguardWarning, match="without the columns q"):
        written = write_report(report(), flags().drop("q"), tmp_path)
    assert sorted(written) == ["flags", "json"]
    with pytest.raises(DataError):
        render_page(report(), flags().with_columns(rank=pl.lit("first")))


def test_content_that_cannot_be_written_costs_that_file_only(tmp_path):
    frame = flags(9, 3, 1).with_columns(extra=pl.Series([object()] * 9, dtype=pl.Object))
    with pytest.warns(MemguardWarning, match="was not made") as seen:
        written = write_report(report(model=object()), frame, tmp_path)
    assert {str(one.message).split(" was not made")[0].rsplit("/")[-1] for one in seen} >= {
        "report.json",
        "flags.parquet",
    }
    assert [p.name for p in tmp_path.iterdir()] == [path.name for path in written.values()]


def test_statement_of_a_private_training_is_on_the_page_as_text():
    privacy = "epsilon = 8 <b>at</b> delta 1e-4\n  indented"
    page = render_page(report(privacy=privacy), None)
    assert "<pre>epsilon = 8 &lt;b&gt;at&lt;/b&gt; delta 1e-4\n  indented</pre>" in page
    assert WatchReport.from_json(report(privacy=privacy).to_json()).privacy == privacy
    assert "Nothing here bounds what leaks" not in page
    without = render_page(report(), None)
    assert "<pre>epsilon" not in without
    assert "Nothing here bounds what leaks" in without
