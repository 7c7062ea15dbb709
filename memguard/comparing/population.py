"""Who is compared: patients of both sides, their strata, and who of the held-out ones judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memguard.attacks.aggregate import by_patient
from memguard.auditing.live import in_a_run
from memguard.auditing.names import names_of
from memguard.auditing.sides import Sides, read_sides
from memguard.auditing.subjects import make_subject
from memguard.comparing.loaded import Loaded
from memguard.comparing.study import Study
from memguard.errors import HeldOutError
from memguard.references.halves import patient_halves

__all__ = ["Population", "read_population"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_FEWEST = 40  # held-out patients: half of them validate, half judge


@dataclass(frozen=True, kw_only=True)
class Population:
    """N training and M held-out records, of P and H patients.

    Attributes:
        sides: Both of them, as the baseline reads them.
        strata: Name -> ``(P + H,)`` truth values of patients.
        judging: ``(H,)`` held-out patients on whom arms are judged; the arms validate on the others.
        named: Whether the study says who is who, and not the data sets alone.
    """

    sides: Sides
    strata: Mapping[str, Bools]
    judging: Bools
    named: bool = False

    @property
    def patient(self) -> Ints:
        """``(N + M,)`` codes; training patients are 0 to P - 1, held-out ones P to P + H - 1."""
        return self.sides.patient

    @property
    def n_training(self) -> int:
        """N."""
        return len(self.sides.members)

    @property
    def n_patients(self) -> int:
        """P."""
        return self.sides.members.n_patients

    @property
    def tokens(self) -> Ints:
        """``(N + M,)`` predicted tokens."""
        return self.sides.target.tokens

    def halves(self, seeds: int, seed: int) -> Bools:
        """``(2 seeds, P)`` whom each model of an arm is trained on, the same in every arm."""
        return patient_halves(np.ones(self.n_patients, np.bool_), 2 * seeds, seed=seed)

    def rows_of(self, patients: Bools) -> Ints:
        """Training records of some of the P patients."""
        return np.flatnonzero(patients[self.patient[: self.n_training]])

    def held_out_rows(self, *, judging: bool) -> Ints:
        """Held-out records of the patients who judge, or of the others."""
        chosen = self.judging if judging else ~self.judging
        return np.flatnonzero(chosen[self.patient[self.n_training :] - self.n_patients])

    def of_patients(self, loss: Floats) -> Floats:
        """``(P + H,)`` mean loss per predicted token of each patient, from ``(N + M,)`` losses of records."""
        weight = np.maximum(self.tokens, 1).astype(np.float64)
        found = by_patient(self.patient, loss * weight, weight, missing="drop")
        out = np.full(self.n_patients + self.judging.size, np.nan)
        out[found.patient] = found.nats_per_token
        return out


def read_population(study: Study, loaded: Loaded, module: pl.LightningModule) -> Population:
    """Read all records of both sides once.

    Args:
        study: What is compared.
        loaded: Its data.
        module: Any module of the baseline.

    Raises:
        HeldOutError: If there are fewer than 40 held-out patients.
        MemguardError: If records, patients or losses cannot be told.
    """
    sides = in_a_run(
        module,
        loaded.whole(),
        read_sides,
        record_to_patient=study.record_to_patient,
        per_record_loss=study.per_record_loss,
    )
    n_held_out = sides.held_out.n_patients
    if n_held_out < _FEWEST:
        raise HeldOutError(
            f"{n_held_out} held-out patients",
            "half of them are for the arms to validate on, and the others judge",
            f"validate on {_FEWEST} patients or more, better on several hundred",
        )
    owners = [
        one
        for one in (loaded.datamodule, loaded.train.dataset, loaded.held_out.dataset, module)
        if one is not None
    ]
    subject, _ = make_subject(sides, names=names_of(study.vocabulary, owners), strata=study.strata)
    n = sides.members.n_patients + n_held_out
    strata = {}
    for name, of_record in subject.strata.items():
        of_patient = np.zeros(n, np.bool_)
        of_patient[sides.patient[of_record]] = True
        strata[name] = of_patient
    judging = np.random.default_rng([study.seed, 29]).permutation(n_held_out) % 2 == 0
    given = study.record_to_patient
    named = given is not None and not (isinstance(given, str) and given == "auto")
    return Population(sides=sides, strata=strata, judging=judging, named=named)
