"""The signals that the ranking benchmarks compare, each from what one training run shows of itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from benchmarks.ranking.score import Tally, lt_iqr, mean_idf
from benchmarks.ranking.truth import Pool
from memguard.records.content import Ragged, RecordContent
from memguard.records.surrogate import ContentFeatures, content_features, memorization_score

__all__ = [
    "Look",
    "SequenceStudy",
    "TabularStudy",
    "best_reference",
    "look_at",
    "predicted",
    "sequence_tables",
    "tabular_tables",
]


@dataclass(frozen=True, kw_only=True)
class Look:
    """A moment at which a target model is ranked, and the truth it is held against.

    Attributes:
        title: of the table.
        epoch: epochs done; 0 for each target's own best held-out epoch, moved to an evaluated one.
        truth: epoch of the truth; 0 for the same as ``epoch``.
    """

    title: str
    epoch: int
    truth: int


@dataclass(frozen=True, kw_only=True)
class SequenceStudy:
    """A trained next-code pool with all that scoring needs."""

    codes: Ragged
    patient: np.ndarray
    held_out: Ragged
    models: Pool
    reference: np.ndarray


def predicted(codes: Ragged) -> Ragged:
    """The codes that the model predicts, which is what a monitor sees as the record: all but the first."""
    keep = np.ones(len(codes.values), dtype=bool)
    keep[codes.offsets[:-1]] = False
    return Ragged.from_lengths(codes.values[keep], codes.lengths - 1)


def best_reference(run: dict[str, np.ndarray]) -> np.ndarray:
    """Losses of the reference model at its own best held-out epoch."""
    best = int(run["held_out"].mean(1).argmin()) + 1
    return run["every"][int(np.abs(run["at"] - best).argmin())].astype(np.float64)


def look_at(models: Pool, k: int, look: Look) -> tuple[int, int]:
    """Epoch of the look for target ``k`` and epoch of the truth."""
    if look.epoch:
        return look.epoch, look.truth or look.epoch
    best = int(models.held_out[k].mean(1).argmin()) + 1
    epoch = int(models.at[np.abs(models.at - best).argmin()])
    return epoch, epoch


def sequence_tables(
    study: SequenceStudy, looks: list[Look], subsets: dict[str, np.ndarray], n_targets: int
) -> tuple[dict[tuple[str, str], Tally], list[str]]:
    """Score every signal on every target at every look.

    Args:
        study: the pool.
        looks: when.
        subsets: name and mask ``(N,)`` of the pool records to rank among.
        n_targets: half-models that take the part of the target, the first ones.

    Returns:
        One tally for each look and subset, and lines that tell the fit on held-out patients.
    """
    models, n = study.models, len(study.codes)
    content, outside = predicted(study.codes), RecordContent.from_codes(predicted(study.held_out))
    tallies: dict[tuple[str, str], Tally] = {}
    fits: dict[str, list[tuple[float, float, float]]] = {}
    for k in range(n_targets):
        rows = np.flatnonzero(models.inside[k])
        features = content_features(
            RecordContent.from_codes(content.take(rows)), study.patient[rows], outside
        )
        idf = mean_idf(content.take(rows))
        for look in looks:
            epoch, truth_epoch = look_at(models, k, look)
            truth = models.truth(truth_epoch, without=k)[rows]
            signals, fit = _signals(study, k, rows, features, epoch)
            signals["rarity (mean idf)"] = idf
            fits.setdefault(look.title, []).append(fit)
            for name, mask in subsets.items():
                tally = tallies.setdefault((look.title, name), Tally())
                for signal, score in signals.items():
                    tally.add(signal, score[mask[rows]], truth[mask[rows]])
    lines = [
        f"- {title}: fit on held-out patients r = {np.mean(values, 0)[0]:.2f} (n-gram only "
        f"{np.mean(values, 0)[1]:.2f}, with one reference {np.mean(values, 0)[2]:.2f})"
        for title, values in fits.items()
    ]
    assert study.reference.shape == (n + len(study.held_out),)
    return tallies, lines


def _signals(
    study: SequenceStudy, k: int, rows: np.ndarray, features: ContentFeatures, epoch: int
) -> tuple[dict[str, np.ndarray], tuple[float, float, float]]:
    models, n = study.models, len(study.codes)
    trace, outer = models.traces[k][:epoch], models.held_out[k][:epoch]
    now = trace[-1]
    best = int(outer.mean(1).argmin())
    reference = (study.reference[:n][rows], study.reference[n:])
    common = {"loss": now, "held_out_loss": outer[-1], "patient": study.patient[rows]}
    ours = memorization_score(features, traces=trace, held_out_traces=outer, **common)
    evaluated = {**common, "loss": models.eval_loss(k, epoch)[rows], "loss_mode": "eval"}
    second = memorization_score(features, traces=trace, held_out_traces=outer, **evaluated)
    with_one = memorization_score(
        features, traces=trace, held_out_traces=outer, reference=reference, **common
    )
    alone = memorization_score(features, traces=trace[:0], held_out_traces=outer[:0], **common)
    weight = ours.weight
    signals = {
        "**counterfactual score**, no extra model": ours.score,
        "the same from eval-mode losses": second.score,
        "n-gram surrogate alone": alone.score,
        "LT-IQR": lt_iqr(trace),
        "best-epoch loss - loss, train-time": trace[best] - now,
        "one early-stopped reference - loss": reference[0] - weight * now,
        "**counterfactual score with one reference**": with_one.score,
    }
    return signals, (ours.fit_r, alone.fit_r, with_one.fit_r)


@dataclass(frozen=True, kw_only=True)
class TabularStudy:
    """A trained pool of classifiers with all that scoring needs."""

    x: np.ndarray
    y: np.ndarray
    patient: np.ndarray
    x_out: np.ndarray
    y_out: np.ndarray
    models: Pool
    reference: np.ndarray


def tabular_tables(
    study: TabularStudy, looks: list[Look], n_targets: int, clean: np.ndarray | None = None
) -> tuple[dict[str, Tally], list[str]]:
    """As :func:`sequence_tables`, for classifiers; the truth is in probability of the record's label.

    Args:
        study: the pool.
        looks: when.
        n_targets: half-models that take the part of the target, the first ones.
        clean: mask of pool records with a true label, ranked apart as well.
    """
    models, n = study.models, len(study.x)
    tallies: dict[str, Tally] = {}
    fits: dict[str, list[float]] = {}
    for k in range(n_targets):
        rows = np.flatnonzero(models.inside[k])
        features = content_features(
            RecordContent.from_features(study.x[rows], study.y[rows]),
            study.patient[rows],
            RecordContent.from_features(study.x_out, study.y_out),
        )
        reference = (study.reference[:n][rows], study.reference[n:])
        for look in looks:
            epoch, truth_epoch = look_at(models, k, look)
            truth = models.truth(truth_epoch, without=k, probability=True)[rows]
            trace, outer = models.traces[k][:epoch], models.held_out[k][:epoch]
            common = {
                "traces": trace,
                "held_out_traces": outer,
                "loss": trace[-1],
                "held_out_loss": outer[-1],
            }
            ours = memorization_score(features, **common)
            with_one = memorization_score(features, reference=reference, **common)
            p, ridge = np.exp(-trace[-1]), features.train[:, features.names.index("ridge_p")]
            spread = lt_iqr(trace)
            signals = {
                "**counterfactual score**, no extra model": ours.score,
                "ridge p-gap": p - ridge,
                "LT-IQR": spread,
                "rank mean of ridge p-gap and LT-IQR": rankdata(p - ridge) + rankdata(spread),
                "one early-stopped reference, p-gap": p - np.exp(-reference[0]),
                "**counterfactual score with one reference**": with_one.score,
            }
            fits.setdefault(look.title, []).append(ours.fit_r)
            for name, mask in (("", np.ones(n, dtype=bool)), (", true labels only", clean)):
                if mask is not None:
                    tally = tallies.setdefault(look.title + name, Tally())
                    for signal, score in signals.items():
                        tally.add(signal, score[mask[rows]], truth[mask[rows]])
    return tallies, [f"- {t}: fit on held-out patients r = {np.mean(v):.2f}" for t, v in fits.items()]
