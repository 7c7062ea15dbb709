"""The audit's probes while the model trains: when one is due, what a fault costs, and one answer on every rank."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl

from memguard.attacks.estimate import Estimate
from memguard.auditing.curves import shown
from memguard.auditing.light import LightProbes
from memguard.auditing.light_counts import expected_seconds
from memguard.auditing.standing import Standing, known_of, prepare_standing
from memguard.callbacks.gather import everybody, n_ranks, rank
from memguard.callbacks.guard import warn
from memguard.callbacks.results import Results
from memguard.callbacks.session import WatchSession
from memguard.capture.stillness import untouched
from memguard.errors import MemguardError
from memguard.probes.allowance import Allowance
from memguard.probes.result import NotTested

__all__ = ["Probing"]

_PREPARING = "(preparation)"
_SHARDED = frozenset({"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"})


@dataclass
class _Answers:
    """What rank 0 found at one look, for all of them."""

    numbers: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


class Probing:
    """Asks the chosen probes at looks, within their share of the training time.

    Args:
        light: What to ask.
        seed: Of every draw.
        on_problem: As the monitor takes it.
        min_cell: Numbers of fewer patients are left out.

    Attributes:
        allowance: What was saved and spent.
        standing: Whom is asked; ``None`` before the first time.
    """

    def __init__(
        self, light: LightProbes, *, seed: int = 0, on_problem: str = "auto", min_cell: int = 5
    ) -> None:
        self.light, self.seed, self.on_problem, self.min_cell = light, seed, on_problem, min_cell
        self.allowance = Allowance(light.share)
        self.standing: Standing | None = None
        self._out: set[str] = set()  # probes that a note has been made of
        self._refused = False

    def look(
        self,
        session: WatchSession,
        results: Results,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        *,
        last: bool = False,
    ) -> None:
        """Ask whoever is due, after the numbers of the look itself; all ranks must call.

        Args:
            session: Of the fit.
            results: Of the fit; its newest point gets the numbers.
            trainer: Of the run.
            module: Of the run.
            last: Whether training is over.

        Raises:
            Exception: What a probe raised, with ``on_problem="raise"``.
        """
        watch = session.watch
        if self._refused or watch is None or getattr(trainer, "fast_dev_run", False) or not results.curve:
            return
        mine: _Answers | None = None
        if rank() == 0:
            try:
                mine = self._ask(session, results, trainer, module, last=last)
            except Exception as error:
                if n_ranks() == 1:
                    raise
                mine = _Answers(error=f"{type(error).__name__}: {error}")
        found = next(one for one in everybody(mine) if one is not None)
        if found.error:
            raise MemguardError(
                f"a probe that failed ({found.error})", 'on_problem="raise" ends the training', ""
            )
        for text in found.notes:
            session.note(text)
        results.add_probes(found.numbers, found.seconds)

    # -- on the rank that asks -----------------------------------------------------------------------------

    def _ask(
        self,
        session: WatchSession,
        results: Results,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        *,
        last: bool,
    ) -> _Answers:
        found, start = _Answers(), time.perf_counter()
        point = results.curve[-1]
        self.allowance.look(sum(one.train_seconds or 0.0 for one in results.curve))
        sharded = _names(trainer) & _SHARDED
        if sharded:
            self._refused = True
            found.notes.append(
                f"No probe was asked: under {min(sharded)} no process holds the whole model. Run memguard.audit on "
                "the checkpoint instead."
            )
            return found
        measured = point.step == trainer.global_step  # or else nothing is known of these weights
        with untouched(module):
            if measured and self._prepared(session, trainer, module, point.probe_seconds, found):
                self._round(session, module, set(point.probes), last, found)
        if last:
            found.notes += self._never(results)
        found.seconds = time.perf_counter() - start
        return found

    def _prepared(
        self, session: WatchSession, trainer: pl.Trainer, module: Any, look_seconds: float, found: _Answers
    ) -> bool:
        """Whether there is somebody to ask, by now."""
        watch = session.watch
        assert watch is not None
        known = known_of(watch)
        if known is None:
            return False
        if self.standing is not None and self.standing.known == known:
            return True
        price = self.allowance.cost.get(_PREPARING, max(expected_seconds(watch, self.light), look_seconds))
        self.allowance.expect(_PREPARING, price)
        if price > self.allowance.saved:
            return False
        start = time.perf_counter()
        try:
            self.standing = prepare_standing(
                self.light,
                watch,
                module,
                data=getattr(trainer, "datamodule", None),
                dataset=session.capture.tracker.dataset("train"),
                seed=self.seed,
                adapter=None if self.standing is None else self.standing.adapter,
            )
        except Exception as error:
            self._failed("preparing the probes", error, found)
            self._refused = True
            return False
        finally:
            self.allowance.paid(_PREPARING, time.perf_counter() - start, limit=None)
        found.notes += self.standing.notes
        for probe in self.standing.probes:
            self.allowance.expect(probe.name, self.standing.expected(probe))
        for name, gap in self.standing.missing.items():
            self._cannot(name, gap, found)
        return bool(self.standing.probes)

    def _round(
        self, session: WatchSession, module: Any, asked: set[str], last: bool, found: _Answers
    ) -> None:
        standing, watch = self.standing, session.watch
        assert standing is not None
        assert watch is not None
        waiting = [one.name for one in standing.probes if one.name not in self._out | asked]
        while waiting and (turn := self.allowance.next(waiting, last=last)) is not None:
            name, limit = turn
            waiting.remove(name)
            start, result = time.perf_counter(), None
            try:
                with untouched(module):
                    result = standing.ask(name, watch, limit)
                    numbers = shown(result, standing, min_cell=self.min_cell)
            except Exception as error:
                self._out.add(name)
                self._failed(f"the probe {name}", error, found)
            complete = self.allowance.paid(name, time.perf_counter() - start, limit=limit)
            if result is None or not complete:
                continue
            if numbers:
                found.numbers[name] = numbers
            else:
                gaps = [*result.not_tested, *standing.gaps]
                self._cannot(name, gaps[0] if gaps else NotTested(what=name, why="it gave no number"), found)

    def _cannot(self, name: str, gap: NotTested, found: _Answers) -> None:
        """A model or data that have no answer for a probe: said once."""
        if name in self._out:
            return
        self._out.add(name)
        fix = f" {gap.fix[0].upper()}{gap.fix[1:].rstrip('.')}, in LightProbes." if gap.fix else ""
        found.notes.append(f"The probe {name} has no curve: {gap.why.rstrip('.')}.{fix}")

    def _failed(self, what: str, error: Exception, found: _Answers) -> None:
        """A fault: it costs the probe, and is said once."""
        if self.on_problem == "raise":
            raise error
        found.notes.append(f"A fault ended {what}: {type(error).__name__}: {error}")
        seen = str(error) if isinstance(error, MemguardError) else f"\n{traceback.format_exc()}"
        warn(
            f"{what} failed: {seen}",
            "training and watch go on without it",
            "" if isinstance(error, MemguardError) else "report this",
        )

    def _never(self, results: Results) -> list[str]:
        """Probes that could not be paid for, with their price."""
        known = self.standing
        names = self.light.names if known is None else [one.name for one in known.probes]
        trained = sum(one.train_seconds or 0.0 for one in results.curve)
        purse = f"{100 * self.light.share:g} % of {trained:.0f} s of training were not enough"
        said = []
        for name in names:
            if name in self.allowance.cost or name in self._out:
                continue
            price = self.allowance.price(name)
            takes = f"it takes {price}, and " if price else ""
            said.append(
                f"The probe {name} was never asked to the end: {takes}{purse}. Pass a larger share= or fewer "
                "patients= in LightProbes, or run memguard.audit afterwards."
            )
        return said

    # -- state ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was spent, and known costs."""
        return self.allowance.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another fit stood."""
        self.allowance.load_state_dict(state)


def _names(trainer: pl.Trainer) -> set[str]:
    return {kind.__name__ for kind in type(trainer.strategy).__mro__}
