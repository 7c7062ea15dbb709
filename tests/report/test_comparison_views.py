"""Files, text and figures of a comparison."""

from __future__ import annotations

import itertools
import math
import stat

import polars as pl
import pytest
from fake_comparison import ARMS, about, comparison

from memguard.errors import DataError, MemguardWarning
from memguard.report.comparison import page as page_module
from memguard.report.comparison.files import load, save
from memguard.report.comparison.front import Way, front_figure, ways
from memguard.report.comparison.method import method, methods_named
from memguard.report.comparison.tables import by_group, final_table, level_tables
from memguard.report.comparison.text import summary
from memguard.report.comparison.wording import sign_of, signed
from memguard.report.figures import LIGHT


def test_files_are_owner_only_and_read_back(tmp_path):
    found = comparison()
    paths = save(found, tmp_path / "study")
    assert {name: path.name for name, path in paths.items()} == {
        "json": "comparison.json",
        "table": "comparison.parquet",
        "page": "comparison.html",
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths.values())
    assert stat.S_IMODE((tmp_path / "study").stat().st_mode) == 0o700
    assert load(tmp_path / "study") == load(paths["json"]) == found
    table = pl.read_parquet(paths["table"])
    assert table.height == len(found.rows)
    one = table.filter(arm="goldfish", stage="final", group="hardest", measure="tpr").row(0, named=True)
    row = found.row("goldfish", "hardest", "tpr")
    assert (one["value"], one["low"], one["n"]) == (row.value.value, row.value.low, row.value.n)
    assert row.minus_baseline is not None and one["difference_high"] == row.minus_baseline.high


def test_a_view_that_breaks_does_not_cost_the_others(tmp_path, monkeypatch):
    def broken(_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(page_module, "render_comparison_page", broken)
    with pytest.warns(MemguardWarning, match="no ink"):
        paths = save(comparison(), tmp_path)
    assert set(paths) == {"json", "table"}
    assert load(tmp_path).seeds == 8


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    def missing(_):
        raise ImportError("No module named 'jinja2'")

    monkeypatch.setattr(page_module, "render_comparison_page", missing)
    with pytest.warns(MemguardWarning, match=r"memguard-ehr\[report\]"):
        save(comparison(), tmp_path)


def test_what_is_no_comparison_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "comparison.json").write_text('{"schema": "memguard.audit/1"}')
    with pytest.raises(DataError, match=r"memguard\.audit/1"):
        load(tmp_path)


def test_summary_has_every_arm_and_every_sentence():
    found = comparison()
    text = summary(found)
    lines = text.splitlines()
    assert all(len(line) <= 110 for line in lines)
    assert all(line == line.rstrip() for line in lines)
    final = lines[lines.index("At the end of training") + 1 :][: 1 + len(ARMS)]
    assert [line.split("  ")[1] for line in final[1:]] == list(ARMS)
    line = next(one for one in final if "goldfish" in one)
    assert line.split() == ["goldfish", "20", "2.460", "+.050", "[.020,", ".080]", ".078", ".444", "-.266", "[-.296,",
                            "-.236]"]  # fmt: skip
    joined = " ".join(text.split())
    for sentence in (*found.may, *found.may_not, *found.notes):
        assert sentence in joined
    assert "did not reach: label smoothing .1; goldfish" in joined


def test_summary_of_little_and_of_names_that_move_the_cursor():
    text = summary(
        comparison(arms={"a\x1b[2J\nb": (2.4, 1.0, None)}, may=(), may_not=(), notes=(), control=None)
    )
    assert "\x1b" not in text
    assert "a[2J b" in text
    assert "Nothing." in text and "no control was trained" in text
    assert "Notes" not in text


def test_signs():
    assert [signed(about(one)) for one in (0.2, -0.2, 0.0, 1e-9, -1e-9)] == [
        "+.200",
        "-.200",
        ".000",
        ".000",
        ".000",
    ]
    assert [sign_of(about(one, 0.1)) for one in (0.2, -0.2, 0.05, math.nan)] == [1, -1, 0, 0]


def test_differences_stand_beside_their_values():
    found = comparison()
    table = final_table(found)
    names = [(column.group, column.name) for column in table.columns]
    at = names.index(("Found: hardest 5 %", "minus baseline"))
    for line, arm in zip(table.lines, found.arms, strict=True):
        row = found.row(arm.name, "hardest", "tpr")
        assert line.cells[at].text == signed(row.minus_baseline)
        assert math.isclose(float(line.cells[at - 1].text), row.value.value, abs_tol=5.1e-4)


def test_levels_read_the_rows_of_their_own_stage():
    found = comparison()
    for table, level in zip(level_tables(found), found.levels, strict=True):
        assert {line.name for line in table.lines} == set(level.reached)
        assert {line.name for line in table.absent} == set(ARMS) - set(level.reached)
        for line in table.lines:
            row = found.row(line.name, "hardest", "tpr", level.name)
            assert math.isclose(float(line.cells[5].text), row.value.value, abs_tol=5.1e-4)
            assert line.cells[0].text == f"{level.reached[line.name]:.3g}"


def test_groups_of_the_price_are_those_that_have_it():
    found = comparison()
    table = by_group(found, "unseen_loss", "t", "c")
    assert table is not None
    assert [head for head, _ in table.heads][:2] == ["all patients (2,000)", "rare code (120)"]
    assert not any("hardest" in head for head, _ in table.heads)


def test_method_speaks_of_this_study():
    text = " ".join(words for _, words in method(comparison()))
    assert "8 seeds make 16 models" in text and "7 degrees of freedom" in text and "95 %" in text
    assert ("AUC", "jackknife over seeds") in methods_named(comparison())


def test_numbers_of_thirteen_arms_do_not_cover_one_another():
    found = comparison()
    picture = front_figure(ways(found, "hardest"), LIGHT, fpr=0.01, unit="nats/token")
    axes = picture.axes[0]
    picture.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert sorted(int(text.get_text()) for text in axes.texts) == list(range(1, 14))
    for one, other in itertools.combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        up = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across < 1 or up < 2
    inside = axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 + 1 for box in boxes)


@pytest.mark.parametrize(
    "stages",
    [
        [(2.0, 0.1)],
        [(2.0, 0.0), (2.0, 0.0)],
        [(0.0, 0.01)],
        [(-1.0, 1.0), (50.0, 0.0)],
        [(1e-9, 1e-9), (2e-9, 1e-6)],
    ],
)
def test_axes_hold_whatever_is_drawn(stages):
    same = [Way(1, "baseline", stages, (0.0, 1.0)), Way(2, "private", stages), Way(3, "other", stages)]
    picture = front_figure(same, LIGHT, fpr=0.01, unit="nats/record")
    axes = picture.axes[0]
    picture.draw_without_rendering()
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    assert all(left < x < right and bottom < y < top for x, y in stages)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == len(set(labels)) >= 2


def test_the_last_stage_is_marked_and_private_arms_are_drawn_apart():
    found = comparison()
    axes = front_figure(ways(found, "all"), LIGHT, fpr=0.01, unit="nats/token").axes[0]
    lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    points = [one for one in found.points if (one.arm, one.group) == ("DP-SGD, epsilon 3", "all")]
    last = max(points, key=lambda one: one.stage)
    number = 1 + found.names().index("DP-SGD, epsilon 3")
    end = lines[f"arm-{number}-end"]
    assert (float(end.get_xdata()[0]), float(end.get_ydata()[0])) == (last.utility, last.tpr)
    assert lines[f"arm-{number}-line"].get_linestyle() != lines["arm-3-line"].get_linestyle()
    assert end.get_marker() != lines["arm-3-end"].get_marker() != lines["arm-1-end"].get_marker()
    bar = lines[f"arm-{number}-bar"].get_ydata()
    value = found.row("DP-SGD, epsilon 3", "all", "tpr").value
    assert list(bar) == [value.low, value.high]


def test_a_stage_that_was_not_measured_is_no_point():
    found = comparison(stages=2)
    assert ways(found, "site B") == []
    assert len(ways(found, "all")) == len(ARMS)
    assert all(len(way.stages) == 2 for way in ways(found, "all"))
