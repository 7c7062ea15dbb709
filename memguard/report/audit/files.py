"""The files of an audit: written owner-only, whole or not at all, and read back from the JSON."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import polars as pl

from memguard.errors import DataError, MemguardWarning
from memguard.report.audit.card import model_card
from memguard.report.audit.data import AuditReport
from memguard.report.audit.markdown import render_markdown
from memguard.report.audit.page import render_audit_page
from memguard.report.private import write_private

__all__ = ["load", "save"]


def save(report: AuditReport, folder: str | Path, records: pl.DataFrame | None = None) -> dict[str, Path]:
    """Write ``report.json``, ``report.html``, ``report.md``, ``model_card.md`` and ``records.parquet``.

    All are readable by their owner alone (mode 0600): the page and the texts hold aggregates and may be handed on
    by whoever decides to; the JSON has exact counts and the Parquet file has rows of patients. A view that cannot be
    made is left out with a `MemguardWarning`; the JSON is the truth, and what is wrong with it is raised.

    Args:
        report: The audit.
        folder: Made when missing, with mode 0700.
        records: One row a patient, with hashed ids (`memguard.report.audit.records.records_frame`).

    Returns:
        ``"json"``, ``"page"``, ``"markdown"``, ``"card"``, ``"records"`` -> path, for what was written.

    Raises:
        DataError: If the report does not keep to its schema, or the frame has no column ``patient``.

    Example:
        >>> import tempfile
        >>> from memguard.report.audit.parts import SideCounts
        >>> side = SideCounts(n_patients=900, n_records=1400)
        >>> report = AuditReport(version="0.1.0", created="2026-01-31", members=side, held_out=side)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(save(report, folder)), load(folder) == report
        (['card', 'json', 'markdown', 'page'], True)
    """
    folder = Path(folder)
    if records is not None and "patient" not in records.columns:
        raise DataError(
            "a frame of records without the column 'patient'",
            "nobody could say whose rows they are",
            "make it with records_frame",
        )
    body = report.to_json()
    makers: dict[str, tuple[str, Callable[[], str | pl.DataFrame | None]]] = {
        "json": ("report.json", lambda: body),
        "records": ("records.parquet", lambda: records),
        "markdown": ("report.md", lambda: render_markdown(report)),
        "card": ("model_card.md", lambda: model_card(report)),
        "page": ("report.html", lambda: render_audit_page(report)),
    }
    written = {name: _write(folder / file, make) for name, (file, make) in makers.items()}
    return {name: path for name, path in written.items() if path is not None}


def _write(path: Path, make: Callable[[], str | pl.DataFrame | None]) -> Path | None:
    fix = "report this"
    try:
        content = make()
        return None if content is None else write_private(path, content)
    except ImportError as error:
        seen, fix = f"{path} was not made ({error})", "pip install memguard-ehr[audit]"
    except Exception as error:  # an audit of hours may not be lost to what is wrong with one view
        seen = f"{path} was not made ({error!r})"
    warning = MemguardWarning(seen, "report.json is whole, and views can be made from it later", fix)
    warnings.warn(warning, stacklevel=4)
    return None


def load(folder: str | Path) -> AuditReport:
    """Read the report of a folder, or of its ``report.json``.

    Args:
        folder: As given to `save`, or the JSON file.

    Raises:
        DataError: If there is none, or it does not keep to its schema.
    """
    path = Path(folder)
    path = path / "report.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error})",
            "there is no report to show",
            "name the folder that AuditReport.save wrote",
        ) from error
    return AuditReport.from_json(text)
