"""Sphinx settings: Markdown pages, the API from the docstrings, warnings are errors (make docs)."""

from __future__ import annotations

import ast
from pathlib import Path

import memguard

project = "memguard"
author = "The memguard maintainers"
copyright = "The memguard maintainers, Apache-2.0"
release = version = memguard.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples"]

html_theme = "furo"
html_title = "memguard"
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_type_aliases = {"ArrayLike": "numpy.typing.ArrayLike"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Guarantees", "Logged metrics"]
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def _write_api() -> None:
    """One page a room, from the modules that are there: no list to keep up to date."""
    package, pages = Path(memguard.__file__).parent, Path(__file__).parent / "api"
    pages.mkdir(exist_ok=True)
    for old in pages.glob("*.md"):
        old.unlink()
    rooms = [
        "callbacks",
        "comparing",
        "auditing",
        "probes",
        "mitigations",
        "report",
        "references",
        "adapters",
        "privacy",
        "metrics",
        "capture",
        "records",
        "attacks",
        "cli",
    ]
    front = [file for file in sorted(package.glob("*.py")) if not file.stem.startswith("_")]
    inside = {room: sorted((package / room).rglob("[!_]*.py")) for room in rooms}
    groups = inside | {"front": front}
    for room, files in groups.items():
        about = package / room / "__init__.py" if room != "front" else package / "__init__.py"
        lines = [f"# memguard.{room}" if room != "front" else "# memguard", ""]
        lines += [ast.get_docstring(ast.parse(about.read_text(encoding="utf-8"))) or "", ""]
        for file in files:
            dotted = ".".join(file.relative_to(package.parent).with_suffix("").parts)
            name = (
                ".".join(file.relative_to(package / room).with_suffix("").parts)
                if room != "front"
                else file.stem
            )
            lines += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {dotted}", "```", ""]
        (pages / f"{room}.md").write_text("\n".join(lines), encoding="utf-8")
    entries = "\n".join(["front", *rooms])
    intro = (
        "From the docstrings. What `import memguard` offers is stable; the rooms below it are public "
        "too, and may change between minor versions."
    )
    index = f"# API reference\n\n{intro}\n\n```{{toctree}}\n:maxdepth: 2\n\n{entries}\n```\n"
    (pages / "index.md").write_text(index, encoding="utf-8")


_write_api()
