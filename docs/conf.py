"""Sphinx settings: Markdown pages, the API from the docstrings, warnings are errors (make docs)."""

from __future__ import annotations

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
    "sphinx_autodoc_typehints",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples"]
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference", "sphinx_autodoc_typehints.guarded_import"]

html_theme = "furo"
html_title = "memguard"
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Guarantees", "Logged metrics"]
napoleon_use_ivar = True
typehints_defaults = "braces-after"
