"""Both sides of an audit, read once: whose the records are, what they hold, and what the model loses on each."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memguard.auditing.live import LiveRun, fails_on
from memguard.capture.content import batch_content
from memguard.capture.fetch import Fetched
from memguard.capture.ids import entry_of
from memguard.capture.sides import batch_key, check_sides, two_sides
from memguard.errors import DataError, MemguardError, MemguardWarning
from memguard.records.content import ContentStore, Ragged, RecordContent, in_common
from memguard.records.patients import PatientMap
from memguard.records.surrogate import MIN_HELD_OUT

__all__ = ["Losses", "Sides", "joined", "losses_at", "losses_of", "read_sides"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_AT_ONCE = 2048  # records fetched together; a whole data set may not fit into memory twice


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What one model loses on the N + M records.

    Attributes:
        loss: ``(N + M,)``, NaN for a record without a predicted token.
        tokens: ``(N + M,)`` predicted tokens.
        unit: Of the loss.
        route: How it was found.
    """

    loss: Floats
    tokens: Ints
    unit: str
    route: str


@dataclass(frozen=True, kw_only=True)
class Sides:
    """N members and M held-out records.

    Attributes:
        members: Record -> patient.
        held_out: Record -> patient.
        content: Of all N + M.
        target: Losses of the audited model.
        unread: What could not be read, in words.
        at: ``(N,)`` positions of the members in the training data set; all of it where not given.
        n_training: Records in the training data set; N where not given.
    """

    members: PatientMap
    held_out: PatientMap
    content: RecordContent
    target: Losses
    unread: tuple[str, ...] = ()
    at: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    n_training: int = -1

    def __post_init__(self) -> None:
        if self.n_training < 0:
            object.__setattr__(self, "at", np.arange(len(self.members)))
            object.__setattr__(self, "n_training", len(self.members))

    @property
    def member(self) -> NDArray[np.bool_]:
        """``(N + M,)`` which records the model was trained on."""
        return np.arange(len(self.content)) < len(self.members)

    @property
    def both(self) -> Ints:
        """``(N + M,)`` positions of all records where the two data sets lie one after the other."""
        return np.concatenate([self.at, self.n_training + np.arange(len(self.held_out))])

    def own(self, values: NDArray[Any]) -> NDArray[Any]:
        """Of values for all records of both data sets, those of the N + M; other values as they are."""
        whole = self.n_training + len(self.held_out)
        return values[self.both] if values.shape[:1] == (whole,) and whole != len(self.content) else values

    def without(self, rows: Ints) -> Sides:
        """The same without some of the members.

        Args:
            rows: Positions in the training data set.
        """
        kept = np.flatnonzero(~np.isin(self.at, rows))
        if len(kept) == len(self.members):
            return self
        some = np.concatenate([kept, np.arange(len(self.members), len(self.content))])
        return replace(
            self,
            members=self.members.take(kept),
            content=self.content.take(some),
            target=replace(self.target, loss=self.target.loss[some], tokens=self.target.tokens[some]),
            at=self.at[kept],
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of them: who counts as a patient, how few there are, what could not be read."""
        return (*_caveats(self.members, self.held_out), *self.unread)

    @property
    def patient(self) -> Ints:
        """``(N + M,)`` codes of patients, numbered through."""
        return np.concatenate([self.members.code, self.held_out.code + self.members.n_patients])

    @property
    def ids(self) -> list[Any]:
        """Id of each code of `patient`."""
        return [*self.members.ids.tolist(), *self.held_out.ids.tolist()]


def read_sides(run: LiveRun, *, strict: bool = False) -> Sides:
    """Read every record of both sides once, with the loss of the run's module.

    Args:
        run: Under way.
        strict: Whether to refuse fewer than 20 held-out patients.

    Raises:
        MemguardError: If records, patients or losses cannot be told.
    """
    with warnings.catch_warnings():
        # What the monitor warns of here is about ranking while training; notes say what an audit makes of it.
        warnings.simplefilter("ignore", MemguardWarning)
        members, held_out = two_sides(run.capture, run.source, run.record_to_patient, strict=strict)
    stores = ContentStore(len(members)), ContentStore(len(held_out))
    key, notes = batch_key(run.record_to_patient), []
    ids: list[list[tuple[Ints, list[Any]]]] = [[], []]
    found: list[list[tuple[Ints, Any]]] = [[], []]
    for side, windows in _windows(run, len(members), len(held_out)):
        try:
            captured = run.capture.evaluate(windows, dataloader_idx=_loader(run, side))
        except MemguardError:
            raise
        except Exception as error:
            raise fails_on(f"some {'held-out' if side else 'training'} records", error) from error
        for batch, positions, one in zip(windows, windows.positions, captured, strict=True):
            found[side].append((positions, one))
            if key is not None:
                ids[side].append((positions, _listed(entry_of(batch, key), key)))
            try:
                stores[side].add(positions, **batch_content(batch, one, names=run.capture.names))
            except MemguardError as error:
                notes.append(f"The contents of some records could not be read: {error}")
    if key is not None:
        members, held_out = (
            _named(pairs, n, key) for pairs, n in zip(ids, (len(members), len(held_out)), strict=True)
        )
        check_sides(members, held_out, strict=strict)
    return Sides(
        members=members,
        held_out=held_out,
        content=joined(stores[0].content(), stores[1].content()),
        target=_losses(found, len(members), len(held_out)),
        unread=tuple(dict.fromkeys(notes)),
    )


def _caveats(members: PatientMap, held_out: PatientMap) -> list[str]:
    notes = []
    if "record" in (members.unit, held_out.unit):
        notes.append(
            "No patient ids were found: each record counts as a patient of its own, and nobody can check that no "
            "patient is on both sides."
        )
    fewest = min(members.n_patients, held_out.n_patients)
    if fewest < MIN_HELD_OUT:
        which = "never-trained" if fewest == held_out.n_patients else "training"
        notes.append(
            f"Only {fewest} {which} {held_out.unit}s: intervals are wide, low false-positive rates cannot be shown, "
            "and a leak of a few patients may stay unseen."
        )
    return notes


def losses_of(run: LiveRun, module: pl.LightningModule, sides: Sides) -> Losses:
    """What another module of the same kind loses on all records, measured in the same way."""
    found: list[list[tuple[Ints, Any]]] = [[], []]
    with _attached(run, module):
        for side, windows in _windows(run, sides.n_training, len(sides.held_out)):
            captured = run.capture.evaluate(windows, dataloader_idx=_loader(run, side), module=module)
            found[side] += zip(windows.positions, captured, strict=True)
    read = _losses(found, sides.n_training, len(sides.held_out))
    return replace(read, loss=sides.own(read.loss), tokens=sides.own(read.tokens))


def losses_at(run: LiveRun, module: pl.LightningModule, rows: Ints, sides: Sides) -> Floats:
    """The same at some of the N + M records, members first: ``(n,)``, NaN for one without a predicted token."""
    rows, n_members = sides.both[np.asarray(rows)], sides.n_training
    out = np.full(rows.shape, np.nan)
    with _attached(run, module):
        for side, inside in enumerate((rows < n_members, rows >= n_members)):
            if not inside.any():
                continue
            at = rows[inside] - side * n_members
            windows = run.source.windows(at) if side else run.capture.fetch("train", at)
            captured = run.capture.evaluate(windows, dataloader_idx=_loader(run, side), module=module)
            where = np.flatnonzero(inside)
            order = {int(position): int(place) for position, place in zip(at, where, strict=True)}
            for positions, one in zip(windows.positions, captured, strict=True):
                loss = one.loss.detach().double().cpu().numpy()
                loss[one.tokens.detach().cpu().numpy() == 0] = np.nan
                out[[order[int(position)] for position in positions]] = loss
    return out


@contextlib.contextmanager
def _attached(run: LiveRun, module: pl.LightningModule) -> Iterator[None]:
    """A step may ask its module for the Trainer; training goes on as it was afterwards."""
    before, mode = module._trainer, module.training
    module.to(run.module.device).eval()
    module._trainer = run.trainer
    try:
        yield
    finally:
        module._trainer = before
        module.train(mode)


def _windows(run: LiveRun, n_members: int, n_held_out: int) -> Iterator[tuple[int, Fetched]]:
    for start in range(0, n_members, _AT_ONCE):
        yield 0, run.capture.fetch("train", np.arange(start, min(start + _AT_ONCE, n_members)))
    for start in range(0, n_held_out, _AT_ONCE):
        yield 1, run.source.windows(np.arange(start, min(start + _AT_ONCE, n_held_out)))


def _loader(run: LiveRun, side: int) -> int:
    return run.source.dataloader_idx if side else 0


def _losses(found: list[list[tuple[Ints, Any]]], n_members: int, n_held_out: int) -> Losses:
    loss, tokens = np.full(n_members + n_held_out, np.nan), np.zeros(n_members + n_held_out, np.int64)
    units = {one.unit for _, one in chain(*found)}
    routes = {one.route for _, one in chain(*found)}
    if len(units) > 1:
        raise DataError(
            f"losses in {' and in '.join(sorted(units))}",
            "members and held-out records could not be compared",
            "let training and validation step compute one kind of loss, or pass per_record_loss=",
        )
    for start, pairs in zip((0, n_members), found, strict=True):
        for at, one in pairs:
            loss[start + at] = one.loss.detach().double().cpu().numpy()
            tokens[start + at] = one.tokens.detach().cpu().numpy()
    loss[tokens == 0] = np.nan
    return Losses(loss=loss, tokens=tokens, unit=units.pop(), route="; ".join(sorted(routes)))


def _named(pairs: list[tuple[Ints, list[Any]]], n: int, key: str) -> PatientMap:
    return PatientMap.from_observed(
        np.concatenate([at for at, _ in pairs]),
        [one for _, ids in pairs for one in ids],
        n_records=n,
        source=f"the batch entry {key!r}",
    )


def _listed(ids: Any, key: str) -> list[Any]:
    if ids is None:
        raise DataError(
            f"a batch without an entry {key!r}",
            "its records cannot be given to patients",
            "pass record_to_patient= with the name of an entry of every batch, or one id per record",
        )
    listed: list[Any] = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return listed


def joined(ours: RecordContent, theirs: RecordContent) -> RecordContent:
    """The contents of both sides in one numbering."""
    observed = np.concatenate([ours.observed, theirs.observed])
    if ours.kind != theirs.kind:
        raise DataError(
            f"members of {ours.kind} and held-out records of {theirs.kind}",
            "the two sides could not be compared",
            "give both loaders the same kind of data",
        )
    ours, theirs = in_common(ours, theirs)
    if ours.codes is not None and theirs.codes is not None:
        return RecordContent.from_codes(Ragged.concat([ours.codes, theirs.codes]), observed)
    assert ours.x is not None
    assert theirs.x is not None
    if ours.x.shape[1] != theirs.x.shape[1]:
        raise DataError(
            f"{ours.x.shape[1]} features of members and {theirs.x.shape[1]} of held-out records",
            "the two sides could not be compared",
            "give both loaders the same features",
        )
    y = None if ours.y is None or theirs.y is None else np.concatenate([ours.y, theirs.y])
    return RecordContent(kind="features", x=np.concatenate([ours.x, theirs.x]), y=y, observed=observed)
