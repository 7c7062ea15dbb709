"""Figures, the table, and the adapters for loggers."""

from __future__ import annotations

import builtins
import re

import numpy as np
import pytest
from fake_watch import about, flags, point, report
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from memguard.attacks.membership import roc
from memguard.errors import MemguardWarning
from memguard.report import figures
from memguard.report.loggers import log_figure, log_report, log_text
from memguard.report.table import curve_markdown, curve_table, thin, thin_roc
from memguard.report.text import cell, estimate, number, percent, share


def test_curve_figure_draws_what_was_measured():
    one = report()
    above, below = figures.curve_figure(one).axes
    train, held = above.lines[:2]
    assert held.get_ydata().tolist() == [p.held_out_loss for p in one.curve]
    assert train.get_ydata().tolist() == [p.train_loss for p in one.curve]
    chance, auc, best = below.lines
    assert auc.get_ydata().tolist() == [p.auc.value for p in one.curve]
    assert chance.get_ydata() == [0.5, 0.5]
    assert best.get_xdata() == [one.best_epoch, one.best_epoch]
    assert above.get_xlim() == below.get_xlim()
    assert any("best held-out epoch" in text.get_text() for text in above.texts)


def test_axes_hold_every_interval():
    below = figures.curve_figure(
        report(curve=[point(1, auc=about(0.2, 0.1)), point(2, auc=about(0.97, 0.03))])
    ).axes[1]
    low, high = below.get_ylim()
    assert low < 0.1
    assert high >= 1.0


def test_rates_figure_is_logarithmic_and_compares_last_with_best():
    axes = figures.rates_figure(report(roc=[(0.0, 0.0), (0.01, 0.2), (1.0, 1.0)])).axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["chance", "epoch 24", f"epoch {report().best_epoch:g}, best held-out"]


@pytest.mark.parametrize("dark", [False, True])
def test_png(tmp_path, dark):
    path = figures.save_png(report(), tmp_path / "summary.png", dark=dark, dpi=50)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_png_on_a_bad_path_or_without_matplotlib_warns(tmp_path, monkeypatch):
    with pytest.warns(MemguardWarning, match="was not drawn"):
        assert figures.save_png(report(), tmp_path / "no" / "folder.png") is None
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.warns(MemguardWarning, match="memguard-ehr"):
        assert figures.save_png(report(), tmp_path / "summary.png") is None


def test_table_fits_a_terminal_and_marks_the_best():
    lines = curve_table(report(epochs=200)).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 18
    assert sum("*" in line for line in lines[1:-1]) == 1
    assert "<5" in curve_table(report(curve=[point(1, flagged_patients=2)]))


def test_markdown_is_a_table():
    rows = [line for line in curve_markdown(report()).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {6}
    assert len(rows) == 26


def test_thin_keeps_ends_and_the_best():
    kept = thin(range(1000), 10, keep=[123])
    assert kept[0] == 0
    assert kept[-1] == 999
    assert 123 in kept
    assert len(kept) <= 10
    assert thin([1, 2], 10) == [1, 2]


def test_thin_roc_stays_on_the_curve():
    rng = np.random.default_rng(0)
    curve = roc(
        np.r_[rng.normal(1, 1, 3000), rng.normal(0, 1, 3000)], np.r_[np.ones(3000), np.zeros(3000)] > 0
    )
    points = thin_roc(curve.fpr, curve.tpr)
    best = {}
    for f, t in zip(curve.fpr, curve.tpr, strict=True):
        best[f] = max(t, best.get(f, 0.0))
    assert all(best[f] == t for f, t in points)
    assert len(points) <= 160
    assert points[-1] == (1.0, 1.0)
    assert points[0][0] == pytest.approx(1 / 3000)
    assert thin_roc([0.0], [0.3]) == []


def test_numbers_as_text():
    assert (
        estimate(about(float("nan"), 0))
        == number(float("inf"))
        == share(None)
        == percent(float("nan"))
        == "–"
    )
    assert [cell(n) for n in (0, 1, 4, 5, 1200)] == ["0", "<5", "<5", "5", "1,200"]
    assert share(-0.004) == "-.00"
    assert share(0.9999) == "1.00"


class Recorder:
    """Takes any call and remembers it."""

    def __init__(self):
        self.calls, self.run_id, self.experiment = [], "run", self

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


WandbLogger = type("WandbLogger", (Recorder,), {})
MLFlowLogger = type("MLFlowLogger", (Recorder,), {})
Inherited = type("Inherited", (WandbLogger,), {})


@pytest.mark.parametrize("kind", [WandbLogger, MLFlowLogger, Inherited])
def test_adapters_by_class_name(kind):
    logger = kind()
    assert log_report([logger], report(), step=7) == 3
    names = [name for name, *_ in logger.calls]
    assert names == (
        ["log_text", "log_figure", "log_figure"] if kind is MLFlowLogger else ["log_text"] + ["log_image"] * 2
    )


def test_loggers_get_aggregates_only():
    logger = MLFlowLogger()
    log_report([logger], report(curve=[point(3, flagged_patients=3)], flagged_identifiable=1), step=1)
    text = logger.calls[0][1][1]
    assert not set(re.findall(r"\b[0-9a-f]{16}\b", text)) & set(flags()["patient"])
    assert "<5" in text


def test_tensorboard_takes_figures_and_text(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    assert log_report([logger], report(), step=3) == 3
    logger.finalize("success")
    assert next(tmp_path.rglob("events*")).stat().st_size > 10_000


def test_csv_and_unknown_loggers_get_nothing(tmp_path):
    assert log_report([CSVLogger(tmp_path), object(), None], report()) == 0
    assert list(tmp_path.rglob("*.png")) == []


def test_a_logger_that_fails_gives_a_warning():
    class TensorBoardLogger:
        @property
        def experiment(self):
            raise ConnectionError("no network")

    with pytest.warns(MemguardWarning, match="no network"):
        assert log_text(TensorBoardLogger(), "memguard/watch", "x") is False
    with pytest.warns(MemguardWarning, match="no network"):
        assert log_figure(TensorBoardLogger(), "memguard/curve", figures.curve_figure(report())) is False
