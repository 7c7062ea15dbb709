"""Probes of the audit in a watched run: panels, table and words, and small cells that are not shown."""

from __future__ import annotations

import dataclasses

from fake_watch import about, report

from memguard.report.data import WatchReport
from memguard.report.figures import LIGHT
from memguard.report.page import render_page
from memguard.report.probed import probes_figure, probes_markdown, series_of, spoken
from memguard.report.table import curve_markdown
from memguard.report.words import does_not_show


def probed(n=100):
    plain = report()
    curve = [
        dataclasses.replace(
            point,
            probes={"attribute": {"memorized.k10.minus_held_out": about(0.02 * point.epoch, 0.1, n)}}
            | (
                {"copies": {"half.minus_held_out": about(0.3, 0.1, 60), "auc": about(0.6, 0.1, 3)}}
                if i % 6 == 5
                else {}
            ),
        )
        for i, point in enumerate(plain.curve)
    ]
    return dataclasses.replace(plain, curve=curve)


def test_each_probe_has_a_panel_over_its_null_and_rows():
    found = probed()
    assert [(one.probe, one.null, len(one.points)) for one in series_of(found)] == [
        ("attribute", 0.0, 24),
        ("copies", 0.0, 4),
    ]
    figure = probes_figure(found, LIGHT)
    assert [axes.get_title(loc="left").split()[0] for axes in figure.axes] == ["attribute", "copies"]
    null, line = figure.axes[0].lines
    assert list(null.get_ydata()) == [0.0, 0.0]
    assert len(line.get_xdata()) == 24
    page = render_page(found)
    assert "Probes of the audit" in page
    assert page.count("half.minus_held_out") >= 2
    assert "attribute, memorized.k10.minus_held_out: .02" in spoken(found)
    assert "| attribute | memorized.k10.minus_held_out | .00 |" in curve_markdown(found)


def test_numbers_of_few_patients_are_not_shown():
    found = probed(n=4)
    assert [one.probe for one in series_of(found, every=True)] == ["copies"]
    assert "memorized.k10" not in render_page(found) + probes_markdown(found)
    assert "auc" not in {one.number for one in series_of(found, every=True)}


def test_without_probes_nothing_is_said_of_them():
    plain = report()
    assert probes_markdown(plain) == "" and series_of(plain) == []
    assert "Probes of the audit" not in render_page(plain)
    assert "Attribute inference" in does_not_show(plain)[0]
    assert "attribute, copies were asked lightly" in does_not_show(probed())[0]


def test_what_was_written_is_read_again():
    found = probed()
    assert WatchReport.from_json(found.to_json()) == found
