"""What a watched run found, as dataclasses: the truth behind the JSON, the page, the table, the figures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from memguard.attacks.estimate import Estimate
from memguard.errors import DataError
from memguard.report.text import MIN_CELL

__all__ = ["SCHEMA", "CurvePoint", "WatchReport", "plain"]

SCHEMA = "memguard.watch/1"


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Everything that one look at the model measured.

    Attributes:
        epoch: Epochs of training finished when this was measured; 0 before the first, a fraction inside one.
        step: Optimizer steps taken by then.
        train_loss: Mean loss of the training steps of that epoch, in train mode while the weights move.
        held_out_loss: Mean loss of the held-out patients in eval mode (``WatchReport.loss_unit``).
        member_loss: The same for the member sample, in eval mode: comparable with ``held_out_loss``.
        auc: Membership AUC, patient-clustered interval.
        tpr: False-positive rate -> true-positive rate, only at rates that the held-out patients support.
        loss_gap: Held-out minus member loss.
        coverage: Share of the training records whose loss was seen at least once, in [0, 1].
        surrogate_fit: Cross-validated correlation of the expected with the actual held-out losses.
        flagged_patients: Patients flagged as memorized at ``WatchReport.flag_rate``; ``None`` when refused.
        memorized_share: Lower-biased estimate of the share of members that are memorized at all.
        blind_auc: AUC of a classifier that sees the records and not the model: .5 if the split is fair.
        refused: Why nobody was ranked at this look, in words; empty where somebody was.
        probe_seconds: Wall time that this look cost.
        train_seconds: Wall time of the training since the look before.
        probes: Probe of the audit -> number -> estimate, of those that were asked at this look.

    Example:
        >>> point = CurvePoint(epoch=3, step=300, train_loss=2.1, held_out_loss=2.4)
        >>> point.auc is None, point.tpr
        (True, {})
    """

    epoch: float
    step: int
    train_loss: float | None = None
    held_out_loss: float | None = None
    member_loss: float | None = None
    auc: Estimate | None = None
    tpr: Mapping[float, Estimate] = field(default_factory=dict)
    loss_gap: Estimate | None = None
    coverage: float | None = None
    surrogate_fit: float | None = None
    flagged_patients: int | None = None
    memorized_share: Estimate | None = None
    blind_auc: Estimate | None = None
    refused: str = ""
    probe_seconds: float = 0.0
    train_seconds: float | None = None
    probes: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WatchReport:
    """A watched run: its curve, who was watched, and what a reader needs to judge both.

    Attributes:
        version: Version of memguard.
        created: ISO 8601 time in UTC.
        unit: What is counted. With ``"record"`` nothing here is about patients, and every view says so.
        patients_source: Where the record -> patient map came from.
        n_members: Training patients (or records) watched.
        n_held_out: Held-out patients (or records) they are compared with.
        flag_rate: False-discovery rate of the flags.
        curve: The looks, in order of time.
        best_epoch: Epoch of the lowest held-out loss; taken from the curve when left out.
        flagged_patients: Flagged at the last look; taken from the curve when left out.
        flagged_identifiable: Those of them that are also identifiable.
        n_ranked: Patients that have a score, 0 where nobody was ranked; ``n_members`` when left out.
        identifiable_rule: What "identifiable" means here, as the end of "identifiable means: ...".
        p_method: ``"empirical"`` or ``"tail"``: where the smallest p-values come from.
        p_resolution: Smallest p-value that the held-out patients can give by counting alone.
        loss_unit: ``"nats/token"`` or ``"nats/record"``.
        score: One line that says which score the flags rest on.
        notes: Warnings and caveats, in words, most important first.
        versions: Library -> version.
        seeds: Name -> seed.
        commands: Command lines that made this run.
        model: One line about the model.
        dataset: One line or a fingerprint.
        roc: False- and true-positive rates at the last look, thinned by `memguard.report.table.thin_roc`;
            empty when not kept.
        hashed_ids: Whether the ids in the flags are keyed hashes.
        min_cell: Counts of people from 1 to this minus one are shown as "<min_cell".
        privacy: The statement of a training with differential privacy, as text; empty for one without.

    Example:
        >>> report = WatchReport(version="0.1.0", created="2026-01-01T00:00:00Z", unit="patient",
        ...                      patients_source="dataset.index", n_members=4000, n_held_out=1200,
        ...                      flag_rate=.1, curve=[CurvePoint(epoch=1, step=9, held_out_loss=2.4)])
        >>> report.best_epoch, WatchReport.from_json(report.to_json()) == report
        (1, True)
    """

    version: str
    created: str
    unit: Literal["patient", "record"]
    patients_source: str
    n_members: int
    n_held_out: int
    flag_rate: float
    curve: Sequence[CurvePoint]
    best_epoch: float | None = None
    flagged_patients: int | None = None
    flagged_identifiable: int | None = None
    n_ranked: int | None = None
    identifiable_rule: str = (
        "carries a code that at most 3 patients carry, or is alone in its equivalence class"
    )
    p_method: str | None = None
    p_resolution: float | None = None
    loss_unit: str = "nats/token"
    score: str = ""
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    commands: Sequence[str] = ()
    model: str = ""
    dataset: str = ""
    roc: Sequence[tuple[float, float]] = ()
    hashed_ids: bool = True
    min_cell: int = MIN_CELL
    privacy: str = ""

    def __post_init__(self) -> None:
        fixed: dict[str, Any] = {
            "curve": sorted(self.curve, key=lambda point: (point.epoch, point.step)),
            "notes": list(self.notes),
            "commands": list(self.commands),
            "roc": [(float(fpr), float(tpr)) for fpr, tpr in self.roc],
        }
        if self.best_epoch is None:
            fixed["best_epoch"] = _best_epoch(fixed["curve"])
        if self.flagged_patients is None and fixed["curve"]:
            fixed["flagged_patients"] = fixed["curve"][-1].flagged_patients
        if self.n_ranked is None:
            fixed["n_ranked"] = self.n_members
        for name, value in fixed.items():
            object.__setattr__(self, name, value)

    @property
    def last(self) -> CurvePoint | None:
        """The last look that has a membership AUC, or ``None``."""
        return next((point for point in reversed(self.curve) if _finite(point.auc)), None)

    @property
    def best(self) -> CurvePoint | None:
        """The look at the best held-out epoch, or ``None``."""
        return next((point for point in self.curve if point.epoch == self.best_epoch), None)

    @property
    def first_above_chance(self) -> CurvePoint | None:
        """The first look from which on every AUC interval lies above .5, or ``None``.

        The intervals are pointwise: with many looks, a single one may leave .5 by chance; this asks that
        all later ones do too.
        """
        first = None
        for point in reversed(self.curve):
            if point.auc is None or not _finite(point.auc):
                continue
            if not point.auc.low > 0.5:
                break
            first = point
        return first

    def verdict(self) -> str:
        """The finding in one or two sentences; see `memguard.report.verdict.verdict`."""
        from memguard.report.verdict import verdict  # that module reads this one

        return verdict(self).text

    def to_json(self) -> str:
        """The report as JSON text; numbers that are not finite become ``null``."""
        body = {"schema": SCHEMA} | {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> WatchReport:
        """Read what `to_json` wrote. Keys that this version does not know are left out.

        Raises:
            DataError: The text is no JSON, has another schema, or lacks a needed key.
        """
        try:
            body = json.loads(text)
            if not isinstance(body, dict) or body.get("schema") != SCHEMA:
                seen = body.get("schema") if isinstance(body, dict) else type(body).__name__
                raise DataError(
                    f"a report with schema {seen!r}, and this version reads {SCHEMA!r}",
                    "fields could be taken for something else",
                    "read it with the memguard version named in the file",
                )
            known = {f.name for f in dataclasses.fields(cls)}
            values = {name: value for name, value in body.items() if name in known}
            values["curve"] = [_point(point) for point in body["curve"]]
            values["roc"] = [tuple(pair) for pair in body.get("roc", ())]
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"a report that cannot be read ({error!r})",
                "its numbers may be cut off",
                "write it again with WatchReport.to_json",
            ) from error


def _finite(value: Estimate | None) -> bool:
    return value is not None and math.isfinite(value.value)


def _best_epoch(curve: Sequence[CurvePoint]) -> float | None:
    seen = [p for p in curve if p.held_out_loss is not None and math.isfinite(p.held_out_loss)]
    return min(seen, key=lambda p: (p.held_out_loss, p.epoch)).epoch if seen else None


def plain(value: Any) -> Any:
    """Primitives that JSON has: numpy scalars unwrapped, numbers that are not finite to ``None``.

    Args:
        value: A dataclass, a mapping, a sequence or a primitive.

    Example:
        >>> plain({1: (float("nan"), 2)})
        {'1': [None, 2]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _point(values: Mapping[str, Any]) -> CurvePoint:
    known = {f.name for f in dataclasses.fields(CurvePoint)}
    kept = {name: value for name, value in values.items() if name in known}
    for name in ("auc", "loss_gap", "memorized_share", "blind_auc"):
        kept[name] = _estimate(kept.get(name))
    kept["tpr"] = {float(fpr): _estimate(value) for fpr, value in kept.get("tpr", {}).items()}
    kept["probes"] = {
        probe: {name: _estimate(value) for name, value in numbers.items()}
        for probe, numbers in kept.get("probes", {}).items()
    }
    return CurvePoint(**kept)


def _estimate(values: Mapping[str, Any] | None) -> Estimate | None:
    if values is None:
        return None
    numbers = {name: math.nan if values[name] is None else values[name] for name in ("value", "low", "high")}
    return Estimate(**{**values, **numbers})
