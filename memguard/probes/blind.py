"""The blind baseline: can members be told from held-out patients without asking the model at all?

A membership number means something only if the two groups differ in nothing but membership. Here a classifier
sees only the records. If it can tell them apart (another period, another site, another selection), a
membership attack may be reading that difference, and every membership number needs the warning.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from memguard.attacks import Estimate, auc
from memguard.errors import HeldOutError, MemguardError
from memguard.records.content import Ragged, RecordContent

__all__ = ["blind_baseline"]

Floats = NDArray[np.float64]

_COLUMNS = 4096  # unigrams in the first half (hashed if the vocabulary is larger), bigrams in the second
_TOKENS = 500_000  # codes read at most; records that are longer than their share keep their beginning
_STEPS = 12  # conjugate-gradient steps
_PENALTY = 0.02  # ridge penalty, as a share of the number of records; columns have unit variance


def blind_baseline(
    content_train: RecordContent,
    content_held_out: RecordContent,
    patient_train: ArrayLike,
    patient_held_out: ArrayLike,
    *,
    folds: int = 5,
    max_records: int = 4000,
    seed: int = 0,
) -> Estimate:
    """Cross-validated AUC of a ridge classifier that sees the records and not the model.

    Sequences are described by which codes and which pairs of neighbouring codes occur (hashed to 4,096
    columns) and by their length; feature vectors by the features, their squares, which are missing, and the
    label. Whole patients are drawn at random, in equal numbers of records per class as far as there are, and
    whole patients are left out in each fold, so that no patient is recognised.

    Guarantees:
        An interval above .5 shows that the groups differ. An interval that covers .5 shows only that this
        classifier, with so many patients, did not see a difference. Where the split is random, the interval
        lies above .5 in about 2.5 % of the splits. For that its standard error is doubled in variance: each
        pair of patients meets twice, once in training and once in testing, so that the folds repeat one
        another's chance differences (a degenerate U-statistic); without it the share was 7 to 11 %.

    Args:
        content_train: Contents of the members' records.
        content_held_out: Contents of the held-out patients' records, of the same kind.
        patient_train: Patient of each member record.
        patient_held_out: Patient of each held-out record; no patient may be on both sides.
        folds: Number of parts, at least 2; each class needs as many patients.
        max_records: Records used at most, both classes together.
        seed: Seed of the draw of patients and of the folds.

    Returns:
        AUC over records, clustered by patient; above .5 = members can be told apart without the model.

    Raises:
        HeldOutError: if a side has fewer patients with observed records than folds.
        PatientOverlapError: if a patient is on both sides.
        MemguardError: for contents of different kinds or widths, or ids of the wrong length.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> old, new = (RecordContent.from_features(rng.normal(m, size=(200, 3))) for m in (0.0, 1.0))
        >>> blind_baseline(old, new, np.arange(200), np.arange(200, 400)).low > 0.8
        True
    """
    if content_train.kind != content_held_out.kind:
        raise MemguardError(
            f"{content_train.kind} for members and {content_held_out.kind} for held-out patients",
            "they would be told apart by their form",
            "pass contents of one kind",
        )
    if folds < 2:
        raise MemguardError(f"folds = {folds}", "a classifier knows its own records", "pass folds=5")
    rng = np.random.default_rng(seed)
    sides, contents, groups = (True, False), [], []
    for side, content, ids in zip(
        sides, (content_train, content_held_out), (patient_train, patient_held_out), strict=True
    ):
        patient = np.asarray(ids)
        if patient.shape != (len(content),):
            raise MemguardError(
                f"{patient.shape} patient ids for {len(content)} records",
                "records would be given to the wrong patient",
                "pass one id per record",
            )
        rows = _draw(patient, content.observed, max_records // 2, rng)
        if len(np.unique(patient[rows])) < folds:
            raise HeldOutError(
                f"{len(np.unique(patient[rows]))} patients with observed records among the "
                + ("members" if side else "held-out patients"),
                f"a blind baseline in {folds} folds needs {folds}",
                "hold out more patients, or wait until their records have been seen",
            )
        contents.append(content.take(rows))
        groups.append(patient[rows])
    member = np.repeat(sides, [len(g) for g in groups])
    _, code = np.unique(np.concatenate(groups), return_inverse=True)
    part = _parts(code, member, folds, rng)
    scores = _out_of_fold(_describe(contents[0], contents[1]), member, part, folds)
    estimate = auc(scores, member, groups=code)
    low, high = _widen(estimate)
    return Estimate(
        value=estimate.value,
        low=low,
        high=high,
        n=estimate.n,
        method=f"blind ridge on {content_train.kind}, {folds} folds by patient",
    )


def _widen(estimate: Estimate) -> tuple[float, float]:
    """Interval with twice the variance, on the logit scale."""

    def logit(share: float) -> float:
        inner = min(max(share, 1e-9), 1.0 - 1e-9)
        return math.log(inner / (1.0 - inner))

    centre, factor = logit(estimate.value), math.sqrt(2.0)
    ends = (centre + factor * (logit(end) - centre) for end in (estimate.low, estimate.high))
    low, high = (1.0 / (1.0 + math.exp(-end)) for end in ends)
    return (low if estimate.low > 0.0 else 0.0), (high if estimate.high < 1.0 else 1.0)


def _draw(
    patient: NDArray[np.generic], observed: NDArray[np.bool_], most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of whole patients in random order, cut at ``most`` rows."""
    rows = np.flatnonzero(observed)
    _, code = np.unique(patient[rows], return_inverse=True)
    place = rng.permutation(int(code.max()) + 1 if len(code) else 0)[code]
    return np.sort(rows[np.argsort(place, kind="stable")[:most]])


def _parts(
    code: NDArray[np.int64], member: NDArray[np.bool_], folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Fold of each record: patients spread evenly, each class for itself."""
    fold = np.empty(int(code.max()) + 1, dtype=np.int64)
    for side in (True, False):
        patients = np.unique(code[member == side])
        fold[rng.permutation(patients)] = np.arange(len(patients)) % folds
    return fold[code]


def _describe(inside: RecordContent, outside: RecordContent) -> sparse.csr_array:
    """Columns of unit variance for the records of both sides, sparse where they are sparse."""
    if inside.codes is not None and outside.codes is not None:
        return _describe_codes(Ragged.concat([inside.codes, outside.codes]))
    if inside.x is None or outside.x is None:
        raise MemguardError(
            "contents without codes and without features",
            "there is nothing to compare",
            "pass one of the two",
        )
    if inside.x.shape[1] != outside.x.shape[1]:
        raise MemguardError(
            f"{inside.x.shape[1]} features for members and {outside.x.shape[1]} for held-out patients",
            "they would be told apart by their form",
            "pass the same features for both",
        )
    labels = None if inside.y is None or outside.y is None else np.concatenate([inside.y, outside.y])
    return _describe_features(np.concatenate([inside.x, outside.x]), labels)


def _describe_codes(codes: Ragged) -> sparse.csr_array:
    n, half = len(codes), _COLUMNS // 2
    lengths = codes.lengths
    keep = np.arange(len(codes.values)) - np.repeat(codes.offsets[:-1], lengths) < max(16, _TOKENS // n)
    row, value = codes.rows[keep], codes.values[keep].astype(np.uint64)
    mixed = value if len(value) == 0 or value.max() < half else _mix(value)
    pair = np.flatnonzero(row[1:] == row[:-1])
    bigram = _mix(_mix(value[pair]) ^ (value[pair + 1] * np.uint64(0x9E3779B97F4A7C15)))
    column = np.concatenate([mixed % np.uint64(half), half + bigram % np.uint64(half)]).astype(np.int64)
    cell = np.unique(np.concatenate([row, row[pair]]) * _COLUMNS + column)
    present = sparse.csr_array((np.ones(len(cell)), (cell // _COLUMNS, cell % _COLUMNS)), shape=(n, _COLUMNS))
    share = np.asarray(present.sum(axis=0)).ravel() / n
    # rare columns are held at the weight of a column in 1 % of the records: they say little out of fold
    scale = 1.0 / np.sqrt(np.maximum(share * (1.0 - share), 0.01))
    length = np.log1p(lengths.astype(np.float64))[:, None]
    scaled = present @ sparse.diags_array(scale)
    return sparse.csr_array(sparse.hstack([scaled, sparse.csr_array(_standardise(length))]))


def _describe_features(x: NDArray[np.float32], labels: NDArray[np.generic] | None) -> sparse.csr_array:
    wide = x.shape[1]
    if wide > _COLUMNS // 2:
        # columns folded onto fewer with a random sign: sums of features instead of features
        rng = np.random.default_rng(0)
        fold = sparse.csr_array(
            (rng.choice([-1.0, 1.0], wide), (np.arange(wide), rng.integers(0, _COLUMNS // 4, wide))),
            shape=(wide, _COLUMNS // 4),
        )
        x = np.asarray(np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) @ fold)
    table = x.astype(np.float64)
    missing = ~np.isfinite(table)
    table[missing] = np.nan
    with np.errstate(invalid="ignore"):
        centre = np.nansum(table, axis=0) / np.maximum((~missing).sum(axis=0), 1)
    table = _standardise(np.where(missing, centre, table))
    blocks = [table, _standardise(table**2)]
    gaps = missing.any(axis=0)
    if gaps.any():
        blocks.append(_standardise(missing[:, gaps].astype(np.float64)))
    if labels is not None and labels.dtype.kind in "biuf":
        flat = labels.reshape(len(labels), -1)[:, :64].astype(np.float64)
        blocks.append(_standardise(np.where(np.isfinite(flat), flat, 0.0)))
    return sparse.csr_array(np.concatenate(blocks, axis=1))


def _standardise(table: Floats) -> Floats:
    """Columns with mean 0 and variance 1, cut at 5 standard deviations; constant ones become 0."""
    spread = table.std(axis=0)
    centred = (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    cut: Floats = np.clip(centred, -5.0, 5.0)
    return cut


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A fixed 64-bit mixing step (splitmix64), so that hashing needs no loop and no seed."""
    z = value + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return z ^ (z >> np.uint64(27))


def _out_of_fold(
    x: sparse.csr_array, member: NDArray[np.bool_], part: NDArray[np.int64], folds: int
) -> Floats:
    """Ridge scores of every record by the fold that left its patient out; all folds solved at once.

    Early-stopped conjugate gradients on the normal equations; the intercept is not penalised away but
    removed by centring the scores of each fold.
    """
    n = len(member)
    kept = (part[:, None] != np.arange(folds)).astype(np.float64)
    # classes weigh the same in every fold
    weight = kept * np.where(member[:, None], 0.5 / kept[member].sum(axis=0), 0.5 / kept[~member].sum(axis=0))
    target = np.where(member, 1.0, -1.0)[:, None]
    mean = x.T @ weight  # column means under the weights: centring without losing sparsity

    def apply(w: Floats) -> Floats:
        fitted = weight * (x @ w)
        return np.asarray(x.T @ fitted - mean * (mean * w).sum(axis=0) + _PENALTY * w)

    residual = np.asarray(x.T @ (weight * target))
    solution, direction = np.zeros_like(residual), residual.copy()
    norm = (residual**2).sum(axis=0)
    for _ in range(_STEPS):
        image = apply(direction)
        step = norm / np.maximum((direction * image).sum(axis=0), 1e-300)
        solution += step * direction
        residual -= step * image
        fresh = (residual**2).sum(axis=0)
        direction = residual + fresh / np.maximum(norm, 1e-300) * direction
        norm = fresh
    own = np.asarray(x @ solution - (mean * solution).sum(axis=0))
    return np.asarray(own[np.arange(n), part], dtype=np.float64)
