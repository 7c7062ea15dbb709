"""The files of a comparison: written owner-only, whole or not at all, and read back from the JSON."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from memguard.errors import DataError, MemguardWarning
from memguard.report.comparison.data import Comparison
from memguard.report.private import write_private

if TYPE_CHECKING:
    import polars as pl

__all__ = ["load", "save"]


def save(comparison: Comparison, folder: str | Path) -> dict[str, Path]:
    """Write ``comparison.json``, ``comparison.parquet`` and ``comparison.html``.

    All are readable by their owner alone (mode 0600). They hold no row of a patient; the page suppresses counts of
    fewer than five people, the JSON and the table (`Comparison.frame`) are exact. A view that cannot be made is left
    out with a `MemguardWarning`; the JSON is the truth, and what is wrong with it is raised.

    Args:
        comparison: What was found.
        folder: Made when missing, with mode 0700.

    Returns:
        ``"json"``, ``"table"``, ``"page"`` -> path, for what was written.

    Example:
        >>> import tempfile
        >>> from memguard.report.comparison.data import ArmSummary
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40,
        ...                    arms=[ArmSummary(name="x")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(save(found, folder)), load(folder) == found
        (['json', 'page', 'table'], True)
    """
    folder = Path(folder)
    body = comparison.to_json()

    def page() -> str:
        from memguard.report.comparison.page import render_comparison_page

        return render_comparison_page(comparison)

    makers: dict[str, tuple[str, Callable[[], str | pl.DataFrame]]] = {
        "json": ("comparison.json", lambda: body),
        "table": ("comparison.parquet", comparison.frame),
        "page": ("comparison.html", page),
    }
    written = {name: _write(folder / file, make) for name, (file, make) in makers.items()}
    return {name: path for name, path in written.items() if path is not None}


def _write(path: Path, make: Callable[[], str | pl.DataFrame]) -> Path | None:
    fix = "report this"
    try:
        return write_private(path, make())
    except ImportError as error:
        seen, fix = f"{path} was not made ({error})", "pip install memguard-ehr[report]"
    except Exception as error:  # a study of days may not be lost to what is wrong with one view
        seen = f"{path} was not made ({error!r})"
    why = "comparison.json is whole, and views can be made from it later"
    warnings.warn(MemguardWarning(seen, why, fix), stacklevel=4)
    return None


def load(folder: str | Path) -> Comparison:
    """Read the comparison of a folder, or of its ``comparison.json``.

    Args:
        folder: As given to `save`, or the JSON file.

    Raises:
        DataError: If there is none, or it is not of this version's form.
    """
    path = Path(folder)
    path = path / "comparison.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error})",
            "there is no comparison to show",
            "name the folder that was given to save",
        ) from error
    return Comparison.from_json(text)
