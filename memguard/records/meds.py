"""Read any MEDS 0.4 data set, lazily: events, subjects, splits, and token sequences for next-code models.

MEDS (Medical Event Data Standard): `data/**/*.parquet` with `subject_id`, `time`, `code` and, where measured,
`numeric_value`; `metadata/subject_splits.parquet`; `metadata/codes.parquet`. Columns beyond these are allowed
and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError, PatientOverlapError

if TYPE_CHECKING:
    from memguard.records.vocabulary import MedsSequences, Vocabulary

__all__ = ["MedsDataset", "read_meds"]

_MEDS = "MEDS 0.4 asks for it: https://medical-event-data-standard.github.io"
_TIME = pl.Datetime("us")
_EVENTS: Mapping[str, tuple[Any, ...]] = {
    "subject_id": (pl.Int64,),
    "time": (_TIME,),
    "code": (pl.String,),
    "numeric_value": (
        pl.Float32,
        pl.Float64,
    ),  # 64-bit values are wider than the standard, and lose nothing here
}
_STATIC = -(2**61)  # before any date, and far enough from overflow to take differences
_SPLITS: Mapping[str, tuple[Any, ...]] = {"subject_id": (pl.Int64,), "split": (pl.String,)}


@dataclass(frozen=True, kw_only=True)
class MedsDataset:
    """A MEDS data set on disk; nothing but schemas has been read yet. Made by `read_meds`.

    Attributes:
        root: Its directory.
        shards: The Parquet files that hold at least one event, in order of path.
        split_names: The names in `metadata/subject_splits.parquet`, sorted; empty without that file.
    """

    root: Path
    shards: tuple[Path, ...]
    split_names: tuple[str, ...]

    def splits(self) -> pl.LazyFrame:
        """`subject_id` (Int64) and `split` (String), one row a subject.

        Raises:
            DataError: The data set has no splits.
        """
        if not self.split_names:
            raise DataError(
                f"{self.root} has no metadata/subject_splits.parquet",
                "members and held-out patients cannot be told apart",
                "write the splits, or ask for all subjects with split=None",
            )
        return pl.scan_parquet(_splits_file(self.root)).select("subject_id", "split").unique()

    def events(self, split: str | None = None, *, subjects: ArrayLike | None = None) -> pl.LazyFrame:
        """The events, in the order of the files: `subject_id`, `time`, `code`, `numeric_value` (Float32).

        Args:
            split: Only the subjects of this split; None for all.
            subjects: Only these subjects.

        Raises:
            DataError: There is no such split.
        """
        parts = [_four_columns(pl.scan_parquet(shard)) for shard in self.shards]
        empty = pl.LazyFrame(schema={name: kinds[0] for name, kinds in _EVENTS.items()})
        frame = pl.concat(parts) if parts else empty
        if split is not None:
            chosen = self.splits().filter(pl.col("split") == self._known(split))
            frame = frame.join(chosen, on="subject_id", how="semi", maintain_order="left")
        if subjects is not None:
            listed = pl.LazyFrame({"subject_id": np.asarray(subjects, dtype=np.int64)})
            frame = frame.join(listed, on="subject_id", how="semi", maintain_order="left")
        return frame

    def subjects(self, split: str | None = None) -> NDArray[np.int64]:
        """Ids of the subjects with at least one event, ascending."""
        found = self.events(split).select(pl.col("subject_id").drop_nulls().unique().sort()).collect()
        return found["subject_id"].to_numpy().astype(np.int64)

    def codes(self) -> pl.DataFrame:
        """`metadata/codes.parquet`: `code`, `description`, `parent_codes`; no rows without the file."""
        file = self.root / "metadata" / "codes.parquet"
        if file.exists():
            return pl.read_parquet(file)
        schema = {"code": pl.String(), "description": pl.String(), "parent_codes": pl.List(pl.String)}
        return pl.DataFrame(schema=schema)

    def validate(self) -> None:
        """Read all events once and check what schemas cannot show.

        `sequences` sorts for itself, so that unsorted data are no error there; other readers of the same
        directory may need the order.

        Raises:
            DataError: A subject or a code is null; a subject lies in several files, or in several places of
                one; the events of a subject are not in order of time.
        """
        owners: list[pl.DataFrame] = []
        for shard in self.shards:
            frame = _four_columns(pl.scan_parquet(shard)).collect()
            _refuse_nulls(frame, shard.relative_to(self.root))
            subject, time = (
                frame["subject_id"],
                frame["time"].cast(pl.Int64).fill_null(_STATIC),
            )
            same = subject.diff() == 0  # null at the first row
            back = int((same & (time.diff() < 0)).sum())
            runs = int((~same).fill_null(True).sum())
            scattered = runs - subject.n_unique()
            if back or scattered:
                raise DataError(
                    f"{shard.relative_to(self.root)} has {back:,} events earlier than the one before them "
                    f"and {scattered:,} subjects in more than one place",
                    "histories would be read in the wrong order",
                    "sort each file by subject_id and time, null times first",
                )
            owners.append(pl.DataFrame({"subject_id": subject.unique()}))
        shared = pl.concat(owners)["subject_id"].is_duplicated().sum() // 2 if owners else 0
        if shared:
            raise DataError(
                f"{shared:,} subjects have events in several files",
                "a shard would hold half a history",
                "write each subject to one file",
            )

    def sequences(self, vocabulary: Vocabulary, split: str | None = None, **options: Any) -> MedsSequences:
        """Token sequences, one a subject: see `memguard.records.vocabulary.Vocabulary.sequences`."""
        return vocabulary.sequences(self, split, **options)

    def _known(self, split: str) -> str:
        if split not in self.split_names:
            raise DataError(
                f"there is no split {split!r} among {', '.join(self.split_names)}",
                "it would be empty",
                "MEDS calls them train, tuning and held_out",
            )
        return split


def read_meds(path: str | Path) -> MedsDataset:
    """Open a MEDS data set and check its schema, without reading events.

    Args:
        path: The directory that holds `data/` and `metadata/`.

    Returns:
        The data set.

    Raises:
        DataError: There is no data, a column is missing or has another type, or the splits are broken.
        PatientOverlapError: A subject is in two splits.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "data").mkdir()
        >>> pl.DataFrame(
        ...     {"subject_id": [1, 1], "time": [None, None], "code": ["GENDER//F", "A"]},
        ...     schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String},
        ... ).write_parquet(root / "data" / "0.parquet")
        >>> read_meds(root).events().collect()["code"].to_list()
        ['GENDER//F', 'A']
    """
    root = Path(path)
    files = sorted((root / "data").glob("**/*.parquet"))
    if not files:
        raise DataError(
            f"{root} holds no data/**/*.parquet",
            "there are no events",
            "pass the directory that holds data/ and metadata/",
        )
    shards = []
    for file in files:
        try:
            rows = pl.scan_parquet(file).select(pl.len()).collect().item()
            schema = pl.read_parquet_schema(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"{file.relative_to(root)} cannot be read ({error})",
                "its subjects would be missing",
                "write it anew",
            ) from error
        # A writer that knows no types for an empty file leaves columns without one: nothing is lost there.
        _check(schema, _EVENTS, file.relative_to(root), optional=("numeric_value",), empty=rows == 0)
        if rows:
            shards.append(file)
    return MedsDataset(root=root, shards=tuple(shards), split_names=_split_names(root))


def _splits_file(root: Path) -> Path:
    return root / "metadata" / "subject_splits.parquet"


def _split_names(root: Path) -> tuple[str, ...]:
    file = _splits_file(root)
    if not file.exists():
        return ()
    name = file.relative_to(root)
    _check(pl.read_parquet_schema(file), _SPLITS, name)
    table = pl.read_parquet(file, columns=["subject_id", "split"]).unique()
    if table.null_count().sum_horizontal().item():
        raise DataError(f"{name} has empty cells", "a subject would belong to no split", "fill them in")
    twice = table.filter(pl.col("subject_id").is_duplicated())["subject_id"].n_unique()
    if twice:
        raise PatientOverlapError(
            f"{twice:,} subjects are in more than one split of {name}",
            "a patient who is trained on is no non-member",
            "give each subject one split",
        )
    return tuple(table["split"].unique().sort())


def _check(
    schema: Mapping[str, Any],
    wanted: Mapping[str, tuple[Any, ...]],
    name: Path,
    *,
    optional: tuple[str, ...] = (),
    empty: bool = False,
) -> None:
    for column, kinds in wanted.items():
        if column not in schema:
            if column in optional:
                continue
            raise DataError(f"{name} has no column {column!r}", "it is no MEDS data set", _MEDS)
        kind = schema[column]
        if kind not in kinds and not (kind == pl.Null and (empty or column == "numeric_value")):
            expected = " or ".join(str(one) for one in kinds)
            raise DataError(
                f"column {column!r} of {name} is {kind} and not {expected}",
                "subjects, times or codes would be read wrongly",
                f"cast it; {_MEDS}",
            )


def _four_columns(frame: pl.LazyFrame) -> pl.LazyFrame:
    measured = "numeric_value" in frame.collect_schema()
    value = pl.col("numeric_value") if measured else pl.lit(None).alias("numeric_value")
    return frame.select("subject_id", "time", "code", value.cast(pl.Float32))


def _refuse_nulls(frame: pl.DataFrame, name: object) -> None:
    for column in ("subject_id", "code"):
        nulls = frame[column].null_count()
        if nulls:
            raise DataError(
                f"{nulls:,} events of {name} have no {column}",
                "they belong to nobody or mean nothing",
                "drop them",
            )
