"""Canaries are nobody's patients: out of every number but their own, told by marks and never by a guess."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

import memguard
from memguard.auditing.live import in_a_run
from memguard.auditing.models import prepare
from memguard.auditing.planted import find_planted
from memguard.auditing.sides import Losses, Sides, read_sides
from memguard.errors import DataError
from memguard.probes.canary import CanaryProbe
from memguard.records import Ragged, make_canaries, make_feature_canaries
from memguard.records.content import RecordContent
from memguard.records.patients import PatientMap
from tests.auditing._next_codes import NAMES, QUICK, Codes, Data, Next, fitted

pytestmark = pytest.mark.filterwarnings("ignore::memguard.MemguardWarning")


def some_canaries(m=40, seed=3, **kwargs):
    records = Ragged.from_padded(Data().train.rows.numpy())
    return make_canaries(records, m, names=NAMES, n_rare=12, n_alternatives=15, seed=seed, **kwargs)


class ByHand(Dataset):
    """Patients and canaries in one data set, as a person would plant them."""

    def __init__(self, canaries, times=1, first=True):
        train, made = Codes(0, 80, 0), canaries.planted
        rows = torch.from_numpy(np.stack([made[i] for i in range(len(made))]).astype(np.int64))
        self.rows = torch.cat([rows.repeat(times, 1), train.rows] if first else [train.rows, rows])
        ids = [f"c{i}" for i in range(len(rows))] * times
        self.patient_ids = [*ids, *train.patient_ids] if first else [*train.patient_ids, *ids]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, item):
        return self.rows[item]


def sides_of(dataset, held_out=None):
    """As `read_sides` reads them, without a model."""
    held_out = held_out or Codes(1, 80, 80)
    codes = Ragged.from_padded(np.concatenate([dataset.rows.numpy(), held_out.rows.numpy()]))
    n = len(codes)
    return Sides(
        members=PatientMap.from_ids(dataset.patient_ids, source="ids"),
        held_out=PatientMap.from_ids(held_out.patient_ids, source="ids"),
        content=RecordContent.from_codes(codes),
        target=Losses(
            loss=np.arange(n, dtype=float), tokens=np.ones(n, np.int64), unit="nats/token", route="x"
        ),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    canaries = some_canaries()
    planted = memguard.PlantedCanaries(Data(), canaries, dirpath=folder)
    return fitted(planted, folder, epochs=15), planted, canaries


def test_no_number_but_their_own_knows_of_canaries(trained, tmp_path):
    module, planted, canaries = trained
    probes = ["membership", "trajectory", "copies", "canary"]
    options = {"references": 2, "backend": "sequential", "trainer": {"max_epochs": 15, "accelerator": "cpu"}}
    found = memguard.audit(module, planted, probes=probes, folder=tmp_path, **options, **QUICK)
    without = memguard.audit(
        module, planted.datamodule, probes=probes[:3], folder=tmp_path, **options, **QUICK
    )
    for name, number in without.report.numbers().items():
        assert found.report.numbers()[name] == number, name
    assert found.report.members == without.report.members
    assert found.report.canaries == canaries.included.sum() and without.report.canaries == 0
    assert not [one for one in found.ids if "canary" in str(one)]
    assert not found.subject.strata.keys() ^ without.subject.strata.keys()
    assert "canary.auc" in found.report.numbers()
    (shown,) = found.report.shown
    assert (shown.probe, shown.unit, shown.n) == ("canary", "patient", 40)
    assert any(f"{canaries.included.sum()} planted canaries were taken out" in n for n in found.report.notes)


def test_references_never_see_a_canary(trained, tmp_path):
    module, planted, canaries = trained
    seen: list[set] = []

    def work(run):
        sides = read_sides(run)
        whole = len(sides.members)
        found = find_planted(sides, training=run.capture.tracker.dataset("train"), data=planted)
        assert found.units == ("patient", "record")
        sides = sides.without(found.rows)
        assert (len(sides.members), sides.n_training) == (80, whole)

        class Watching(Next):
            def training_step(self, batch, batch_idx):
                seen.append({row.numpy().astype(np.int32).tobytes() for row in batch})
                return super().training_step(batch, batch_idx)

        made = prepare(
            run, sides, 2, model=module, datamodule=planted, factory=Watching, backend="sequential",
            trainer={"max_epochs": 1, "accelerator": "cpu"}, progress=False,
        )  # fmt: skip
        assert made.pool.in_mask.shape == (2, 160) == made.loss.shape
        # the same pool over all records, as a person may have trained it
        mask = np.zeros((2, sides.n_training + 80), bool)
        mask[:, sides.both] = made.pool.in_mask
        given = dataclasses.replace(made.pool, in_mask=mask)
        again = prepare(run, sides, given, model=module)
        assert np.array_equal(again.loss, made.loss) and again.notes == made.pool.notes
        mask[:, found.rows] = True
        given = dataclasses.replace(made.pool, in_mask=mask)
        assert "trained on canaries too" in prepare(run, sides, given, model=module).notes[-1]
        return found.rows

    rows = in_a_run(module, planted, work)
    together = set().union(*seen)
    assert rows.tolist() == list(range(80, 80 + len(rows)))
    for i in np.flatnonzero(canaries.included):
        assert canaries.sequences[i].tobytes() not in together
    assert all(row.numpy().astype(np.int32).tobytes() in together for row in Data().train.rows)


def test_the_loader_of_canaries_in_the_place_of_the_datamodule(trained, tmp_path):
    module, planted, canaries = trained
    pair = planted.train_dataloader(), planted.val_dataloader()
    found = memguard.audit(
        module, pair, references="none", probes=["membership", "canary"], folder=tmp_path, **QUICK
    )
    assert found.report.canaries == canaries.included.sum() and "canary.auc" in found.report.numbers()


def test_strata_and_static_tokens_for_all_records_or_for_those_that_are_asked_about(trained, tmp_path):
    module, planted, canaries = trained
    k = int(canaries.included.sum())
    early = np.arange(80 + k + 80) % 2 == 0
    options = {"references": "none", "probes": ["membership"], "folder": tmp_path, **QUICK}
    whole = memguard.audit(module, planted, strata={"s": early}, static=np.full(160 + k, 2), **options)
    own = np.delete(early, np.arange(80, 80 + k))
    some = memguard.audit(module, planted, strata={"s": own}, static=np.full(160, 2), **options)
    assert np.array_equal(whole.subject.strata["s"], own) and whole.subject.static.tolist() == [2] * 160
    assert np.array_equal(some.subject.strata["s"], own)
    with pytest.raises(DataError, match="a stratum"):
        memguard.audit(module, planted, strata={"s": own[:-1]}, **options)


# -- where they are ------------------------------------------------------------------------------------------


def marked(canaries, data=None):
    planted = memguard.PlantedCanaries(data or Data(), canaries)
    return planted.train_dataloader().dataset


class Wrapper(Dataset):
    """Of a kind that nobody knows: another order, and ids of its own."""

    def __init__(self, dataset, order):
        self.dataset, self.order = dataset, list(order)

    def __len__(self):
        return len(self.order)

    def __getitem__(self, i):
        return self.dataset[self.order[i]]


def wrapped_sides(dataset, order, *, ids):
    rows = torch.stack([dataset[int(i)] for i in order])
    names = [dataset.patient_ids[int(i)] for i in order] if ids else list(range(len(rows)))

    flat = Wrapper([], [])
    flat.rows, flat.patient_ids = rows, names
    return sides_of(flat)


def test_marks_are_found_through_subsets_and_parts():
    canaries = some_canaries()
    inner = marked(canaries)
    k = int(canaries.included.sum())
    order = np.random.default_rng(0).permutation(80 + k)
    subset = Subset(inner, order.tolist())
    both = ConcatDataset([Codes(7, 6, 900), subset])
    sides = wrapped_sides(inner, order, ids=True)
    assert find_planted(sides, training=subset).rows.tolist() == np.flatnonzero(order >= 80).tolist()

    joined = Wrapper([], [])
    joined.rows = torch.cat([both.datasets[0].rows, torch.stack([inner[int(i)] for i in order])])
    joined.patient_ids = [*both.datasets[0].patient_ids, *(inner.patient_ids[i] for i in order)]
    found = find_planted(sides_of(joined), training=both)
    assert found.rows.tolist() == (6 + np.flatnonzero(order >= 80)).tolist() and found.n == k


def test_behind_an_unknown_wrapper_by_their_ids_or_by_all_of_their_codes():
    canaries = some_canaries()
    inner = marked(canaries)
    order = np.random.default_rng(1).permutation(len(inner))
    wanted = np.flatnonzero(order >= 80).tolist()
    by_id = find_planted(wrapped_sides(inner, order, ids=True), training=Wrapper(inner, order))
    assert by_id.rows.tolist() == wanted and "patient ids that were made for them" in by_id.note
    by_code = find_planted(wrapped_sides(inner, order, ids=False), training=Wrapper(inner, order))
    assert by_code.rows.tolist() == wanted and "code by code" in by_code.note
    cropped = wrapped_sides(inner, order, ids=False)
    cropped.content.codes.values[::12] = 0  # as a crop or a mask would change them
    with pytest.raises(DataError, match="does not say where they are"):
        find_planted(cropped, training=Wrapper(inner, order))


@pytest.mark.parametrize(("times", "units"), [(1, ("patient", "record")), (3, ("patient",))])
def test_planted_by_hand(times, units):
    canaries = some_canaries()
    data = ByHand(canaries, times)
    k = int(canaries.included.sum())
    found = find_planted(sides_of(data), training=data, given=canaries)
    assert found.rows.tolist() == list(range(times * k)) and found.n == k and found.units == units
    probe = CanaryProbe(canaries=canaries)
    assert find_planted(sides_of(data), training=data, given=probe).rows.size == times * k
    assert find_planted(sides_of(data), training=data, probes=["membership", probe]).rows.size == times * k
    data.canary_rows = np.arange(5)  # what the data set says counts
    assert find_planted(sides_of(data), training=data, given=canaries).rows.tolist() == list(range(5))


def test_canaries_by_hand_in_an_audit(tmp_path):
    canaries = some_canaries()
    data = Data()
    data.train = ByHand(canaries, first=True)
    module = fitted(data, tmp_path, epochs=2)
    found = memguard.audit(
        module, data, canaries=canaries, references="none", probes=["membership", "canary"], folder=tmp_path, **QUICK
    )  # fmt: skip
    assert found.report.members.n_records == 80 and found.report.canaries == canaries.included.sum()
    assert {one[0] for one in found.ids} == {"p"}


def test_canaries_that_are_not_in_the_data_take_nobody_out():
    data, canaries = Codes(0, 80, 0), some_canaries()
    found = find_planted(sides_of(data), training=data, given=canaries)
    assert not found.rows.size and found.n == 0 and found.units == ()
    assert "None of the" in found.note and "canary_rows" in found.note
    assert find_planted(sides_of(data), training=data).note == ""


def test_a_real_double_of_a_canary_is_not_thrown_out_in_silence():
    canaries = some_canaries()
    data = ByHand(canaries)
    data.rows[-1] = data.rows[0]  # a patient with the codes of a canary
    with pytest.raises(DataError, match="1 to 2 times"):
        find_planted(sides_of(data), training=data, given=canaries)
    data = ByHand(canaries)
    data.rows[0] = data.rows[-1]  # a canary is missing
    with pytest.raises(DataError, match="0 to 1 times"):
        find_planted(sides_of(data), training=data, given=canaries)


def test_what_makes_no_sense_is_refused():
    canaries = some_canaries()
    data = ByHand(canaries)
    sides = sides_of(data)
    with pytest.raises(DataError, match="that the coins left out"):
        find_planted(sides, training=data, given=dataclasses.replace(canaries, included=~canaries.included))
    with pytest.raises(DataError, match="canaries= of type str"):
        find_planted(sides, training=data, given="canaries.npz")
    with pytest.raises(DataError, match="not those in the training data"):
        find_planted(sides, training=marked(canaries), given=some_canaries(seed=4))
    coins = CanaryProbe(included=~canaries.included, canary_loss=np.zeros(40))
    with pytest.raises(DataError, match="not those in the training data"):
        find_planted(sides, training=marked(canaries), given=coins)
    with pytest.raises(DataError, match="among the held-out records"):
        find_planted(sides, training=data, held_out=Subset(marked(canaries), [0]))
    left_out = Codes(1, 80, 80)
    rows = [
        torch.from_numpy(canaries.sequences[i].astype(np.int64)) for i in np.flatnonzero(~canaries.included)
    ]
    left_out.rows = torch.cat([left_out.rows[: 80 - len(rows)], torch.stack(rows)])
    with pytest.raises(DataError, match="among the held-out records"):
        find_planted(sides_of(data, left_out), training=data, given=canaries)
    for wrong in ([-1], [len(data)], [0.5], [[1]]):
        data.canary_rows = np.array(wrong)
        with pytest.raises(DataError, match="canary_rows of shape"):
            find_planted(sides, training=data)
    data.canary_rows = np.arange(len(data))
    with pytest.raises(DataError, match="canaries alone"):
        find_planted(sides, training=data)


def test_rows_of_a_table():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 2, 60)
    canaries = make_feature_canaries(x, y, m=10, n_alternatives=5)
    inside = canaries.included
    both = np.concatenate([x, canaries.x[inside], x + 1]), np.concatenate([y, canaries.y[inside], y])
    n = 60 + int(inside.sum())
    sides = Sides(
        members=PatientMap.from_ids(np.arange(n), source="ids"),
        held_out=PatientMap.from_ids(np.arange(60), source="ids"),
        content=RecordContent.from_features(*both),
        target=Losses(loss=np.zeros(n + 60), tokens=np.ones(n + 60, np.int64), unit="nats/record", route="x"),
    )
    # a mislabelled canary has the features of a member and another label
    assert find_planted(sides, training=list(range(n)), given=canaries).rows.tolist() == list(range(60, n))
    blind = dataclasses.replace(sides, content=RecordContent.from_features(both[0]))
    assert not find_planted(blind, training=list(range(n)), given=canaries).rows.size
