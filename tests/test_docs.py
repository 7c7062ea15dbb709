"""The README and the docs show what exists: imports, arguments, metric keys, files and links."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if not {"_build", "api"} & set(p.parts)),
]
CHECKED = ("LeakageMonitor", "DPSGD", "audit", "Arm", "Study", "compare")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_parse_and_import(page: Path):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in CHECKED:
                check_arguments({str(k.arg) for k in node.keywords}, ast.unparse(node.func))


def check_arguments(given: set[str], front: str = "LeakageMonitor") -> None:
    import memguard

    assert given <= set(inspect.signature(getattr(memguard, front)).parameters)


def test_configuration_blocks_give_arguments_that_exist():
    yaml = pytest.importorskip("yaml")
    page = ROOT / "docs" / "configure.md"
    lightning, hydra = (yaml.safe_load(block) for block in blocks(page, "yaml"))
    (callback,) = lightning["trainer"]["callbacks"]
    assert callback["class_path"] == hydra["leakage_monitor"].pop("_target_") == "memguard.LeakageMonitor"
    check_arguments(set(callback["init_args"]))
    check_arguments(set(hydra["leakage_monitor"]))


def test_arguments_named_in_the_text_exist():
    from memguard import (
        DPSGD,
        Arm,
        Deduplicate,
        FloorFlagged,
        GoldfishLoss,
        LeakageMonitor,
        LeakageStopping,
        LightProbes,
        Reweight,
        Study,
        attacks,
        audit,
        compare,
    )
    from memguard.adapters import CausalAdapter, find_adapter
    from memguard.callbacks.planted import PlantedCanaries
    from memguard.records.patients import resolve_patients
    from memguard.references.data import TrainingData
    from memguard.references.pool import train_pool

    known: set[str] = set()
    fronts = (LeakageMonitor, LightProbes, DPSGD, audit, resolve_patients, find_adapter, train_pool)
    mitigations = (Deduplicate, FloorFlagged, GoldfishLoss, LeakageStopping, Reweight)
    for front in (*fronts, *mitigations, Arm, Study, compare, CausalAdapter, TrainingData, PlantedCanaries):
        known |= set(inspect.signature(front).parameters)
    for name in attacks.__all__:
        known |= set(inspect.signature(getattr(attacks, name)).parameters)
    lightning = {
        "monitor",
        "patience",
        "auto_insert_metric_name",
        "check_on_train_epoch_end",
        "strict",
        "labels",
    }
    torch = {"reduction", "in_order"}
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for argument in re.findall(r"`(\w+)=[^`\s-]*`", text):
            assert argument in known | lightning | torch, f"{page.name}: {argument}="


def test_metric_keys_in_the_text_are_logged():
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "memguard").rglob("*.py"))
    for page in PAGES:
        for key in re.findall(r"memguard/([a-z_]{5,})(?=[`:}\"])", page.read_text(encoding="utf-8")):
            assert re.search(rf"\b{key.removesuffix('_')}", source), f"{page.name}: memguard/{key}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "pycon")], ids=name)
def test_examples_say_what_the_page_says(page: Path):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    example = doctest.DocTestParser().get_doctest(
        "\n".join(blocks(page, "pycon")), {}, page.name, str(page), 0
    )
    assert runner.run(example).attempted > 0 and runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_name_recipes_and_targets_that_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z][a-z-]+)", "\n".join(re.findall(r"`+[^`]+`+", text))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for module in re.findall(r"python -m ((?:recipes|benchmarks)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.mark.filterwarnings("ignore")  # of jsonargparse, about how Lightning uses it
def test_lightning_cli_reads_the_configuration_of_the_docs(tmp_path, monkeypatch):
    pytest.importorskip("typeshed_client")  # part of jsonargparse[signatures]
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "config.yaml").write_text(blocks(ROOT / "docs" / "configure.md", "yaml")[0])
    quiet = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--seed_everything=false"]
    for arguments in (
        [f"--config={tmp_path / 'config.yaml'}"],
        ["--trainer.callbacks+=memguard.LeakageMonitor", "--trainer.callbacks.seed=0"],
    ):
        cli = LightningCLI(
            BoringModel, BoringDataModule, run=False, save_config_callback=None, args=[*arguments, *quiet]
        )
        assert type(cli.trainer.callbacks[0]).__name__ == "LeakageMonitor"
