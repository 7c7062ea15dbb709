"""Which reference is trained on whom: halves of the patients, in complementary pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.errors import ReferenceModelError

__all__ = ["halves", "patient_halves"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def patient_halves(member: Bools, n_models: int, *, seed: int = 0) -> Bools:
    """Draw halves of the patients, so that each patient is in exactly half of an even number of models.

    Model ``2 j + 1`` is trained on everybody on whom model ``2 j`` was not. Members and held-out patients are
    divided by themselves, so that a model that saw a patient is as frequent among held-out patients as among
    members. The division of a pair depends on the seed and on ``j`` alone: more models leave those that exist
    as they are.

    Args:
        member: ``(P,)`` whether the audited model was trained on the patient.
        n_models: K. The last model of an odd number has no complement; its patients are in one model more.
        seed: Of the draw.

    Returns:
        ``(K, P)``.

    Raises:
        ReferenceModelError: If there is no model, or fewer than two patients.

    Guarantees:
        The draw knows nothing of a patient but the side. A side of an odd number is divided as evenly as it
        can be, and which model of a pair gets the odd patient is drawn.

    References:
        Carlini et al. 2022, "Membership inference attacks from first principles", arXiv:2112.03570, section
        VI-A (each example in half of the shadow models).

    Example:
        >>> masks = patient_halves(np.array([True] * 6 + [False] * 2), 4)
        >>> masks.sum(0).tolist(), masks[:, :6].sum(1).tolist()
        ([2, 2, 2, 2, 2, 2, 2, 2], [3, 3, 3, 3])
        >>> bool((masks[1] == ~masks[0]).all())
        True
    """
    member = np.asarray(member, dtype=bool)
    if n_models < 1 or member.ndim != 1 or member.size < 2:
        raise ReferenceModelError(
            f"{n_models} models for {member.size} patients",
            "a reference is trained on half of the patients, and asked about the other half",
            "ask for at least one model, and pass at least two patients",
        )
    masks = np.zeros((n_models, member.size), dtype=bool)
    for first in range(0, n_models, 2):
        rng = np.random.default_rng([seed, first // 2, 17])
        # Two odd sides: the model with one member more gets one held-out patient less, so that sizes are equal.
        more = bool(rng.random() < 0.5)
        for side in (member, ~member):
            patients = rng.permutation(np.flatnonzero(side))
            odd = patients.size % 2
            masks[first, patients[: patients.size // 2 + (odd and more)]] = True
            more = more != bool(odd)
        if first + 1 < n_models:
            masks[first + 1] = ~masks[first]
    return masks


def halves(patient: Ints, member: Bools, n_models: int, *, seed: int = 0) -> Bools:
    """The same for records: all records of a patient are in the same models.

    Args:
        patient: ``(N + M,)`` codes of patients.
        member: ``(N + M,)`` whether the audited model was trained on the record.
        n_models: K.
        seed: Of the draw.

    Returns:
        ``(K, N + M)``, the ``in_mask`` of a pool.

    Raises:
        ReferenceModelError: If a patient stands on both sides, or there are too few.

    Guarantees:
        Halves are equal in patients, not in records: where few patients have most of the records, the halves
        may be of unlike size.

    Example:
        >>> halves(np.array([4, 4, 9, 9, 2]), np.array([True, True, True, True, False]), 2).sum(0).tolist()
        [1, 1, 1, 1, 1]
    """
    patient, member = np.asarray(patient), np.asarray(member, dtype=bool)
    if patient.shape != member.shape or patient.ndim != 1:
        raise ReferenceModelError(
            f"patients of shape {patient.shape} and sides of shape {member.shape}",
            "records would be given to the wrong half",
            "pass one patient and one side for each record",
        )
    ids, first, code = np.unique(patient, return_index=True, return_inverse=True)
    if (member[first][code] != member).any():
        raise ReferenceModelError(
            f"{np.unique(patient[member[first][code] != member]).size} patients on both sides",
            "a held-out patient must be a stranger to the audited model",
            "split by patient",
        )
    if ids.size < 2:
        raise ReferenceModelError(
            f"{ids.size} patient",
            "there is nobody to leave out",
            "pass records of at least two patients",
        )
    return patient_halves(member[first], n_models, seed=seed)[:, code]
