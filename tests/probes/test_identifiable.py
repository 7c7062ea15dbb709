"""Who could be recognized: a rule that can be written down in a few lines, and what stands where nothing is known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from memguard.errors import MemguardWarning
from memguard.probes.contents import Contents
from memguard.probes.identifiable import identifiable, patient_facts
from memguard.probes.sides import Side
from memguard.records.content import Ragged, RecordContent
from memguard.records.patients import PatientMap
from memguard.records.rarity import rarity


def people(n: int = 300) -> tuple[list[list[int]], PatientMap]:
    """One to three records a patient, of codes from a long tail."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(n), rng.integers(1, 4, n))
    records = [rng.zipf(1.6, rng.integers(3, 9)).clip(max=400).tolist() for _ in owner]
    return records, PatientMap.from_ids(owner.tolist(), source="a list")


def members(records: list[list[int]], patients: PatientMap, *, unseen: int = 0) -> Side:
    side = Side.of(patients)
    seen = np.arange(len(records) - unseen)
    width = max(map(len, records))
    codes = np.array([row + [0] * (width - len(row)) for row in records])[seen]
    side.store.add(seen, codes=codes, mask=codes > 0)
    return side


@pytest.mark.parametrize("rare_at_most", [1, 3, 20])
@pytest.mark.parametrize("quasi_identifiers", [(1, 2, 3), (7,), ()])
def test_identifiable_is_a_rare_code_or_a_class_of_one(
    rare_at_most: int, quasi_identifiers: tuple[int, ...]
) -> None:
    records, patients = people()
    carried: list[set[int]] = [set() for _ in range(patients.n_patients)]
    for row, code in zip(records, patients.code, strict=True):
        carried[code] |= set(row)
    carriers = Counter(code for codes in carried for code in codes)
    classes = Counter(frozenset(codes & set(quasi_identifiers)) for codes in carried)
    wanted = [
        any(carriers[code] <= rare_at_most for code in codes)
        or classes[frozenset(codes & set(quasi_identifiers))] == 1
        for codes in carried
    ]
    content = RecordContent.from_codes(Ragged.from_lists(records))
    table = rarity(content, patients, rare_at_most=rare_at_most, quasi_identifiers=quasi_identifiers)
    assert identifiable(table).tolist() == wanted
    assert 0 < sum(wanted) < len(wanted)


def test_a_copy_is_a_near_duplicate_and_not_alone() -> None:
    records, patients = [list(range(1, 11)), list(range(1, 11)), list(range(5, 20))], PatientMap.of_records(3)
    facts = patient_facts(RecordContent.from_codes(Ragged.from_lists(records)), patients, rare_at_most=1)
    assert facts.near_duplicates.tolist() == [1, 1, 0]
    assert facts.equivalence_class.tolist() == [2, 2, 1]
    assert facts.identifiable.tolist() == [False, False, True]


def test_facts_are_of_the_members_alone_and_nobody_unseen_is_identifiable() -> None:
    records, patients = people()
    nobody = Side.of(PatientMap.of_records(40))
    facts = Contents(members(records, patients, unseen=60), nobody).facts(rare_at_most=2)
    assert facts is not None
    unseen = ~np.isin(np.arange(patients.n_patients), patients.code[: len(records) - 60])
    assert unseen.sum() > 20
    assert not facts.identifiable[unseen].any()
    assert facts.equivalence_class[~unseen].min() == 1
    assert Contents(nobody, members(records, patients)).facts() is None


def test_a_quasi_identifier_that_does_not_exist_is_a_warning() -> None:
    side = Side.of(PatientMap.of_records(30))
    side.store.add(np.arange(30), x=np.random.default_rng(0).normal(size=(30, 2)))
    with pytest.warns(MemguardWarning, match="no rarity facts .*quasi-identifiers from column 9"):
        assert Contents(side, side).facts(quasi_identifiers=[9]) is None
