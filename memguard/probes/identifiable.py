"""Who could be recognized, if the model gave them away: facts of each patient that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.records.content import RecordContent
from memguard.records.duplicates import near_duplicates
from memguard.records.patients import PatientMap
from memguard.records.rarity import RarityTable, rarity

__all__ = ["PatientFacts", "identifiable", "patient_facts"]


@dataclass(frozen=True, kw_only=True)
class PatientFacts:
    """Facts about each of ``P`` patients, within the records that were given and nowhere else.

    Attributes:
        rare_codes: int64 ``(P,)``, how many rare codes the patient carries.
        rarest_code_patients: int64 ``(P,)``, patients with the patient's rarest code, the patient included.
        equivalence_class: int64 ``(P,)``, patients who share the quasi-identifiers, the patient included.
        near_duplicates: int64 ``(P,)``, other patients in the same chain of nearly equal ones.
        identifiable: bool ``(P,)``, see `identifiable`.
    """

    rare_codes: NDArray[np.int64]
    rarest_code_patients: NDArray[np.int64]
    equivalence_class: NDArray[np.int64]
    near_duplicates: NDArray[np.int64]
    identifiable: NDArray[np.bool_]


def identifiable(table: RarityTable) -> NDArray[np.bool_]:
    """Which patients carry a rare code, or are alone in their equivalence class.

    Rare here need not be rare in the world, and who is common here may be unique to somebody who knows more
    than the quasi-identifiers.

    Args:
        table: Of ``P`` patients.

    Returns:
        bool ``(P,)``. A patient of whom no record has been seen is not identifiable.

    References:
        An equivalence class of one: Sweeney 2002, k-anonymity (doi 10.1142/S0218488502001648), k = 1.

    Example:
        >>> from memguard.records.content import Ragged
        >>> records = Ragged.from_lists([[1, 5], [1, 5], [1, 5, 6], [2, 5]])
        >>> table = rarity(RecordContent.from_codes(records), list("abcd"), rare_at_most=1)
        >>> identifiable(table).tolist()  # c carries 6, d is alone with 2
        [False, False, True, True]
    """
    found: NDArray[np.bool_] = (table.n_rare_codes > 0) | table.unique
    return found


def patient_facts(
    content: RecordContent,
    patients: PatientMap,
    *,
    rare_at_most: int = 3,
    quasi_identifiers: Sequence[int] | None = None,
    seed: int = 0,
) -> PatientFacts:
    """Count what tells each patient from the others.

    Args:
        content: N records.
        patients: The patient of each.
        rare_at_most: A code is rare when at most so many patients carry it.
        quasi_identifiers: Codes (of feature vectors: columns) that somebody else may know; see
            `memguard.records.rarity.rarity`.
        seed: Of the search for near-duplicates.

    Returns:
        Facts of the ``P`` patients, in the order of their codes.

    Raises:
        DataError: If a quasi-identifier does not exist.

    Example:
        >>> from memguard.records.content import Ragged
        >>> records = RecordContent.from_codes(Ragged.from_lists([range(9), range(9), range(4, 13)]))
        >>> facts = patient_facts(records, PatientMap.of_records(3), rare_at_most=1)
        >>> facts.near_duplicates.tolist(), facts.identifiable.tolist()
        ([1, 1, 0], [False, False, True])
    """
    table = rarity(content, patients, rare_at_most=rare_at_most, quasi_identifiers=quasi_identifiers)
    near = near_duplicates(content, patients, seed=seed)
    return PatientFacts(
        rare_codes=table.n_rare_codes,
        rarest_code_patients=table.min_code_patients,
        equivalence_class=table.equivalence_class,
        near_duplicates=near.cluster_size - 1,
        identifiable=identifiable(table),
    )
