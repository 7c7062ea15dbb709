from __future__ import annotations

import time
from collections import Counter, defaultdict

import numpy as np
import pytest

from memguard.errors import DataError
from memguard.records.content import Ragged, RecordContent
from memguard.records.incidence import discretize, incidence
from memguard.records.patients import PatientMap
from memguard.records.rarity import rarity


def naive(rows, patient, k, known=None, static=2):
    """The definitions, patient by patient, with sets."""
    carried, first = defaultdict(set), {}
    for row, one in zip(rows, patient, strict=True):
        carried[one] |= set(row)
        first.setdefault(one, tuple(row[:static]))
    people = sorted(carried)
    carriers = Counter(code for codes in carried.values() for code in codes)
    key = first if known is None else {one: frozenset(carried[one] & set(known)) for one in people}
    classes = Counter(key[one] for one in people)
    result = []
    for one in people:
        counts = [carriers[code] for code in carried[one]]
        idf = [np.log(len(people) / c) for c in counts]
        result.append(
            (
                sum(c <= k for c in counts),
                min(counts, default=0),
                np.mean(idf) if idf else np.nan,
                classes[key[one]],
            )
        )
    return people, result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("known", [None, [3, 4, 5, 99], []])
def test_against_the_definitions(seed, known):
    rng = np.random.default_rng(seed)
    n = 120
    offset = 0 if seed < 3 else 2**30  # codes of a vocabulary too large to tabulate
    rows = [(offset + rng.zipf(1.5, rng.integers(0, 9)) % 40).tolist() for _ in range(n)]
    known = None if known is None else [offset + code for code in known]
    patient = rng.integers(0, 50, n).tolist() if seed else list(range(n))
    table = rarity(
        RecordContent.from_codes(Ragged.from_lists(rows)), patient, rare_at_most=2, quasi_identifiers=known
    )
    people, wanted = naive(rows, patient, 2, known)
    assert table.ids.tolist() == people
    assert table.n_rare_codes.tolist() == [row[0] for row in wanted]
    assert table.min_code_patients.tolist() == [row[1] for row in wanted]
    np.testing.assert_allclose(table.mean_idf, [row[2] for row in wanted])
    assert table.equivalence_class.tolist() == [row[3] for row in wanted]
    assert table.unique.tolist() == [row[3] == 1 for row in wanted]
    assert len(table) == len(people)


def test_the_order_of_static_codes_counts_and_their_number():
    content = RecordContent.from_codes(Ragged.from_lists([[1, 2, 3], [2, 1, 3], [1, 2, 4], [1]]))
    assert rarity(content, range(4)).equivalence_class.tolist() == [2, 1, 2, 1]
    assert rarity(content, range(4), static=1).equivalence_class.tolist() == [3, 1, 3, 3]
    assert rarity(content, range(4), static=0).equivalence_class.tolist() == [4] * 4


def test_what_was_not_seen_counts_for_nothing():
    content = RecordContent(
        kind="codes",
        codes=Ragged.from_lists([[1], [], [1], [2]]),
        observed=np.array([True, False, True, True]),
    )
    patients = PatientMap(np.array([10, 11, 12, 13]), np.array([0, 1, 2, -1]), "test")
    table = rarity(content, patients)
    assert table.min_code_patients.tolist() == [2, 0, 2, 0]
    assert table.equivalence_class.tolist() == [2, 0, 2, 0]
    assert table.mean_idf.tolist()[0] == 0.0
    assert np.isnan(table.mean_idf[[1, 3]]).all()
    frame = table.frame()
    assert frame["patient"].to_list() == [10, 11, 12, 13]
    assert frame.width == 6
    words = rarity(RecordContent.from_codes(Ragged.from_lists([[1], [2]])), ["x", "y"]).frame()
    assert words["patient"].to_list() == ["x", "y"]
    nobody = rarity(RecordContent.from_codes(Ragged.from_lists([])), [])
    assert len(nobody.frame()) == 0


def test_features():
    rng = np.random.default_rng(0)
    x = np.zeros((200, 6), np.float32)
    x[:, 0] = rng.normal(size=200)  # continuous: tells nobody apart
    x[:, 1] = np.arange(200) < 120  # the zeros are rarer
    x[7, 2] = 1  # multi-hot, one patient
    x[:, 3] = rng.integers(0, 5, 200) / 3
    x[:, 5] = -1.5  # constant
    content = RecordContent.from_features(x)
    codes = discretize(content)
    assert [sorted(codes[7].tolist()), codes[150].tolist()[0]] == [
        sorted([64 * 2 + 1, 64 * 3 + round(3 * x[7, 3])]),
        64,
    ]
    table = rarity(content, range(200))
    assert table.n_rare_codes.tolist() == [int(i == 7) for i in range(200)]
    assert table.min_code_patients[7] == 1
    key = [tuple(row) for row in x[:, 1:].tolist()]
    assert table.equivalence_class.tolist() == [key.count(one) for one in key]
    by_column = rarity(content, range(200), quasi_identifiers=[3]).equivalence_class
    assert by_column.tolist() == [int((x[:, 3] == one).sum()) for one in x[:, 3]]
    with pytest.raises(DataError, match="column 3 to 6 of 6"):
        rarity(content, range(200), quasi_identifiers=[6, 3])
    assert (rarity(content, range(200), quasi_identifiers=[]).equivalence_class == 200).all()
    binned = discretize(content, continuous_bins=10)
    assert (np.bincount(binned.values[binned.values < 64], minlength=10) == 20).all()


def test_a_continuous_quasi_identifier_is_known_in_bands():
    rng = np.random.default_rng(1)
    age, sex, weight = rng.permutation(300), rng.integers(0, 2, 300), rng.normal(size=300)
    content = RecordContent.from_features(np.column_stack([weight, age, sex]))
    assert (rarity(content, range(300), quasi_identifiers=[1]).equivalence_class == 30).all()
    both = rarity(content, range(300), quasi_identifiers=[1, 2])
    known = [(one // 30, other) for one, other in zip(age, sex, strict=True)]
    assert both.equivalence_class.tolist() == [known.count(one) for one in known]
    assert not both.unique.any()
    assert (both.n_rare_codes == 0).all()  # a band makes a class, and never a rare code
    patient = np.arange(300) // 2  # two records each: both of them are known
    pairs = [frozenset(known[2 * i : 2 * i + 2]) for i in range(150)]
    halves = [({a for a, _ in one}, {s for _, s in one}) for one in pairs]
    two = rarity(content, patient, quasi_identifiers=[1, 2])
    # of two values only the rarer one is a code: a patient with both carries it as one with it alone does
    rarer = int(sex.mean() <= 0.5)
    halves = [(frozenset(ages), rarer in sexes) for ages, sexes in halves]
    assert two.equivalence_class.tolist() == [halves.count(one) for one in halves]


def test_wrong_lengths_are_refused():
    content = RecordContent.from_codes(Ragged.from_lists([[1], [2]]))
    with pytest.raises(DataError, match="3 patients for 2 records"):
        rarity(content, [1, 2, 3])
    with pytest.raises(DataError, match="1 patients for 2 records"):
        rarity(content, PatientMap.from_ids([1], source="test"))


def test_counts_over_all_records_of_a_patient():
    table = incidence(RecordContent.from_codes(Ragged.from_lists([[3, 3], [3, 8], [8]])), [1, 1, 2])
    assert table.counts.toarray().tolist() == [[3, 1], [0, 1]]
    assert table.code_patients().tolist() == [1, 2]
    assert table.rows.tolist() == [0, 0, 1]


def test_a_hundred_thousand_patients_take_seconds():
    rng = np.random.default_rng(0)
    codes = Ragged.from_lengths(rng.zipf(1.3, 3_000_000) % 5000, np.full(100_000, 30))
    start = time.process_time()
    table = rarity(RecordContent.from_codes(codes), np.arange(100_000))
    assert time.process_time() - start < 6
    assert len(table) == 100_000
