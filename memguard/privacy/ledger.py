"""The ledger of a private training: what was spent, and everything else that touched the guarantee.

It lies outside of the checkpoints: a checkpoint can be rolled back, and what its steps have shown cannot. A step is
written down before its noise is applied, so a kill at any moment leaves a ledger that holds at least the steps taken.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memguard import __version__
from memguard.errors import PrivacyError
from memguard.privacy.chain import ChainedLines, Entry, broken
from memguard.privacy.journal import Journal
from memguard.privacy.lineage import FORMAT, OtherRun, check_claim, check_same, check_seeds, existing, not_of
from memguard.privacy.tally import KINDS, Tally, facts_of

if TYPE_CHECKING:
    from memguard.privacy.accounting import Phase

__all__ = ["Ledger", "OtherRun"]

_NOT_BY_HAND = ("created", "step", "torn")


class Ledger:
    """An append-only file of one run and all its resumes, ``<folder>/<run>.jsonl``.

    Every entry is on the disk (fsync) when the method that writes it returns, carries a hash of the one before, and
    stays. The file is readable by its owner alone and written to by one process at a time. Made by :meth:`create`,
    :meth:`resume` or :meth:`read`.

    Attributes:
        path: The file.
        run: Id of the run lineage, random.

    Note:
        Steps are counted by entries: a step that is repeated after a rollback was seen twice and counts twice, and
        an entry cut off by a kill counts if it could have been a step. Never counted are trainings on these patients
        whose ledgers lie in other folders.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Ledger.create(folder, fingerprint="f00d", facts={"unit": "patient", "n_owners": 100}) as ledger:
        ...     ledger.phase(1.1, {"everybody": 0.1}, expected_patients=10, max_grad_norm=1.0, delta=0.01)
        ...     _ = ledger.append("started", seeds={"noise": "5eed"})
        ...     ledger.step(0)
        >>> again = Ledger.resume(folder, ledger.run, fingerprint="f00d", steps=1)
        >>> _ = again.append("resumed", seeds={"noise": "0dd5"}, at_step=1)
        >>> again.step(1)
        >>> again.n_steps, again.seeds()
        (2, ['5eed', '0dd5'])
        >>> again.close()
    """

    def __init__(self, path: Path, journal: Journal | None) -> None:
        self.path, self.run = path, path.stem
        self._journal = journal
        self._tally = Tally()
        self._problem, self._torn_steps = "", 0
        self._end = -1, ""
        self._started = False

    # -- open and close ------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: str | Path, *, fingerprint: str, facts: Mapping[str, Any]) -> Ledger:
        """Begin the ledger of a new run.

        Args:
            folder: Where; made with mode 0700 if it is not there.
            fingerprint: Of the data set.
            facts: At least ``unit`` (``"patient"`` or ``"record"``) and ``n_owners``. Read by the statement are
                also ``most_records``, ``max_records``, ``average``, ``engine``, ``strata_from_data`` and
                ``initial_weights``. Versions of the libraries are added.

        Raises:
            PrivacyError: If a fact is missing, or the file cannot be made.
        """
        if facts.get("unit") not in ("patient", "record") or not facts.get("n_owners"):
            raise PrivacyError(
                f"unit={facts.get('unit')!r} and n_owners={facts.get('n_owners')!r} in the facts of a ledger",
                "they say to whom the guarantee is given",
                'pass facts={"unit": "patient" or "record", "n_owners": a number, ...}',
            )
        run = secrets.token_hex(8)
        ledger = cls(Path(folder) / f"{run}.jsonl", Journal.create(Path(folder) / f"{run}.jsonl"))
        adjacency = f"add or remove one {facts['unit']}"
        if facts["unit"] == "patient":
            adjacency += " with all records"
        made = {"adjacency": adjacency, **facts, "versions": {**_versions(), **facts.get("versions", {})}}
        ledger._write("created", {"format": FORMAT, "run": run, "fingerprint": fingerprint, **made})
        return ledger

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        run: str,
        *,
        fingerprint: str | None = None,
        facts: Mapping[str, Any] | None = None,
        steps: int = 0,
        mark: Mapping[str, Any] | None = None,
    ) -> Ledger:
        """Go on with the ledger of a run.

        Args:
            folder: Where it lies.
            run: Id of the run, from the checkpoint.
            fingerprint: Of the data set that training goes on with.
            facts: As at :meth:`create`; those on which the promise rests must be the same.
            steps: Optimizer steps, over the whole lineage, that the checkpoint knows of.
            mark: What :meth:`mark` gave when the checkpoint was written; also tells a copy of the ledger that went
                another way.

        Raises:
            PrivacyError: If the file is missing, broken, in use, of other patients, or holds less than the
                checkpoint claims.
        """
        path = existing(folder, run)
        journal = Journal.open(path)
        ledger = cls(path, journal)
        try:
            hashed = ledger._load(int((mark or {}).get("line", -1)))
            check_claim(path.name, ledger.n_steps, steps, mark or {}, hashed)
            check_same({**ledger.facts}, fingerprint, facts or {})
            ledger._mend()
        except BaseException:
            journal.close()
            raise
        return ledger

    @classmethod
    def read(cls, folder: str | Path, run: str) -> Ledger:
        """A ledger to look at: nothing is written, it may be in use, and :meth:`verify` tells whether it holds.

        Raises:
            PrivacyError: If there is no such file.
        """
        ledger = cls(existing(folder, run), None)
        ledger._load()
        return ledger

    @classmethod
    def others(cls, folder: str | Path, fingerprint: str, *, but: str | None = None) -> list[OtherRun]:
        """Runs in a folder that trained on the same data set.

        Args:
            folder: To look in; not below it.
            fingerprint: Of the data set.
            but: Id of a run to leave out.

        Returns:
            By id. Runs without a step are left out; a ledger that is broken is there, with its problem, also where
            it can no longer be told which data set it was about.
        """
        found = []
        for path in sorted(Path(folder).glob("*.jsonl")):
            if path.stem == but:
                continue
            ledger = cls.read(folder, path.stem)
            theirs = ledger._tally.created.get("fingerprint")
            if (theirs == fingerprint and ledger.n_steps) or (
                ledger._problem and theirs in (fingerprint, None)
            ):
                found.append(ledger._as_other())
        return found

    def close(self) -> None:
        """Let others write. Idempotent; what was read stays readable."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger(run={self.run!r}, steps={self.n_steps})"

    # -- write ---------------------------------------------------------------------------------------------

    def append(self, kind: str, **facts: Any) -> Entry:
        """Write an entry down.

        Args:
            kind: ``"started"`` or ``"resumed"`` (with ``seeds``: use -> fingerprint), ``"ended"``, ``"probe"``
                (``what``, and ``passed`` where it is a check), ``"feedback"``, ``"early_stop"``,
                ``"monitored_checkpoint"``, ``"tuner"``, ``"private_log"``, ``"mitigation"`` (with ``name``, and
                ``depends_on="record"`` where weights follow from the record by itself: any other voids the guarantee),
                ``"note"``, ``"refused"``.
            facts: JSON: numbers, words, lists and mappings. ``seen`` and ``why`` are read out by the statement.

        Returns:
            The entry as written.

        Raises:
            PrivacyError: If the kind is not known, a seed was used before, or the entry cannot be written.
        """
        if kind in _NOT_BY_HAND or kind not in KINDS:
            raise PrivacyError(
                f"an entry of the kind {kind!r}",
                "the statement would not know what to make of it",
                f"use one of {', '.join(one for one in KINDS if one not in _NOT_BY_HAND)}, or Ledger.step",
            )
        if kind in ("started", "resumed"):
            check_seeds(self._tally.seeds, facts.get("seeds"))
        return self._write(kind, facts)

    def phase(
        self,
        noise_multiplier: float,
        rates: Mapping[str, float],
        expected_patients: float,
        max_grad_norm: float,
        delta: float,
        *,
        target_epsilon: float | None = None,
        planned_steps: int | None = None,
        sampling: str = "poisson",
        **facts: Any,
    ) -> None:
        """Write down how the steps that follow are made.

        Args:
            noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
            rates: Stratum -> probability with which a patient of it (or a record) is in a step.
            expected_patients: What the noisy sum is divided by.
            max_grad_norm: C.
            delta: Of the promise.
            target_epsilon: That the noise was chosen for, if it was.
            planned_steps: Steps to come in this phase, if their number is known.
            sampling: The accountants assume ``"poisson"``.
            facts: More, JSON.

        Raises:
            PrivacyError: If a number cannot be, or the entry cannot be written.
        """
        given = {
            "noise_multiplier": (noise_multiplier, 0 <= noise_multiplier < float("inf")),
            "rates": (rates, bool(rates) and all(0 < rate <= 1 for rate in rates.values())),
            "expected_patients": (expected_patients, 0 < expected_patients < float("inf")),
            "max_grad_norm": (max_grad_norm, 0 < max_grad_norm < float("inf")),
            "delta": (delta, 0 < delta < 1),
        }
        for name, (value, possible) in given.items():
            if not possible:
                raise PrivacyError(
                    f"{name}={value}", "no epsilon follows from it", f"pass a possible {name}="
                )
        entry = {name: value for name, (value, _) in given.items()} | {
            "target_epsilon": target_epsilon, "planned_steps": planned_steps, "sampling": sampling,
        }  # fmt: skip
        self._write("phase", {**entry, **facts})

    def step(self, global_step: int) -> None:
        """Write a step down; to be called before its noise is applied.

        Args:
            global_step: The optimizer's number of the step. It may come again after a rollback, and then counts again.

        Raises:
            PrivacyError: If there was no phase or no start yet, or the entry cannot be written. The step must then
                not be taken.
        """
        if not self._tally.phases or not self._started:
            missing = "start" if self._tally.phases else "phase"
            raise PrivacyError(
                f"a step before a {missing} was written to the ledger",
                "its noise, or the seed of its noise, would not be known",
                "call phase(...) and append('started', seeds=...) (or 'resumed') first",
            )
        self._write("step", {"step": int(global_step)})

    # -- read ----------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the file lies."""
        return self.path.parent

    @property
    def facts(self) -> dict[str, Any]:
        """With which the run was created."""
        return facts_of(self._tally.created)

    @property
    def fingerprint(self) -> str:
        """Of the data set; empty if the first line is lost."""
        return str(self._tally.created.get("fingerprint", ""))

    @property
    def n_steps(self) -> int:
        """Steps that were written down, over all resumes."""
        return self._tally.n_steps

    @property
    def strata(self) -> list[str]:
        """Names of the strata."""
        return self._tally.strata

    @property
    def tally(self) -> Tally:
        """Everything but the steps one by one."""
        return self._tally

    def entries(self) -> Iterator[Entry]:
        """All entries, read from the file; up to the first that is broken."""
        with self.path.open("rb") as file:
            yield from ChainedLines(file)

    def history(self, stratum: str | None = None) -> list[Phase]:
        """Steps by noise and rate, in order, equal neighbours joined.

        Args:
            stratum: Name of one; ``None``: the highest rate of each phase, an upper bound for everybody.

        Raises:
            PrivacyError: If there is no such stratum, or the chain is broken.
        """
        self._require_whole()
        return self._tally.history(stratum)

    def seeds(self, others: Sequence[OtherRun] = ()) -> list[str]:
        """Fingerprints of the seeds of all starts, in order.

        Args:
            others: Other runs whose seeds must not come again either.

        Raises:
            PrivacyError: If a seed was used twice.
        """
        return self._tally.unique_seeds(
            {seed: f"run {other.run}" for other in others for seed in other.seeds}
        )

    def mark(self) -> dict[str, int | str]:
        """For the checkpoint: what the ledger must still hold when training goes on from there.

        Returns:
            ``run``, ``steps``, and the number (from 0) and hash of the last line.
        """
        self._require_whole()
        line, chain = self._end
        return {"run": self.run, "steps": self.n_steps, "line": line, "chain": chain}

    def verify(self) -> None:
        """Read the file again and test the chain.

        Raises:
            PrivacyError: Where a line was changed, removed, repeated or moved, or the file is not of this run. Lines
                missing at the end do not show here, but against a checkpoint (:meth:`resume`).
        """
        tested = Ledger(self.path, None)
        tested._load()
        tested._require_whole()

    # -- inside --------------------------------------------------------------------------------------------

    def _write(self, kind: str, facts: Mapping[str, Any]) -> Entry:
        if self._journal is None:
            raise PrivacyError(
                "a ledger that was opened for reading",
                "nothing is written to it",
                "open it with Ledger.resume",
            )
        clash = sorted({"kind", "line", "chain", "time"} & set(facts))
        if clash:
            raise PrivacyError(
                f"facts named {', '.join(clash)}",
                "the ledger uses these names itself",
                "name them differently",
            )
        if self._journal.unsure and not self._journal.closed:  # the last write was interrupted
            self._load()
            self._mend()
        timed = {} if kind == "step" else {"time": _now()}  # steps are many, and their lines short
        entry = self._journal.append({"kind": kind, **timed, **facts})
        self._end = entry["line"], entry["chain"]
        self._started |= kind in ("started", "resumed")
        self._tally.see(entry)
        return entry

    def _load(self, marked: int = -1) -> str:
        """Read the file from its beginning; returns the hash of the line that a mark names."""
        self._tally, hashed = Tally(), ""
        with self.path.open("rb") as file:
            lines = ChainedLines(file)
            for entry in lines:
                self._tally.see(entry)
                if entry["line"] == marked:
                    hashed = entry["chain"]
        self._problem = lines.problem or not_of(self._tally.created, self.run)
        self._torn_steps = self._tally.see_torn(lines.torn)
        self._end = lines.n_lines - 1, lines.chain
        if self._journal is not None:
            self._require_whole()
            self._journal.adopt(lines)
        return hashed

    def _mend(self) -> None:
        assert self._journal is not None
        entry = self._journal.mend(time=_now(), steps=self._torn_steps)
        if entry is not None:  # its steps were counted when they were read
            self._tally.events.append(entry)
            self._end = entry["line"], entry["chain"]

    def _require_whole(self) -> None:
        if self._problem:
            raise broken(self.path, self._problem)

    def _as_other(self) -> OtherRun:
        return OtherRun(
            run=self.run,
            unit=str(self.facts.get("unit", "")),
            n_steps=self.n_steps,
            history=() if self._problem else tuple(self._tally.history(None)),
            seeds=tuple(self._tally.seeds),
            facts=self.facts,
            problem=self._problem,
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """Of memguard and what the noise and the accountants come from; without importing them."""
    found = {"memguard": __version__}
    for name in ("opacus", "torch", "dp-accounting"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
