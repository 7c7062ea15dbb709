"""The page: one self-contained HTML file that a data steward and an engineer can both read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from memguard.errors import MemguardWarning
from memguard.report.data import WatchReport
from memguard.report.private import write_private
from memguard.report.view import counted, page_context

__all__ = ["fill", "render_page", "write_report"]


def render_page(report: WatchReport, flags: pl.DataFrame | None = None, *, top: int = 50) -> str:
    """The page as text: verdict, figures, curve, flagged patients, what it shows and does not, provenance.

    No script, no other file, no font or picture from elsewhere. Counts of people from 1 to
    ``report.min_cell - 1`` are suppressed.

    Args:
        report: The watched run.
        flags: One row per patient with hashed ids (`memguard.report.flags.FLAG_COLUMNS`). Without it the page
            has aggregates only; with it, the counts of flagged patients are counted in it.
        top: At most so many flagged patients.

    Raises:
        ImportError: Jinja2 or Matplotlib is missing.
        DataError: ``flags`` lacks a column.

    Example:
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> render_page(report).splitlines()[0]
        '<!doctype html>'
    """
    return fill("watch.html.j2", page_context(report, flags, top))


def fill(template: str, context: Mapping[str, Any]) -> str:
    """A page from its template; what it names and does not get is an error.

    Args:
        template: File in ``templates/``.
        context: Everything that it names; text is escaped.

    Raises:
        ImportError: Jinja2 is missing.

    Example:
        >>> fill("watch.html.j2", {})
        Traceback (most recent call last):
        ...
        jinja2.exceptions.UndefinedError: 'report' is undefined
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("memguard.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_keep_together,
    )
    return environment.get_template(template).render(context)


def _keep_together(value: Any) -> Any:
    """No line break inside ``10 %`` or an interval; markup stays as it is."""
    if type(value) is not str:
        return value
    for loose in (" %", ", .", ": ."):
        value = value.replace(loose, loose.replace(" ", "\u00a0"))
    return value


def write_report(
    report: WatchReport, flags: pl.DataFrame | None, folder: str | Path, *, top: int = 50
) -> dict[str, Path]:
    """Write ``report.json``, ``flags.parquet`` and ``watch.html``, readable by their owner alone.

    What cannot be made is left out with a `MemguardWarning`; the JSON and the Parquet file need neither
    Jinja2 nor Matplotlib. Nothing is raised: this runs at the end of a training that must not be lost.

    Args:
        report: The watched run.
        flags: One row per patient with hashed ids, or ``None`` when nobody was ranked. The counts of flagged
            patients in all three files are counted in it.
        folder: Output folder, made when missing.
        top: Rows of flagged patients on the page; the Parquet file has all.

    Returns:
        ``"json"``, ``"flags"``, ``"page"`` -> path, for what was written.

    Example:
        >>> import tempfile
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(write_report(report, None, folder))
        ['json', 'page']
    """
    folder = Path(folder)
    report = counted(report, flags)
    makers: dict[str, tuple[str, Callable[[], str | pl.DataFrame | None]]] = {
        "json": ("report.json", report.to_json),
        "flags": ("flags.parquet", lambda: flags),
        "page": ("watch.html", lambda: render_page(report, flags, top=top)),
    }
    written = {name: _write(folder / file, make) for name, (file, make) in makers.items()}
    return {name: path for name, path in written.items() if path is not None}


def _write(path: Path, make: Callable[[], str | pl.DataFrame | None]) -> Path | None:
    why, fix = "the other files, and the report in memory, are whole", "report this"
    try:
        content = make()
        return None if content is None else write_private(path, content)
    except ImportError as error:
        seen, fix = f"{path} was not made ({error})", "pip install memguard-ehr[report]"
    except Exception as error:  # whatever is wrong with a view, it may not cost a training run
        seen = f"{path} was not made ({error!r})"
    warnings.warn(MemguardWarning(seen, why, fix), stacklevel=4)
    return None
