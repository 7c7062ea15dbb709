"""The probes of an audit, asked lightly while the model trains: of the same patients each time, at a stated price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from numpy.typing import ArrayLike

from memguard.auditing.choice import PROBES
from memguard.auditing.subjects import Strata
from memguard.errors import MemguardError
from memguard.probes.asked import Budget, Probe
from memguard.records.sensitivity import Sensitive, SensitivityTable

__all__ = ["LightProbes"]


@dataclass(frozen=True)
class LightProbes:
    """Which probes of `memguard.audit` the monitor asks while the model trains, of whom, and what they may cost.

    Each is the probe that the audit asks, with its light budget: fewer patients and prompts, and counts of what came
    after what in place of reference models. They are asked at the ends of epochs and validations, after the numbers of
    the look itself, when their share of the training time has been saved; not every look has a number of every probe.

    Attributes:
        probes: ``"all"``, names (``"membership"``, ``"attribute"``, ``"perturbation"``, ``"trajectory"``,
            ``"embedding"``, ``"copies"``, ``"canary"``), or probes with settings of their own.
        vocabulary: What the tokens are called, as `memguard.audit` takes it; looked for on datamodule, data set and
            module on ``"auto"``.
        static: How many leading tokens of a record say who the patient is; from the names on ``"auto"``.
        sensitive: Which codes are sensitive: a table, or a TOML file of one; memguard's own by default.
        strata: Subgroups for which a difference of each probe is given as well: name -> ``(N + M,)`` truth values of
            the records, members first, or ids of patients.
        adapter: How the model is asked; found when not given.
        canaries: Planted records; those of a `PlantedCanaries` datamodule are found.
        patients: Patients of each side that a probe asks about: the same ones at every look, once every record has
            been seen.
        samples: Continuations of each prompt, where a probe samples.
        share: Of the training time, that all probes together may cost.
        references: ``"counts"``: n-gram counts of the training records, of which those of the patient asked about are
            left out exactly; ``"none"``.

    Raises:
        MemguardError: For an unknown name, two probes of one name, a share outside (0, 1] or fewer than 2 patients.

    Guarantees:
        Which looks have a number depends on time; a number depends on weights, data and seed alone. The curve of one
        probe has an interval for each look, not for the most favourable of them. A flat curve is no evidence that
        nothing can be got out: fewer patients are asked, with counts for references; `memguard.audit` asks in full.

    Example:
        >>> LightProbes(["attribute", "copies"], share=0.05).names
        ('attribute', 'copies')
    """

    probes: str | Sequence[str | Probe] = "all"
    _: KW_ONLY
    vocabulary: Any = "auto"
    static: int | ArrayLike | str = "auto"
    sensitive: SensitivityTable | Sensitive | str | Path | None = None
    strata: Strata = None
    adapter: Any = None
    canaries: Any = None
    patients: int = 50
    samples: int = 4
    share: float = 0.02
    references: Literal["counts", "none"] = "counts"

    def __post_init__(self) -> None:
        names = self.names
        unknown = [one for one in self._wanted() if isinstance(one, str) and one not in PROBES]
        if unknown or not names:
            raise MemguardError(
                f"probes={self.probes!r}", "nothing would be asked", f"use some of {', '.join(PROBES)}"
            )
        strange = [one for one in self._wanted() if not isinstance(one, str) and not _is_probe(one)]
        if strange:
            raise MemguardError(
                f"a {type(strange[0]).__name__} among the probes",
                "it cannot be asked as memguard.probes.asked.Probe says",
                "pass an object with name, needs and run(subject, asked, budget), not its class",
            )
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise MemguardError(
                f"two probes named {', '.join(twice)}",
                "their curves could not be told apart",
                "give each a name of its own",
            )
        if not 0 < self.share <= 1:
            raise MemguardError(
                f"share={self.share}",
                "it is the share of the training time that the probes may cost",
                "pass a number above 0 and at most 1",
            )
        if self.patients < 2 or self.samples < 1:
            raise MemguardError(
                f"patients={self.patients}, samples={self.samples}",
                "there would be nobody to compare, or nothing to compare with",
                "pass 2 patients or more, 20 where you can, and 1 sample or more",
            )
        if self.references not in ("counts", "none"):
            raise MemguardError(
                f"references={self.references!r}",
                "no reference model is trained while the model itself trains",
                'pass "counts" or "none" here, and references= to memguard.audit afterwards',
            )

    @classmethod
    def of(cls, given: Any) -> LightProbes:
        """What the monitor is given, as settings.

        Args:
            given: Settings; names and probes; or a mapping of arguments, as in a configuration file.

        Example:
            >>> LightProbes.of({"probes": ["copies"], "patients": 20}).patients
            20
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            return cls(given if isinstance(given, str) else tuple(given))
        known = {one.name for one in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise MemguardError(
                f"probes= with {', '.join(map(str, unknown))}",
                "light probes take no such argument",
                f"pass some of {', '.join(sorted(known))}",
            )
        return cls(**given)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the probes, in the order in which they are first asked."""
        return tuple(
            one if isinstance(one, str) else str(getattr(one, "name", type(one).__name__))
            for one in self._wanted()
        )

    def budget(self, name: str, seconds: float | None, seed: int) -> Budget:
        """What one probe may spend.

        Args:
            name: Of the probe. Membership rests on losses that the look has measured already, and takes all of them.
            seconds: After which it is to stop.
            seed: Of its draws.
        """
        return Budget(
            size="light",
            patients=None if name == "membership" else self.patients,
            samples=self.samples,
            seconds=seconds,
            seed=seed,
        )

    def _wanted(self) -> list[Any]:
        if isinstance(self.probes, str):
            everything = [name for name in PROBES if name != "canary" or self.canaries is not None]
            return everything if self.probes == "all" else [self.probes]
        return list(self.probes)


def _is_probe(one: Any) -> bool:
    fits = isinstance(getattr(one, "name", None), str) and hasattr(one, "needs")
    return fits and callable(getattr(one, "run", None)) and not isinstance(one, type)
