"""From MEDS events to the integer sequences that a next-code model reads.

A sequence is: the age band at the first event, the static codes, then the events in order of time. A measured
code becomes one token per quantile bin of its values, and a gap of days between two events becomes a token.
Bins are fixed on the subjects that the vocabulary was fitted on, which must be the training subjects: bins of
held-out values would tell the model something about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.records.content import Ragged
from memguard.records.meds import MedsDataset, _refuse_nulls

__all__ = ["MedsSequences", "Vocabulary"]

_BIRTH = "MEDS_BIRTH"
_YEAR_DAYS = 365.2425
_GAP_DAYS = (1, 7, 30, 90, 180, 365, 730, 1461)
_AGE_YEARS = (30, 40, 50, 60, 70, 80, 90)


@dataclass(frozen=True, kw_only=True)
class MedsSequences:
    """Token sequences, one a subject.

    Attributes:
        tokens: N sequences.
        subject_ids: int64 ``(N,)``, ascending.
        events: int64 ``(N,)``, how many events of the subject are in the vocabulary, before any cut.
    """

    tokens: Ragged
    subject_ids: NDArray[np.int64]
    events: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.subject_ids)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokens of a model: number and name of each. Made by `Vocabulary.fit`.

    Attributes:
        names: Name of each token; token 0 is PAD.
        edges: Upper bounds of all bins but the last, float64 ascending, for each code that is binned.
        gap_days: Gaps of at least so many days have a token of their own.
        age_years: Ages from which a new band begins.

    Example:
        >>> import tempfile
        >>> from datetime import datetime
        >>> from pathlib import Path
        >>> from memguard.records import read_meds
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "data").mkdir()
        >>> pl.DataFrame(
        ...     [(1, None, "GENDER//F"), (1, datetime(2020, 1, 1), "A"), (1, datetime(2020, 1, 9), "B")],
        ...     schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String},
        ...     orient="row",
        ... ).write_parquet(root / "data" / "0.parquet")
        >>> vocabulary = Vocabulary.fit(read_meds(root), None, gap_days=(1, 7), age_years=())
        >>> vocabulary.names
        ('PAD', 'GAP//1-7', 'GAP//7+', 'A', 'B', 'GENDER//F')
        >>> vocabulary.sequences(read_meds(root)).tokens[0].tolist()
        [5, 3, 2, 4]
    """

    names: tuple[str, ...]
    edges: Mapping[str, NDArray[np.float64]]
    gap_days: tuple[int, ...] = _GAP_DAYS
    age_years: tuple[int, ...] = _AGE_YEARS

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def fit(
        cls,
        dataset: MedsDataset,
        split: str | None = "train",
        *,
        subjects: ArrayLike | None = None,
        include: str = "",
        exclude: str = "^MEDS_",
        n_bins: int = 20,
        tails: bool = False,
        min_values: int = 100,
        min_subjects: int = 1,
        gap_days: Sequence[int] = _GAP_DAYS,
        age_years: Sequence[int] = _AGE_YEARS,
    ) -> Vocabulary:
        """Choose codes and bins from the events of the training subjects.

        Args:
            dataset: Where the events are.
            split: The training split; None where `subjects` says it all.
            subjects: Only these subjects.
            include: Regular expression; only codes that match it somewhere have a token.
            exclude: Regular expression; codes that match it somewhere have none.
            n_bins: Most bins of a measured code; fewer where many values are equal, one for each value where
                there are no more than `n_bins` of them.
            tails: Cut the outermost bins again and again in half, down to the one or two most extreme values.
                Bins of equal share hide what is rare; with these, a patient with a value that hardly anybody
                has carries a token that hardly anybody carries.
            min_values: A code measured less often is not binned.
            min_subjects: A code of fewer subjects has no token.
            gap_days: See the class; empty for no gap tokens.
            age_years: See the class; empty for no age token.

        Returns:
            The vocabulary: PAD, ages, gaps, then codes in alphabetical order.

        Raises:
            DataError: No code is left.
        """
        code = pl.col("code")
        wanted = code != _BIRTH
        if include:
            wanted &= code.str.contains(include)
        if exclude:
            wanted &= ~code.str.contains(exclude)
        # Empty codes pass the filter so that they are refused and not lost.
        events = dataset.events(split, subjects=subjects).filter(wanted | code.is_null()).collect()
        _refuse_nulls(events, dataset.root)
        kept = (
            events.group_by("code")
            .agg(people=pl.col("subject_id").n_unique(), values=_MEASURED.sum(), rows=pl.len())
            .filter(pl.col("people") >= min_subjects)
            .sort("code")
        )
        if len(kept) == 0:
            raise DataError(
                f"none of the codes of {len(events):,} training events is left",
                "every sequence would be empty",
                "widen include=, exclude=, min_subjects= or the split",
            )
        binned = kept.filter(pl.col("values") >= max(min_values, 2))["code"].to_list()
        values = events.filter(_MEASURED & pl.col("code").is_in(binned)).select("code", "numeric_value")
        edges = {
            str(code): _edges(part["numeric_value"].to_numpy().astype(np.float64), n_bins, tails)
            for (code,), part in values.partition_by("code", as_dict=True).items()
        }
        ages, gaps = tuple(age_years), tuple(gap_days)
        names = ["PAD", *_bands("AGE", (0, *ages) if ages else ()), *_bands("GAP", gaps)]
        for code, count, rows in kept.select("code", "values", "rows").iter_rows():
            if code not in edges or count < rows:  # also what was once noted without a value
                names.append(code)
            if code in edges:
                names.extend(_bin_names(code, edges[code]))
        if len(set(names)) < len(names):
            raise DataError(
                "a code has the name of a bin, a gap or an age",
                "two meanings would share a token",
                "rename it, or leave it out with exclude=",
            )
        return cls(names=tuple(names), edges=edges, gap_days=gaps, age_years=ages)

    def sequences(
        self,
        dataset: MedsDataset,
        split: str | None = None,
        *,
        subjects: ArrayLike | None = None,
        min_events: int = 1,
        max_tokens: int | None = None,
    ) -> MedsSequences:
        """Turn the events of each subject into one sequence of tokens.

        Events whose code has no token are left out, as if they had not happened. Events of one time keep the
        order of the file.

        Args:
            dataset: Where the events are; they need not be sorted.
            split: Only the subjects of this split; None for all.
            subjects: Only these subjects.
            min_events: Subjects with fewer dated events are left out.
            max_tokens: Cut sequences after so many tokens.

        Returns:
            The sequences, by ascending subject id.

        Raises:
            DataError: A subject or a code is null.
        """
        number = {name: token for token, name in enumerate(self.names)}
        bins = {name for code, edges in self.edges.items() for name in _bin_names(code, edges)}
        codes = sorted((set(self.names[self._first_code :]) - bins) | set(self.edges))
        # Empty codes pass the filter so that they are refused and not lost.
        wanted = pl.col("code").is_in([*codes, _BIRTH]) | pl.col("code").is_null()
        events = dataset.events(split, subjects=subjects).filter(wanted).collect()
        _refuse_nulls(events, dataset.root)
        birth = events.filter(pl.col("code") == _BIRTH).group_by("subject_id").agg(birth=pl.col("time").min())
        events = events.filter(pl.col("code").is_in(codes))
        events = events.sort("subject_id", "time", nulls_last=False, maintain_order=True)
        events = events.with_columns(token=self._tokens(events, codes, number)).filter(pl.col("token") > 0)
        dated = pl.col("time").is_not_null()
        people = (
            events.group_by("subject_id")
            .agg(events=dated.sum(), first=pl.col("time").min())
            .filter(pl.col("events") >= min_events)
            .join(birth, on="subject_id", how="left")
            .sort("subject_id")
        )
        events = events.join(people, on="subject_id", how="semi", maintain_order="left")
        ids = people["subject_id"].to_numpy().astype(np.int64)
        tokens = _lay_out(
            np.searchsorted(ids, events["subject_id"].to_numpy()),
            events["token"].to_numpy(),
            self._gap_tokens(events),
            self._age_tokens((people["first"] - people["birth"]).dt.total_days()),
            max_tokens,
        )
        return MedsSequences(
            tokens=tokens, subject_ids=ids, events=people["events"].to_numpy().astype(np.int64)
        )

    @property
    def _first_code(self) -> int:
        return 1 + (len(self.age_years) + 1 if self.age_years else 0) + len(self.gap_days)

    def _tokens(self, events: pl.DataFrame, codes: list[str], number: Mapping[str, int]) -> NDArray[np.int64]:
        """Token of each event, 0 where there is none."""
        place = events["code"].replace_strict(codes, range(len(codes)), return_dtype=pl.Int64).to_numpy()
        plain = np.array([number.get(code, 0) for code in codes], dtype=np.int64)
        token = plain[place]
        value = events["numeric_value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        order = np.argsort(place, kind="stable")
        bounds = np.searchsorted(place[order], np.arange(len(codes) + 1))
        for i, code in enumerate(codes):  # over codes, not over events
            if code in self.edges:
                rows = order[bounds[i] : bounds[i + 1]]
                rows = rows[~np.isnan(value[rows])]
                lowest = number[_bin_names(code, self.edges[code])[0]]
                token[rows] = lowest + np.searchsorted(self.edges[code], value[rows], side="right")
        return np.asarray(token, dtype=np.int64)

    def _gap_tokens(self, events: pl.DataFrame) -> NDArray[np.int64]:
        """Token of the gap before each event; 0 for none: first events, static codes, short gaps."""
        time = events["time"].cast(pl.Int64).cast(pl.Float64).fill_null(np.nan).to_numpy()
        subject = events["subject_id"].to_numpy()
        days = np.diff(time, prepend=np.nan) / 86_400e6
        days[np.diff(subject, prepend=subject[:1]) != 0] = np.nan
        band = np.searchsorted(np.asarray(self.gap_days, dtype=np.float64), np.nan_to_num(days), side="right")
        lowest = self._first_code - len(self.gap_days)
        return np.asarray(np.where(band > 0, lowest + band - 1, 0), dtype=np.int64)

    def _age_tokens(self, days: pl.Series) -> NDArray[np.int64]:
        """Token of the age of each subject, 0 where the birth is not known."""
        age = days.cast(pl.Float64).fill_null(np.nan).to_numpy() / _YEAR_DAYS
        band = np.searchsorted(np.asarray(self.age_years, dtype=np.float64), age, side="right")
        known = ~np.isnan(age) & (len(self.age_years) > 0)
        return np.asarray(np.where(known, 1 + band, 0), dtype=np.int64)


_MEASURED = pl.col("numeric_value").is_not_null() & pl.col("numeric_value").is_not_nan()


def _edges(values: NDArray[np.float64], n_bins: int, tails: bool) -> NDArray[np.float64]:
    """Where a new bin begins: at quantiles, or at each value where there are few."""
    distinct = np.unique(values)
    if len(distinct) <= n_bins:
        return distinct[1:]
    share = np.arange(1, n_bins) / n_bins
    if tails:
        halvings = np.arange(1, max(int(np.log2(len(values) / n_bins)), 0) + 1)
        outer = 0.5**halvings / n_bins
        share = np.concatenate([share, outer, 1 - outer])
    edges = np.unique(np.quantile(values, share))
    return np.asarray(edges[edges > distinct[0]], dtype=np.float64)  # nothing lies below the smallest value


def _bin_names(code: str, edges: NDArray[np.float64]) -> list[str]:
    return [f"{code}//Q{number:02d}" for number in range(1, len(edges) + 2)]


def _bands(name: str, starts: Sequence[int]) -> list[str]:
    ends = [f"-{high}" for high in starts[1:]] + ["+"]
    return [f"{name}//{low}{end}" for low, end in zip(starts, ends, strict=False)]


def _lay_out(
    owner: NDArray[np.int64],
    token: NDArray[np.int64],
    gap: NDArray[np.int64],
    age: NDArray[np.int64],
    max_tokens: int | None,
) -> Ragged:
    """Place age, gap and event tokens of all subjects in one array.

    Args:
        owner: ``(E,)`` number of the subject of each event, ascending.
        token: ``(E,)``.
        gap: ``(E,)`` the token before it, 0 for none.
        age: ``(N,)`` the first token of each subject, 0 for none.
        max_tokens: Most tokens of one subject.
    """
    n = len(age)
    width = 1 + (gap > 0)
    end = np.cumsum(width)
    before = np.concatenate([[0], end])[np.searchsorted(owner, np.arange(n))]
    head = (age > 0).astype(np.int64)
    place = head[owner] + end - 1 - before[owner]  # of the event's own token within its sequence
    length = head + np.bincount(owner, width, minlength=n).astype(np.int64)
    length = length if max_tokens is None else np.minimum(length, max_tokens)
    start = np.concatenate([[0], np.cumsum(length)])
    values = np.zeros(start[-1], np.int32)
    first = (age > 0) & (length > 0)
    values[start[:-1][first]] = age[first]
    kept = place < length[owner]
    values[start[owner[kept]] + place[kept]] = token[kept]
    kept = (gap > 0) & (place - 1 < length[owner])
    values[start[owner[kept]] + place[kept] - 1] = gap[kept]
    return Ragged.from_lengths(values, length)
