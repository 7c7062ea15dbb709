"""The house keeps its shape: imports run down, words are chosen with care, the front door is light."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "memguard"

# A room may import the rooms on lower floors, and itself. Two rooms of one floor do not know each other.
FLOORS = [
    {"errors"},
    {"owner_only", "named"},
    {"attacks", "records"},
    {"findings"},
    {"capture", "metrics"},
    {"adapters"},
    {"references", "privacy"},
    {"probes", "mitigations", "report"},
    {"auditing"},
    {"callbacks"},
    {"comparing"},
    {"preflight", "demo"},
    {"cli"},
]
# Sums and estimates: what they compute must be computable without a model at hand.
NO_TORCH = {"errors", "owner_only", "named", "attacks", "records", "findings"}
# Only these feed a probe from a training; the rest of probes/ is arithmetic on arrays.
PROBES_WITH_TORCH = {"ask.py", "watch.py"}
HEAVY = {"torch", "lightning", "pytorch_lightning", "opacus", "torchmetrics"}
NEVER_CLAIMED = re.compile(r"\b(anonymous|HIPAA[- ]compliant|GDPR[- ]safe)\b", re.IGNORECASE)
DISCLAIMS = re.compile(r"\b(never|not|no)\b", re.IGNORECASE)


def _floor(room: str) -> int | None:
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports(file: Path, *, types_too: bool) -> set[str]:
    """Dotted names that a file imports, also inside functions; those for annotations only where asked."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if _type_checking(node) and not types_too:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the whole path"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return found


def _rooms_imported(file: Path) -> set[str]:
    names = {n.split(".")[1] for n in _imports(file, types_too=True) if n.startswith("memguard.")}
    return {n for n in names if _floor(n) is not None}


@pytest.mark.parametrize("file", _sources(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_no_import_runs_up(file: Path):
    room = _room(file)
    if room == "__init__":
        return
    floor = _floor(room)
    assert floor is not None, f"{room} has no floor in the house: give it one in FLOORS"
    for other in _rooms_imported(file) - {room}:
        assert (_floor(other) or 0) < floor, f"{room} imports {other}, which stands beside or above it"


@pytest.mark.parametrize("room", sorted(NO_TORCH | {"probes"}))
def test_arithmetic_needs_no_model_library(room: str):
    for file in _sources():
        if _room(file) != room or file.name in PROBES_WITH_TORCH:
            continue
        heavy = {n.split(".")[0] for n in _imports(file, types_too=False)} & HEAVY
        assert not heavy, f"{file.relative_to(PACKAGE)} imports {heavy}"


def test_attacks_are_numpy_and_scipy_alone():
    allowed = {"numpy", "scipy", "memguard", "__future__"} | set(sys.stdlib_module_names)
    for file in _sources():
        if _room(file) == "attacks":
            foreign = {n.split(".")[0] for n in _imports(file, types_too=True)} - allowed
            assert not foreign, f"{file.name} imports {foreign}"


def test_nothing_is_pickled():
    for file in _sources():
        for name in _imports(file, types_too=False):
            assert name.split(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib"}, file


def _prose() -> list[Path]:
    pages = [ROOT / n for n in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
    docs = [p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts]
    templates = [p for p in PACKAGE.rglob("*") if p.suffix in {".html", ".j2", ".css", ".py"}]
    return [p for p in [*pages, *docs, *templates, *(ROOT / "recipes").rglob("*.py")] if p.exists()]


@pytest.mark.parametrize("page", _prose(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_claim_that_no_library_can_make(page: Path):
    text = page.read_text(encoding="utf-8")
    for sentence in re.split(r"(?<=[.!?])\s|\n\n", text):
        if NEVER_CLAIMED.search(sentence):
            assert DISCLAIMS.search(sentence), f"{page.name}: {sentence.strip()[:200]}"


@pytest.mark.parametrize("page", _prose(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_path_of_a_machine(page: Path):
    path = re.search(r"(?<![\w.~/])/(home|root|Users|tmp|work|mnt|opt)/\w+", page.read_text(encoding="utf-8"))
    assert path is None, f"{page.name}: {path and path.group(0)}"


def test_versions_in_constraints_meet_the_ranges():
    tomllib = pytest.importorskip("tomllib")
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(
        line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#")
    )
    for extra, texts in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for text in texts:
            wanted = requirements.Requirement(text)
            if extra == "ray" or wanted.name == project["name"]:
                continue
            assert wanted.specifier.contains(pins[wanted.name.lower()]), text


def test_the_front_door_is_light():
    code = (
        "import sys, memguard; dir(memguard);"
        f"print(sorted(set(sys.modules) & {HEAVY | {'polars', 'scipy', 'matplotlib', 'jinja2'}!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_what_the_front_door_offers_is_there():
    import memguard

    for name in memguard.__all__:
        importlib.import_module(memguard._HOMES[name])
        message = f"the module of that name hides memguard.{name}: give the module another name"
        assert not inspect.ismodule(getattr(memguard, name)), message
    assert "LeakageMonitor" in memguard.__all__


def test_rooms_open_from_the_front_door():
    code = (
        "import sys, memguard; early = [n for n in sys.modules if n.startswith('memguard.')];"
        "print(early, memguard.metrics.MembershipAUROC.__name__, memguard.attacks.auc.__name__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split("\n")[0] == "[] MembershipAUROC auc"
