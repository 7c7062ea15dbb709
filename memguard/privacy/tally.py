"""What the entries of a ledger add up to: steps by phase, seeds, and what else happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memguard.errors import PrivacyError
from memguard.privacy.chain import TORN, Entry

if TYPE_CHECKING:
    from memguard.privacy.accounting import Phase

__all__ = ["KINDS", "Tally", "facts_of", "reused", "steps_in"]

KINDS = (
    "created", "phase", "started", "resumed", "ended", "step", "probe", "feedback", "early_stop",
    "monitored_checkpoint", "tuner", "private_log", "mitigation", "note", "refused", TORN,
)  # fmt: skip

_A_STEP = b'{"kind":"step",'
_OTHERS = tuple(f'{{"kind":"{kind}",'.encode() for kind in KINDS if kind != "step")


def steps_in(torn: bytes) -> int:
    """How many steps an unfinished line may stand for: one, unless it is clearly the beginning of something else.

    More than one where the end of a line before it was lost.

    Example:
        >>> steps_in(b'{"kind":"step","st'), steps_in(b'{"ki'), steps_in(b"?"), steps_in(b'{"kind":"note')
        (1, 1, 1, 0)
    """
    other = any(torn.startswith(one) or one.startswith(torn) for one in _OTHERS)
    return max(torn.count(_A_STEP), 0 if other and not _A_STEP.startswith(torn) else 1)


@dataclass
class Tally:
    """Sums over entries, in memory that does not grow with the steps.

    Attributes:
        created: The first entry; empty before it was read.
        events: All entries but the steps, in order.
        phases: The phase entries.
        steps: Steps taken in each phase.
        last_step: Number of the last step that was written, -1 before the first.
        seeds: Fingerprints of the seeds of all starts, in order.
        failed: Names of probes that had failed when a step was taken.

    Example:
        >>> tally = Tally()
        >>> tally.see({"kind": "phase", "noise_multiplier": 1.0, "rates": {"all": 0.1}, "sampling": "poisson"})
        >>> for number in (0, 1, 0):  # rolled back after two steps: the noise of all three was seen
        ...     tally.see({"kind": "step", "step": number})
        >>> tally.n_steps
        3
    """

    created: Entry = field(default_factory=dict)
    events: list[Entry] = field(default_factory=list)
    phases: list[Entry] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    last_step: int = -1
    seeds: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _failing: dict[str, bool] = field(default_factory=dict)

    def see(self, entry: Entry) -> None:
        """Add an entry."""
        kind = entry["kind"]
        if kind == "step":
            self._step(1)
            self.last_step = int(entry["step"])
            return
        self.events.append(entry)
        if kind == "created" and not self.created:
            self.created = entry
        elif kind == "phase":
            self.phases.append(entry)
            self.steps.append(0)
        elif kind in ("started", "resumed"):
            self.seeds += [str(seed) for seed in entry.get("seeds", {}).values()]
        elif kind == "probe" and "passed" in entry:
            self._failing[str(entry.get("what", "a probe"))] = not entry["passed"]
        elif kind == TORN:
            self._step(int(entry.get("steps", 1)))

    def see_torn(self, torn: Iterable[bytes]) -> int:
        """Count unfinished lines at the end of a file as the steps that they may be; returns how many."""
        steps = sum(map(steps_in, torn))
        self._step(steps)
        return steps

    def _step(self, n: int) -> None:
        if not self.steps or n <= 0:  # before the first phase there are no steps
            return
        self.steps[-1] += n
        for name, failing in self._failing.items():
            if failing and name not in self.failed:
                self.failed.append(name)

    @property
    def n_steps(self) -> int:
        """Steps in all phases."""
        return sum(self.steps)

    @property
    def strata(self) -> list[str]:
        """Names of the strata, in order of appearance."""
        return list(dict.fromkeys(name for phase in self.phases for name in phase["rates"]))

    def taken(self) -> list[Entry]:
        """The phases in which a step was taken."""
        return [phase for phase, steps in zip(self.phases, self.steps, strict=True) if steps]

    def history(self, stratum: str | None) -> list[Phase]:
        """Steps by noise multiplier and rate, for the accountants.

        Args:
            stratum: ``None``: the highest rate of each phase, which holds for everybody. A phase without this stratum
                counts with its highest rate.

        Raises:
            PrivacyError: If there is no such stratum.
        """
        from memguard.privacy.accounting import Phase

        if stratum is not None and stratum not in self.strata:
            raise PrivacyError(
                f"no stratum {stratum!r} in the ledger", "", f"the strata are {', '.join(self.strata)}"
            )
        found: list[Phase] = []
        for phase, steps in zip(self.phases, self.steps, strict=True):
            rates: Mapping[str, float] = phase["rates"]
            rate = rates.get(stratum, max(rates.values())) if stratum is not None else max(rates.values())
            now = Phase(float(phase["noise_multiplier"]), float(rate), steps)
            last = found[-1] if found else None
            if last and (last.noise_multiplier, last.sample_rate) == (now.noise_multiplier, now.sample_rate):
                found[-1] = Phase(now.noise_multiplier, now.sample_rate, last.steps + steps)
            elif steps:
                found.append(now)
        return found

    def unique_seeds(self, used: Mapping[str, str] | None = None) -> list[str]:
        """The fingerprints of all seeds.

        Args:
            used: Fingerprint -> whose, of seeds used elsewhere.

        Raises:
            PrivacyError: If one was used twice.
        """
        whose = dict(used or {})
        for number, seed in enumerate(self.seeds):
            if seed in whose:
                raise reused(seed, whose[seed])
            whose[seed] = f"seed {number + 1} of this run"
        return list(self.seeds)


def reused(seed: str, whose: str) -> PrivacyError:
    """The error for a seed that was used before."""
    return PrivacyError(
        f"the seed with fingerprint {seed[:12]} was used before ({whose})",
        "two updates with the same noise give, subtracted from each other, gradients without any",
        "draw a new seed from os.urandom at every start, resumed ones too",
    )


def facts_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without what the journal added."""
    return {name: value for name, value in entry.items() if name not in ("kind", "line", "chain", "time")}
