"""The frame of flagged patients: its fixed columns, its order, and what a reader sees of it."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from memguard.errors import DataError
from memguard.report.text import DASH, MIN_CELL, cell, count, number, share

__all__ = ["FLAG_COLUMNS", "check_flags", "empty_flags", "flag_counts", "flag_rows", "most_urgent"]

FLAG_COLUMNS: Mapping[str, pl.DataType] = {
    "patient": pl.String(),
    "rank": pl.Int64(),
    "severity": pl.Float64(),
    "severity_low": pl.Float64(),
    "severity_high": pl.Float64(),
    "bits": pl.Float64(),
    "p": pl.Float64(),
    "q": pl.Float64(),
    "flagged": pl.Boolean(),
    "lt_iqr": pl.Float64(),
    "first_epoch": pl.Float64(),
    "n_records": pl.Int64(),
    "n_tokens": pl.Int64(),
    "rare_codes": pl.Int64(),
    "rarest_code_patients": pl.Int64(),
    "equivalence_class": pl.Int64(),
    "near_duplicates": pl.Int64(),
    "identifiable": pl.Boolean(),
}
"""Column -> type. One row is one patient (hashed id), or one record where no patient is known.

``severity`` is the counterfactual gap in nats per token (or per record) with its interval, ``bits`` the same
for everything the patient has; ``q`` is the Benjamini-Hochberg adjusted ``p``; ``near_duplicates`` counts the
other patients with nearly the same codes.
"""


def empty_flags() -> pl.DataFrame:
    """A frame with the right columns and no rows.

    Example:
        >>> empty_flags().width
        18
    """
    return pl.DataFrame(schema=dict(FLAG_COLUMNS))


def check_flags(flags: pl.DataFrame) -> pl.DataFrame:
    """Put the columns in order and cast them; extra columns stay, at the end.

    Args:
        flags: One row per patient.

    Raises:
        DataError: A column is missing, or holds something that its type cannot.

    Example:
        >>> check_flags(empty_flags().drop("q"))
        Traceback (most recent call last):
        ...
        memguard.errors.DataError: a frame of flags without the columns q. ...
    """
    missing = [name for name in FLAG_COLUMNS if name not in flags.columns]
    if missing:
        raise DataError(
            f"a frame of flags without the columns {', '.join(missing)}",
            "a reader would see a patient without what makes the row readable",
            f"give every column of FLAG_COLUMNS ({', '.join(FLAG_COLUMNS)}), null where nothing is known",
        )
    try:
        ordered = flags.select([pl.col(name).cast(kind) for name, kind in FLAG_COLUMNS.items()])
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"a frame of flags whose columns do not cast ({str(error).splitlines()[0]})",
            "the numbers would be read wrongly",
            "use the types in FLAG_COLUMNS",
        ) from error
    return ordered.hstack(flags.select([name for name in flags.columns if name not in FLAG_COLUMNS]))


def flag_counts(flags: pl.DataFrame) -> tuple[int, int]:
    """How many are flagged, and how many of those are identifiable.

    Args:
        flags: A frame with `FLAG_COLUMNS`.

    Example:
        >>> flag_counts(empty_flags())
        (0, 0)
    """
    chosen = flags.filter(pl.col("flagged"))
    return chosen.height, chosen.filter(pl.col("identifiable")).height


def most_urgent(flags: pl.DataFrame, top: int | None = 50) -> pl.DataFrame:
    """The flagged patients, identifiable ones first, each group in order of severity.

    Args:
        flags: A frame with `FLAG_COLUMNS`.
        top: At most so many rows; ``None`` for all.

    Example:
        >>> most_urgent(empty_flags()).height
        0
    """
    chosen = flags.filter(pl.col("flagged")).sort(
        pl.col("identifiable").fill_null(value=False),
        "severity",
        "rank",
        descending=[True, True, False],
        nulls_last=True,
        maintain_order=True,
    )
    return chosen if top is None else chosen.head(top)


def flag_rows(flags: pl.DataFrame, min_cell: int = MIN_CELL) -> list[dict[str, str | bool]]:
    """Rows as text for a page, counts of people suppressed below ``min_cell``.

    Args:
        flags: A frame with `FLAG_COLUMNS`, already cut to what is shown.
        min_cell: See `memguard.report.text.cell`.

    Example:
        >>> flag_rows(empty_flags())
        []
    """
    return [_row(row, min_cell) for row in flags.iter_rows(named=True)]


def _row(row: Mapping[str, float | str | bool | None], min_cell: int) -> dict[str, str | bool]:
    def at(name: str) -> float | None:
        value = row[name]
        return float(value) if isinstance(value, (int, float)) else None

    low, high, epoch = at("severity_low"), at("severity_high"), at("first_epoch")
    return {
        "patient": str(row["patient"]),
        "rank": count(at("rank")),
        "severity": number(at("severity"), 2),
        "interval": f"[{number(low, 2)}, {number(high, 2)}]" if low is not None and high is not None else "",
        "bits": number(at("bits"), 0),
        "q": _probability(at("q")),
        "p": _probability(at("p")),
        "lt_iqr": number(at("lt_iqr"), 2),
        "first_epoch": DASH if epoch is None else f"{epoch:g}",
        "n_records": count(at("n_records")),
        "n_tokens": count(at("n_tokens")),
        "rare_codes": count(at("rare_codes")),
        "rarest_code_patients": cell(at("rarest_code_patients"), min_cell),
        "equivalence_class": cell(at("equivalence_class"), min_cell),
        "near_duplicates": cell(at("near_duplicates"), min_cell),
        "identifiable": bool(row["identifiable"]),
    }


def _probability(value: float | None) -> str:
    """Four decimals while they tell something, then an exponent: never a bare 0."""
    if value is None or value != value:
        return DASH
    return share(value, 4) if value >= 0.0001 or value == 0 else f"{value:.0e}"
