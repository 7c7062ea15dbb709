"""What the monitor knows, without a Trainer: losses and contents in, one `Look` per probe out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from memguard.attacks.estimate import Estimate
from memguard.errors import DataError, HeldOutError
from memguard.probes.contents import Contents
from memguard.probes.look import Look
from memguard.probes.membership import EvaluatedLosses, membership_probe
from memguard.probes.memorization import Memorization, memorization_probe, memorized_share
from memguard.probes.sides import Floats, Ints, Side, WatchSettings, placed
from memguard.records.patients import PatientMap
from memguard.records.surrogate import (
    MIN_HELD_OUT,
    ContentFeatures,
    ModeSample,
    early_epoch,
    memorization_score,
)

__all__ = ["Watch"]


class Watch:
    """Gathers what a run reveals, and looks at it when asked to.

    Args:
        members: Record -> patient of the training set.
        held_out: Record -> patient of the held-out set.
        settings: What to measure.
        fingerprint: Says which data sets these are; a resumed run must have the same.

    Attributes:
        contents: What the records say by themselves.
        sample: ``(m,)`` positions of the members that are evaluated at each look.
        unit: Of the losses.
        reference: Losses ``(N,)`` and ``(M,)`` of a model that never saw the members; NaN for held-out records
            that it was trained on.
        first_flagged: ``(P,)`` epoch at which each patient was first flagged, NaN where never.
        measured: Eval-mode losses ``(N,)`` and ``(M,)`` of the last look; NaN where not measured.
        expected: Loss ``(N,)`` that a model would have for each record if it had never seen it, as of the last ranking,
            on the scale of the losses that were ranked; NaN where unknown.

    Example:
        >>> watch = Watch(PatientMap.of_records(200), PatientMap.of_records(150))
        >>> watch.members.add(np.arange(100), np.ones(100, np.float32), np.ones(100, np.int64))
        >>> watch.draw_sample().size, watch.coverage
        (100, 0.5)
    """

    def __init__(
        self,
        members: PatientMap,
        held_out: PatientMap,
        settings: WatchSettings | None = None,
        *,
        fingerprint: str = "",
    ) -> None:
        self.settings = settings or WatchSettings()
        self.fingerprint, self.unit = fingerprint, "nats/record"
        self.members, self.held_out = Side.of(members, fingerprint), Side.of(held_out, fingerprint)
        self.contents = Contents(self.members, self.held_out, seed=self.settings.seed)
        self.sample: Ints = np.zeros(0, np.int64)
        self.first_flagged = np.full(members.n_patients, np.nan, np.float32)
        self.reference: tuple[Floats, Floats] | None = None
        self.measured: tuple[Floats, Floats] = placed([], len(members)), placed([], len(held_out))
        self.expected: Floats = placed([], len(members))
        self._sample_rows: dict[int, Floats] = {}  # epoch -> eval-mode losses of the sample at its end
        self._held_out_mean: dict[int, float] = {}
        self._sample_fixed = False

    # -- what the run reveals ------------------------------------------------------------------------------

    @property
    def coverage(self) -> float:
        """Share of the training records whose loss was seen at least once."""
        return float(self.members.seen.mean()) if len(self.members.tokens) else 0.0

    def draw_sample(self) -> Ints:
        """Members to evaluate: a uniform random sample of the records trained on so far.

        Returns:
            ``(m,)`` sorted positions, which stay the same once the first epoch is over.
        """
        if self._sample_fixed:
            return self.sample
        trained = np.flatnonzero(self.members.seen)
        size = self.settings.sample_size(trained.size)
        # One random rank per position, so that a sample drawn later keeps most of an earlier one.
        rank = np.random.default_rng(self.settings.seed).permutation(len(self.members.tokens))[trained]
        self.sample = np.sort(trained[np.argsort(rank, kind="stable")[:size]])
        return self.sample

    def close_epoch(self, epoch: int, step: int) -> None:
        """The epoch is over: its losses become a snapshot."""
        self.members.traces.close(epoch=epoch, step=step)
        self.held_out.traces.close(epoch=epoch, step=step)
        self._sample_fixed = self._sample_fixed or self.sample.size > 0

    # -- looking -------------------------------------------------------------------------------------------

    def look(
        self,
        *,
        epoch: float,
        step: int,
        sample_loss: Floats,
        held_out_loss: Floats | None = None,
        member_loss: Floats | None = None,
        rank: bool = True,
    ) -> Look:
        """Measure everything that can be measured now.

        Args:
            epoch: Epochs finished, a fraction inside one.
            step: Optimizer steps taken.
            sample_loss: ``(m,)`` eval-mode losses of the sample.
            held_out_loss: ``(M,)`` eval-mode losses of the held-out records, NaN where not measured; by
                default those of the last validation.
            member_loss: ``(N,)`` eval-mode losses of members, NaN where not evaluated: the full budget, at
                the end. Only evaluated patients can then be flagged.
            rank: Whether to score every member; a look in the middle of an epoch does not.
        """
        held = self.held_out.latest() if held_out_loss is None else held_out_loss
        now = self.members.latest()
        seen = np.isfinite(now)
        measured = np.flatnonzero(np.isfinite(held))
        rows, losses = self.sample, sample_loss
        full = member_loss is not None and bool(np.isfinite(member_loss[self.members.seen]).all())
        if member_loss is not None and full:
            rows = np.flatnonzero(self.members.seen)
            losses = member_loss[rows]
        self.measured = placed([(rows, losses)], len(self.members.tokens)), held
        membership = membership_probe(
            EvaluatedLosses(loss=losses, patient=self.members.patients.code[rows]),
            EvaluatedLosses(loss=held[measured], patient=self.held_out.patients.code[measured]),
            sample_proxy=None if full else now[rows],
            all_proxy=None if full else now[seen],
            fprs=self.settings.fprs,
            seed=self.settings.seed,
        )
        found, share, fit, refused = None, None, None, "the epoch is not over"
        if rank:
            at = int(np.ceil(epoch)) - 1
            if measured.size:
                self._held_out_mean[at] = float(held[measured].mean())
            found, share, fit, refused = self._rank(at, sample_loss, held, member_loss)
            if found is not None:
                flagged = found.patient[found.flagged(self.settings.flag_rate)]
                self.first_flagged[flagged[np.isnan(self.first_flagged[flagged])]] = epoch
            self._sample_rows[at] = np.asarray(sample_loss, np.float32)
        return Look(
            epoch=epoch,
            step=step,
            train_loss=float(now[seen].mean()) if seen.any() else None,
            membership=membership,
            memorization=found,
            memorized_share=share,
            surrogate_fit=fit,
            blind=self.contents.blind() if rank else None,
            coverage=self.coverage,
            refused=refused,
        )

    def _rank(
        self, at: int, sample_loss: Floats, held: Floats, member_loss: Floats | None
    ) -> tuple[Memorization | None, Estimate | None, float | None, str]:
        """Score every member that can be scored; say why not otherwise."""
        if self.reference is not None:  # patients that the reference trained on are no stranger to it
            held = np.where(np.isfinite(self.reference[1]), held, np.nan).astype(np.float32)
        n_held_out = int(np.unique(self.held_out.patients.code[np.isfinite(held)]).size)
        if n_held_out < MIN_HELD_OUT:
            return None, None, None, f"{n_held_out} held-out patients, and a ranking needs {MIN_HELD_OUT}"
        evaluated = np.full(len(self.members.tokens), np.nan, np.float32)
        evaluated[self.sample] = sample_loss
        if member_loss is not None:
            evaluated = np.where(np.isfinite(member_loss), member_loss, evaluated).astype(np.float32)
        rows = np.flatnonzero(self.members.seen)
        try:
            # The sample is measured as the held-out patients are: its share needs no matched noise.
            sampled, fit = self._score(at, self.sample, evaluated, sample_loss, held, "eval", tail=False)
            if sampled is None:
                return None, None, fit, _no_fit(fit)
            if member_loss is None:
                found, fit = self._score(at, rows, None, sample_loss, held, "train")
            else:
                found, fit = self._score(at, rows, evaluated, sample_loss, held, "eval")
        except (HeldOutError, DataError) as error:
            return None, None, None, f"{error.seen}: {error.why}"
        codes = np.unique(self.members.patients.code[self.sample])
        refused = "" if found is not None else _no_fit(fit)
        return found, memorized_share(sampled, codes, n_held_out), fit, refused

    def _score(
        self,
        at: int,
        rows: Ints,
        loss: Floats | None,
        sample_loss: Floats,
        held: Floats,
        mode: Literal["train", "eval"],
        *,
        tail: bool = True,
    ) -> tuple[Memorization | None, float]:
        """Score the members at ``rows`` by the losses given, or by their train-time ones; and the fit."""
        train_now = self.members.latest()[rows]
        tested = np.ones(rows.size, np.bool_) if loss is None else np.isfinite(loss[rows])
        now = train_now if loss is None else np.where(tested, loss[rows], train_now)
        mean = np.full(at + 1, np.nan)
        for epoch, value in self._held_out_mean.items():
            if epoch == at or self._kept(epoch):
                mean[epoch] = value
        traces, held_traces, sample_rows = [now], [held], [sample_loss]
        early = early_epoch(mean)
        if early < at:
            traces.insert(0, self.members.snapshot(early)[rows])
            held_traces.insert(0, self.held_out.snapshot(early))
            sample_rows.insert(0, self._sample_rows[early])
        place = np.searchsorted(rows, self.sample)
        inside = (place < rows.size) & (rows[np.minimum(place, rows.size - 1)] == self.sample)
        mode_sample = ModeSample(
            rows=place[inside], losses=np.stack(sample_rows)[:, inside].astype(np.float64)
        )
        features = self.contents.features()
        scores = memorization_score(
            None if features is None else _take(features, rows),
            traces=np.stack(traces),
            held_out_traces=np.stack(held_traces),
            loss=now,
            held_out_loss=held,
            held_out_patient=self.held_out.patients.code,
            sample=mode_sample,
            loss_mode=mode,
            reference=None if self.reference is None else (self.reference[0][rows], self.reference[1]),
            patient=self.members.patients.code[rows],
            held_out_means=mean,
            seed=self.settings.seed,
        )
        if scores.status == "refuse":
            return None, scores.fit_r
        if tail:  # of all members, and not of the sample alone
            self.expected = placed([(rows, scores.expected.astype(np.float32))], len(self.members.tokens))
        found = memorization_probe(
            scores,
            patient=self.members.patients.code[rows],
            tokens=self.members.tokens[rows],
            held_out_patient=self.held_out.patients.code,
            held_out_tokens=self.held_out.tokens,
            basis="train-time" if mode == "train" else "evaluated",
            tested=tested,
            tail=tail,
        )
        return found, scores.fit_r

    def _kept(self, epoch: int) -> bool:
        """Whether both sides and the sample have losses of an epoch that is over; an empty one has none."""
        sides = self.members.traces.epochs, self.held_out.traces.epochs, self._sample_rows
        return all(epoch in side for side in sides)

    def candidates(self, last: Look, budget: int) -> Ints:
        """The members to evaluate with a budget: all, or the sample and those most likely memorized.

        Which ones are chosen does not bear on the validity of their p-values, as the others get p = 1.

        Returns:
            Sorted positions, at most ``budget`` of them, of members trained on.
        """
        trained = np.flatnonzero(self.members.seen)
        if budget >= trained.size:
            return trained
        if last.memorization is None or budget <= 0:
            return np.zeros(0, np.int64)
        worth = np.full(self.members.patients.n_patients, -np.inf)
        worth[last.memorization.patient] = np.nan_to_num(last.memorization.severity, nan=-np.inf)
        order = np.argsort(-worth[self.members.patients.code[trained]], kind="stable")
        return np.sort(trained[order[:budget]])

    # -- other processes -----------------------------------------------------------------------------------

    def payload(self) -> dict[str, Any]:
        """What this process saw in the epoch under way, for `merge` in all of them."""
        return {"members": self.members.payload(), "held_out": self.held_out.payload()}

    def merge(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        """Take in what all processes saw."""
        self.members.merge([payload["members"] for payload in payloads])
        self.held_out.merge([payload["held_out"] for payload in payloads])

    def name_patients(self, found: Sequence[Mapping[Any, tuple[Ints, list[Any]]]], *, source: str) -> bool:
        """Take in the patient ids that came with batches.

        Args:
            found: For each process, ``"train"`` and ``"held_out"`` -> positions and ids.
            source: In words.

        Returns:
            Whether the map of a side changed.
        """
        changed = False
        for name, side in (("train", self.members), ("held_out", self.held_out)):
            positions = np.concatenate([part[name][0] for part in found])
            ids = [one for part in found for one in part[name][1]]
            changed |= side.name_patients(positions, ids, source=source)
        if self.first_flagged.size != self.members.patients.n_patients:
            self.first_flagged = np.full(self.members.patients.n_patients, np.nan, np.float32)
        return changed

    def held_back(self) -> tuple[Ints, Ints]:
        """Held-out records in two halves by patient: one to train a reference on, one to compare with.

        Returns:
            Sorted positions of both.
        """
        rng = np.random.default_rng(self.settings.seed)
        chosen = rng.permutation(self.held_out.patients.n_patients) % 2 == 0
        first = chosen[self.held_out.patients.code]
        return np.flatnonzero(first), np.flatnonzero(~first)

    # -- state ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only; contents of records are not in it, they are gathered again."""
        return {
            "version": 1,
            "fingerprint": self.fingerprint,
            "members": self.members.traces.state_dict(),
            "held_out": self.held_out.traces.state_dict(),
            "tokens": torch.from_numpy(self.members.tokens.copy()),
            "held_out_tokens": torch.from_numpy(self.held_out.tokens.copy()),
            "sample": torch.from_numpy(self.sample.copy()),
            "sample_fixed": self._sample_fixed,
            "sample_rows": {k: torch.from_numpy(v.copy()) for k, v in self._sample_rows.items()},
            "held_out_mean": dict(self._held_out_mean),
            "first_flagged": torch.from_numpy(self.first_flagged.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run on the same data sets.

        Raises:
            DataError: If the state is of another version or of other data sets.
        """
        if state.get("version") != 1 or state.get("fingerprint") != self.fingerprint:
            raise DataError(
                "a checkpoint whose leakage curve was measured on other data sets (or by another version)",
                "losses would be given to other patients",
                "resume with the data sets of the run, or take the monitor's state out of the checkpoint",
            )
        self.members.traces.load_state_dict(state["members"])
        self.held_out.traces.load_state_dict(state["held_out"])
        self.members.tokens = state["tokens"].numpy().copy()
        self.held_out.tokens = state["held_out_tokens"].numpy().copy()
        self.sample, self._sample_fixed = state["sample"].numpy().copy(), bool(state["sample_fixed"])
        self._sample_rows = {int(k): v.numpy().copy() for k, v in state["sample_rows"].items()}
        self._held_out_mean = {int(k): float(v) for k, v in state["held_out_mean"].items()}
        self.first_flagged = state["first_flagged"].numpy().copy()


def _no_fit(fit: float) -> str:
    return f"the expected loss of held-out patients is only correlated r = {fit:.2f} with the actual one"


def _take(features: ContentFeatures, rows: Ints) -> ContentFeatures:
    return ContentFeatures(
        kind=features.kind, train=features.train[rows], held_out=features.held_out, names=features.names
    )
