"""Poisson draws over patients: the coins, the caps, the parts, and that no part goes astray."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from memguard.errors import PrivacyError
from memguard.privacy.draws import Chunk, balance, expected_draw, n_chunks, whole_draw
from memguard.privacy.sampling import PatientSampler

SEED = bytes(range(32))
FALSE_ALARM = 1e-7  # of each test on random numbers; seeds are fixed besides
NONE = np.empty(0, np.int64)


def make(owner, **kwargs):
    given = {"rates": 0.1, "steps": 1, "chunks": 1, "max_records": None, "seed": SEED}
    return PatientSampler(owner, **{**given, **kwargs})


def passed(sampler):
    """One pass, as a loop takes it: the chunks of each draw."""
    chunks = [sampler.take(batch) for batch in sampler]
    return [list(draw) for _, draw in itertools.groupby(chunks, key=lambda chunk: chunk.draw)]


def inclusions(sampler):
    """(draws, patients) whether a patient was in a draw."""
    drawn = [np.concatenate([chunk.positions for chunk in draw]) for draw in passed(sampler)]
    seen = np.zeros((len(drawn), sampler.n_patients), dtype=bool)
    for row, positions in enumerate(drawn):
        seen[row, sampler.owner_of_record[positions]] = True
    return seen


def in_chi2(statistic, df):
    return chi2.ppf(FALSE_ALARM / 2, df) < statistic < chi2.isf(FALSE_ALARM / 2, df)


def poisson_problems(seen, rates):
    """What about these inclusions is not one independent coin of the given rate for each patient and draw."""
    draws, patients = seen.shape
    q = np.broadcast_to(rates, patients)
    z = (seen - q) / np.sqrt(q * (1 - q))
    limit = norm.isf(FALSE_ALARM / 2)
    variance = (q * (1 - q)).sum()
    found = {
        "sizes": in_chi2(((seen.sum(1) - q.sum()) ** 2 / variance).sum(), draws),
        "counts": in_chi2(((seen - q).sum(0) ** 2 / (draws * q * (1 - q))).sum(), patients),
        "mean": abs((seen - q).sum() / np.sqrt(draws * variance)) < limit,
        "next draw": abs((z[1:] * z[:-1]).sum() / np.sqrt((draws - 1) * patients)) < limit,
        "neighbours": abs((z[:, 1:] * z[:, :-1]).sum() / np.sqrt(draws * (patients - 1))) < limit,
        "far pairs": abs((z[:, ::2] * z[:, 1::2][:, ::-1]).sum() / np.sqrt(draws * patients / 2)) < limit,
    }
    return {name for name, fine in found.items() if not fine}


# -- the coins ---


OWNER = np.repeat(np.arange(400), 2)
STRATA = np.where(np.arange(400) % 3 == 0, 0.25, 0.04)


@pytest.mark.parametrize("rates", [0.07, 0.6, STRATA, np.linspace(0.05, 0.5, 400)])
def test_each_patient_has_his_own_coin(rates):
    seen = inclusions(make(OWNER, rates=rates, steps=1500, chunks=3, max_records=1))
    assert seen.shape == (1500, 400)
    assert poisson_problems(seen, rates) == set()


def test_the_tests_of_coins_find_what_are_none():
    rng = np.random.default_rng(0)
    fixed = np.argsort(rng.random((1500, 400)), axis=1) < 28
    assert "sizes" in poisson_problems(fixed, 0.07)
    epochs = np.zeros((1500, 400), dtype=bool)
    for epoch in range(100):  # shuffled, each patient once in 15 draws
        place = rng.permutation(400) % 15
        epochs[epoch * 15 : epoch * 15 + 15] = place == np.arange(15)[:, None]
    assert {"counts", "next draw"} <= poisson_problems(epochs, 1 / 15)
    pairs = np.repeat(rng.random((1500, 200)) < 0.07, 2, axis=1)
    assert "neighbours" in poisson_problems(pairs, 0.07)


def test_a_rate_of_one_is_everybody_and_of_zero_nobody():
    seen = inclusions(make(OWNER, rates=np.where(np.arange(400) < 7, 1.0, 0.0), steps=5))
    assert (seen == (np.arange(400) < 7)).all()


def test_a_second_pass_goes_on_with_new_draws():
    sampler = make(OWNER, rates=0.07, steps=750)
    seen = np.concatenate([inclusions(sampler), inclusions(sampler)])
    assert poisson_problems(seen, 0.07) == set()
    assert len(np.unique(seen, axis=0)) == 1500


def test_numbers_of_draws_never_come_twice():
    sampler = make(OWNER, steps=4, chunks=2)
    numbers = [draw[0].draw for _ in range(3) for draw in passed(sampler)]
    assert len(set(numbers)) == 12


def test_the_seed_is_the_draw():
    one, same, other = make(OWNER), make(OWNER), make(OWNER, seed=bytes(32))
    assert list(one) == list(same) != list(other)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert SEED.hex() not in one.fingerprint


def test_processes_that_prefetch_differently_far_stay_together():
    near, far = make(OWNER, steps=20), make(OWNER, steps=20)
    for sampler, ahead in ((near, 3), (far, 17)):  # an epoch that is cut short
        batches = iter(sampler)
        for _ in range(ahead):
            next(batches)
    assert list(near) == list(far)


def test_patients_without_records_and_records_without_patients_are_left_out():
    sampler = make([-1, 0, -1, 2, 2], rates=1.0, steps=3)
    assert list(sampler) == [[1, 3, 4]] * 3
    assert sampler.used.tolist() == [1, 3, 4]
    assert sampler.n_patients == 3


# -- the cap ---


def test_at_most_so_many_records_of_a_patient():
    owner = np.random.default_rng(1).permutation(np.repeat([0, 1, 2, 3], [1, 3, 4, 12]))
    times = np.zeros(len(owner))
    steps = 3000
    for draw in passed(make(owner, rates=1.0, steps=steps, chunks=2, max_records=3)):
        positions = np.concatenate([chunk.positions for chunk in draw])
        assert len(np.unique(positions)) == len(positions)
        assert np.bincount(owner[positions]).tolist() == [1, 3, 3, 3]
        times[positions] += 1
    assert (times[owner <= 1] == steps).all()
    for patient, share in ((2, 3 / 4), (3, 3 / 12)):
        counts = times[owner == patient]
        # Without replacement the counts are correlated; their sum is fixed, and the statistic has one df less.
        n = len(counts)
        statistic = ((counts - steps * share) ** 2).sum() / (steps * share * (1 - share) * n / (n - 1))
        assert in_chi2(statistic, n - 1)


def test_records_of_a_patient_stand_together_in_the_order_of_the_dataset():
    owner = np.random.default_rng(2).integers(0, 30, 200)
    for chunk in itertools.chain(*passed(make(owner, rates=0.5, steps=20, chunks=3, max_records=4))):
        assert (np.diff(chunk.owner) >= 0).all()
        real = owner[chunk.positions]
        assert len(set(zip(real.tolist(), chunk.owner.tolist(), strict=True))) == chunk.n_owners
        for one in range(chunk.n_owners):
            assert (np.diff(chunk.positions[chunk.owner == one]) > 0).all()


# -- the parts ---


@st.composite
def cohorts(draw):
    owner = draw(st.lists(st.integers(-1, 12), min_size=1, max_size=60).filter(lambda o: max(o) >= 0))
    return {
        "owner": np.asarray(owner),
        "rates": draw(
            st.one_of(
                st.sampled_from([1e-9, 0.1, 0.5, 1.0]),
                st.lists(st.floats(0, 1), min_size=13, max_size=13).filter(any),
            )
        ),
        "steps": draw(st.integers(1, 3)),
        "chunks": draw(st.integers(1, 5)),
        "max_records": draw(st.none() | st.integers(1, 4)),
        "seed": draw(st.binary(min_size=8, max_size=40)),
    }


@settings(deadline=None, max_examples=150, derandomize=True)
@given(cohorts(), st.integers(1, 4))
def test_parts_of_all_processes_are_the_draw(cohort, world):
    owner = cohort.pop("owner")
    alone = passed(make(owner, **cohort))
    ranks = [make(owner, **cohort, rank=rank, world=world) for rank in range(world)]
    shares = [passed(sampler) for sampler in ranks]
    for sampler in ranks:
        assert len(sampler) == cohort["steps"] * cohort["chunks"]
    assert len(alone) == cohort["steps"]
    for step, draw in enumerate(alone):
        whole = np.sort(np.concatenate([chunk.positions for chunk in draw]))
        cells = [chunk for share in shares for chunk in share[step]]
        assert len(cells) == world * cohort["chunks"]
        assert np.array_equal(np.sort(np.concatenate([chunk.positions for chunk in cells])), whole)
        patients = [owner[np.unique(chunk.positions)] for chunk in cells]
        assert sum(len(set(p.tolist())) for p in patients) == len(set(owner[whole].tolist()))
        for share in shares:
            assert whole_draw(share[step]) == draw[0].draw
        # What is drawn is what the cap leaves of each patient, and every process has its part of every part.
        most = cohort["max_records"] or 60
        records = np.minimum(np.bincount(owner[whole], minlength=1), most)
        fullest = max(len(chunk.positions) for chunk in cells)
        assert fullest <= len(whole) / len(cells) + records.max(initial=0)
        if len(whole) and records.max() == 1:
            assert fullest - min(len(chunk.positions) for chunk in cells) <= 1
        for patient in set(owner[whole].tolist()):
            assert (owner[whole] == patient).sum() == min((owner == patient).sum(), most)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 7))
def test_balance_is_the_greedy_one_and_keeps_its_bound(sizes, cells):
    cell = balance(np.asarray(sizes, dtype=np.int64), cells)
    loads, naive = [0] * cells, [0] * len(sizes)
    for patient in sorted(range(len(sizes)), key=lambda p: -sizes[p]):
        naive[patient] = loads.index(min(loads))
        loads[naive[patient]] += sizes[patient]
    found = np.bincount(cell, weights=sizes, minlength=cells) if sizes else np.zeros(cells)
    assert sorted(found) == sorted(loads)
    assert found.max(initial=0) <= sum(sizes) / cells + max(sizes, default=0)


def test_at_a_tiny_rate_draws_are_empty_and_batches_are_not():
    sampler = make(OWNER, rates=1e-7, steps=50, chunks=2, carrier=5)
    batches = list(sampler)
    assert batches == [[5]] * 100
    chunks = [sampler.take(batch) for batch in batches]
    assert all(chunk.empty and len(chunk.positions) == 0 and chunk.n_owners == 0 for chunk in chunks)


def test_expected_records_are_those_of_draws():
    rng = np.random.default_rng(3)
    owner, rates = np.sort(rng.integers(0, 50, 400)), rng.uniform(0.05, 0.4, 50)
    mean, sd = expected_draw(rates, np.bincount(owner, minlength=50), 6)
    sizes = np.array([len(batch) for batch in make(owner, rates=rates, steps=3000, max_records=6)])
    assert abs(sizes.mean() - mean) < norm.isf(FALSE_ALARM / 2) * sd / np.sqrt(3000)
    assert in_chi2(((sizes - mean) ** 2).sum() / sd**2, 3000)


def test_parts_fit_in_memory():
    owner = np.random.default_rng(4).integers(0, 600, 3000)
    records = np.bincount(owner)
    k = n_chunks(*expected_draw(0.2, records, 4), 64)
    sampler = make(owner, rates=0.2, steps=400, chunks=k, max_records=4)
    assert max(map(len, sampler)) <= 64 + 4
    assert n_chunks(0.0, 0.0, 8) == 1
    assert n_chunks(100.0, 1.0, 53) == 2
    with pytest.raises(PrivacyError, match="physical=0"):
        n_chunks(1, 1, 0)


# -- no part goes astray ---


def chunk(draw, part, parts):
    return Chunk(draw, part, parts, NONE, NONE, 0)


MIXTURES = {
    "two draws": [chunk(0, 0, 2), chunk(1, 1, 2)],
    "end and beginning": [chunk(0, 1, 2), chunk(1, 0, 2)],
    "one missing": [chunk(0, 0, 3), chunk(0, 2, 3)],
    "not begun": [chunk(0, 1, 2)],
    "not ended": [chunk(0, 0, 2)],
    "twice": [chunk(0, 0, 2), chunk(0, 0, 2)],
    "two whole draws": [chunk(0, 0, 1), chunk(1, 0, 1)],
    "one too many": [chunk(0, 0, 1), chunk(0, 0, 1)],
    "order": [chunk(0, 1, 2), chunk(0, 0, 2)],
    "other parts": [chunk(0, 0, 2), chunk(0, 1, 3)],
    "nothing": [],
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_step_on_anything_but_one_whole_draw_is_refused(name):
    with pytest.raises(PrivacyError):
        whole_draw(MIXTURES[name])


def test_a_batch_that_is_not_the_next_is_refused():
    sampler = make(OWNER, rates=0.2, steps=3)
    with pytest.raises(PrivacyError, match="belongs to no draw"):
        sampler.take([1])
    first, second, _ = list(sampler)
    for wrong in (second, first[:-1], first[::-1], [*first, 0], []):
        with pytest.raises(PrivacyError, match="was to come"):
            sampler.take(wrong)
    assert sampler.take(np.asarray(first)).positions.tolist() == first
    with pytest.raises(PrivacyError, match="was to come"):
        sampler.take(first)
    assert sampler.take(second).draw == 1


def test_a_new_pass_forgets_what_was_under_way():
    sampler = make(OWNER, rates=0.2, steps=5)
    old = list(itertools.islice(sampler, 3))
    new = list(sampler)
    with pytest.raises(PrivacyError):
        sampler.take(old[0])
    assert [sampler.take(batch).draw for batch in new] == [5, 6, 7, 8, 9]
    with pytest.raises(PrivacyError, match="no draw"):
        sampler.take(new[-1])


def test_two_iterations_at_once_are_refused():
    sampler = make(OWNER, rates=0.2, steps=5)
    one = iter(sampler)
    next(one)
    iter(sampler)  # asked for, not used: as torch does when workers persist
    next(one)
    next(iter(sampler))
    with pytest.raises(PrivacyError, match="two iterations"):
        next(one)


# -- a run that goes on in the middle of a draw ---


def test_the_interrupted_draw_is_made_up_for_by_a_smaller_whole_one():
    sampler = make(OWNER, steps=3, chunks=4, rates=0.3)
    sampler.skip = 3
    list(itertools.islice(sampler, 2))  # a loader that is asked twice before anything is taken
    draws = passed(sampler)
    assert [len(draw) for draw in draws] == [1, 4, 4]
    for draw in draws:
        whole_draw(draw)
    assert sampler.skip == 0
    assert [len(draw) for draw in passed(sampler)] == [4, 4, 4]


@pytest.mark.parametrize("rates", [0.4, STRATA])
def test_the_smaller_draw_is_poisson_too(rates):
    rows = []
    for number in range(400):
        sampler = make(OWNER, steps=1, chunks=4, rates=rates, seed=number.to_bytes(8, "big"))
        sampler.skip = 3
        rows.append(inclusions(sampler)[0])
    assert poisson_problems(np.array(rows), np.asarray(rates) / 4) == set()


# -- what is refused ---


REFUSED = {
    "rate above one": {"rates": 1.5},
    "rate of nobody": {"rates": 0.0},
    "negative rate": {"rates": [0.5] * 399 + [-0.1]},
    "rate that is no number": {"rates": float("nan")},
    "a patient without a rate": {"rates": [0.5] * 399},
    "rates in a table": {"rates": np.full((400, 1), 0.5)},
    "no steps": {"steps": 0},
    "no parts": {"chunks": 0},
    "no records": {"max_records": 0},
    "rank": {"rank": 2, "world": 2},
    "world": {"world": 0},
    "carrier": {"carrier": 800},
    "seed": {"seed": b"1234567"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_poisson_draw_is_refused(name):
    with pytest.raises(PrivacyError) as error:
        make(OWNER, **REFUSED[name])
    assert error.value.why and error.value.fix


@pytest.mark.parametrize("owner", [[], [-1, -1], [0.5, 1.0], [[0], [1]], ["a", "b"]])
def test_owners_that_are_no_numbers_are_refused(owner):
    with pytest.raises(PrivacyError, match="owner_of_record"):
        make(owner)


def test_constants_of_the_mechanism():
    sampler = make(OWNER, rates=STRATA)
    assert sampler.expected_patients == pytest.approx(STRATA.sum())
    assert np.array_equal(sampler.rates, STRATA)
    assert make(OWNER, rates=0.1).expected_patients == pytest.approx(40)
