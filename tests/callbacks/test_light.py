"""The audit's probes while a model trains: what they find, what they leave as it was, what they cost."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _light import Firsts, Patients, Reader, fit, loaders
from _private import private
from _runs import trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from memguard import LeakageMonitor
from memguard.auditing.light import LightProbes
from memguard.callbacks.planted import PlantedCanaries
from memguard.errors import MemguardError
from memguard.probes.allowance import Allowance
from memguard.probes.asked import Budget
from memguard.probes.attribute import AttributeProbe
from memguard.records.canaries import make_canaries
from memguard.records.content import Ragged
from memguard.report.data import WatchReport

KEY = "memorized.k10.minus_held_out"
pytestmark = pytest.mark.filterwarnings("ignore:.*number of training batches.*")


@pytest.fixture
def rich(monkeypatch):
    """There is always enough saved, whatever the clock says."""
    monkeypatch.setattr(Allowance, "saved", property(lambda _: 1e6))
    monkeypatch.setattr(Allowance, "next", lambda self, waiting, last=False: (sorted(waiting)[0], None))


def values(monitor):
    return {
        (point.step, probe, name): (one.value, one.low, one.high, one.n)
        for point in monitor.curve
        for probe, numbers in point.probes.items()
        for name, one in numbers.items()
    }


def same_weights(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.usefixtures("rich")
def test_a_planted_code_is_seen_to_be_memorized(tmp_path):
    monitor, _ = fit(tmp_path, ["attribute"], epochs=25)
    found = [point.probes["attribute"][KEY] for point in monitor.curve]
    assert found[0].covers(0) and found[0].value < 0.2
    assert found[-1].low > 0.3
    assert found[-1].n == 100  # 50 patients of each side
    auc = [point.probes["attribute"]["auc.k10"].value for point in monitor.curve]
    assert auc[-1] > 0.8 > auc[0] + 0.1
    rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert f"memguard/attribute/{KEY}" in rows
    report = WatchReport.from_json((tmp_path / "watch" / "report.json").read_text())
    assert report.curve[-1].probes["attribute"][KEY] == found[-1]
    page = (tmp_path / "watch" / "watch.html").read_text()
    assert "attribute" in page


@pytest.mark.usefixtures("rich")
def test_a_model_that_learned_both_sides_has_a_flat_curve(tmp_path):
    train, held = loaders()
    monitor, module = fit(
        tmp_path, ["attribute"], epochs=25, data=(train, held), module=lambda: Reader(also=held.dataset.rows)
    )
    with torch.no_grad():
        known = float(module.eval().loss(held.dataset.rows))
    assert known < 2.0  # it knows them by heart; by chance it is 3
    found = [point.probes["attribute"] for point in monitor.curve]
    assert sum(one[KEY].covers(0) for one in found) >= len(found) - 2
    assert abs(found[-1]["auc.k10"].value - 0.5) < 0.15


@pytest.mark.usefixtures("rich")
def test_training_is_the_same_to_the_last_bit(tmp_path):
    pl.seed_everything(0, verbose=False)
    plain = Reader(dropout=0.2)
    trainer(tmp_path / "plain", epochs=3).fit(plain, *loaders())
    monitor, probed = fit(
        tmp_path / "probed",
        ["attribute", "trajectory", "membership", Firsts()],
        module=lambda: Reader(dropout=0.2),
    )
    assert {"attribute", "trajectory", "membership", "firsts"} <= set(monitor.curve[-1].probes)
    assert same_weights(plain, probed)
    assert torch.equal(plain.norm.running_mean, probed.norm.running_mean)


@pytest.mark.usefixtures("rich")
def test_a_number_depends_on_weights_data_and_seed_alone(tmp_path, monkeypatch):
    one, _ = fit(tmp_path / "one", ["attribute", "copies", "trajectory"], epochs=4)
    turns = iter(range(1000))
    monkeypatch.setattr(  # now and then somebody is asked, in another order
        Allowance,
        "next",
        lambda self, waiting, last=False: (sorted(waiting)[-1], None) if next(turns) % 3 == 0 else None,
    )
    other, _ = fit(tmp_path / "other", ["attribute", "copies", "trajectory"], epochs=4)
    few, many = values(other), values(one)
    assert 3 <= len(few) < len(many)
    assert all(many[key] == value for key, value in few.items())


@pytest.mark.usefixtures("rich")
def test_a_resumed_run_goes_on_with_its_curve(tmp_path):
    def data():  # the Trainer does not bring back the state of a shuffle
        train, held = loaders()
        return DataLoader(train.dataset, batch_size=24), held

    whole, _ = fit(tmp_path / "whole", ["attribute"], epochs=4, data=data())
    first = LeakageMonitor(dirpath=tmp_path / "first", probes=["attribute"])
    run = trainer(tmp_path, first, epochs=2)
    fit(tmp_path, None, monitor=first, run=run, data=data())
    run.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"][first.state_key]["probes"]
    assert saved["spent"] > 0 and set(saved["cost"]) == {"attribute", "(preparation)"}
    second = LeakageMonitor(dirpath=tmp_path / "second", probes=["attribute"])
    fit(tmp_path, None, monitor=second, epochs=4, ckpt=tmp_path / "half.ckpt", data=data())
    assert second._probing.allowance.spent > saved["spent"]
    assert [point.epoch for point in second.curve if point.probes] == [1, 2, 3, 4]
    assert values(second) == values(whole)


def test_the_share_is_kept_on_a_short_run(tmp_path):
    monitor, _ = fit(tmp_path, LightProbes(["membership", "attribute", "copies"], share=1.0), epochs=20)
    allowance = monitor._probing.allowance
    trained = sum(point.train_seconds for point in monitor.curve)
    dearest = max([*allowance.cost.values(), *allowance.least.values()])
    assert 0 < allowance.spent <= trained + dearest
    assert sum(point.probe_seconds for point in monitor.curve) >= allowance.spent
    assert values(monitor)


def test_what_could_never_be_paid_is_named_with_its_price_and_the_fix(tmp_path):
    monitor, _ = fit(tmp_path, LightProbes(["attribute"], share=1e-6))
    (note,) = [note for note in monitor.report.notes if "attribute" in note]
    assert "never asked" in note and "share=" in note and "patients=" in note
    assert not values(monitor)


class Tabular(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 2)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def table(n, seed):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=rng)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=20)


@pytest.mark.usefixtures("rich")
@pytest.mark.filterwarnings("ignore:no patient ids")
def test_a_classifier_has_a_note_for_what_it_cannot_be_asked_and_a_curve_for_what_it_can(tmp_path):
    data = table(100, 0), table(100, 1)
    monitor, _ = fit(tmp_path, ["attribute", "membership"], module=Tabular, data=data, record_to_patient=None)
    (note,) = [note for note in monitor.report.notes if "attribute" in note]
    assert "feature vectors" in note
    assert all(set(point.probes) == {"membership"} for point in monitor.curve)


@pytest.mark.usefixtures("rich")
def test_unknown_names_of_codes_are_said_once_with_the_argument(tmp_path):
    train, held = loaders()
    train.dataset.vocabulary = None
    monitor, _ = fit(tmp_path, ["attribute"], data=(train, held))
    (note,) = [note for note in monitor.report.notes if "attribute" in note]
    assert "sensitive" in note and "LightProbes" in note
    known, _ = fit(
        tmp_path / "known", {"probes": ["attribute"], "vocabulary": Patients.vocabulary}, data=(train, held)
    )
    assert all(KEY in point.probes["attribute"] for point in known.curve)


@pytest.mark.usefixtures("rich")
def test_a_fault_costs_one_probe_and_is_said_once(tmp_path):
    with pytest.warns(match="a slip") as caught:
        monitor, _ = fit(tmp_path, [Firsts(fault=True), "membership"], epochs=3)
    assert sum("a slip" in str(one.message) for one in caught) == 1
    assert all(set(point.probes) == {"membership"} for point in monitor.curve)
    assert len([note for note in monitor.report.notes if "firsts" in note]) == 1
    assert len(monitor.curve) == 3 and monitor.curve[-1].auc is not None
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "raise", [Firsts(fault=True)], on_problem="raise")


@pytest.mark.usefixtures("rich")
def test_probes_of_ones_own_with_names_of_their_own(tmp_path):
    mine = AttributeProbe(light_ks=(5,), name="attribute5")
    monitor, _ = fit(tmp_path, [mine, "attribute", Firsts()], epochs=2)
    last = monitor.curve[-1].probes
    assert "memorized.k5.minus_held_out" in last["attribute5"] or "auc.k5" in last["attribute5"]
    assert KEY in last["attribute"] and last["firsts"]["second.minus_held_out"].n == 240


@pytest.mark.usefixtures("rich")
def test_strata_of_the_user_have_curves(tmp_path):
    older = np.arange(240) % 3 == 0
    monitor, _ = fit(tmp_path, LightProbes(["attribute"], strata={"older": older}), epochs=2)
    numbers = monitor.curve[-1].probes["attribute"]
    assert 5 <= numbers["strata.older.minus_held_out"].n < numbers[KEY].n


@pytest.mark.usefixtures("rich")
def test_planted_canaries_are_found_and_are_no_patients(tmp_path):
    train, held = loaders()

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return train

        def val_dataloader(self):
            return held

    canaries = make_canaries(Ragged.from_padded(train.dataset.rows.numpy()), 20, n_alternatives=9)
    planted = PlantedCanaries(Data(), canaries, dirpath=tmp_path)
    pl.seed_everything(0, verbose=False)
    monitor = LeakageMonitor(dirpath=tmp_path / "watch", probes=["canary", Firsts()])
    trainer(tmp_path, monitor, epochs=2).fit(Reader(), datamodule=planted)
    last = monitor.curve[-1].probes
    assert "auc" in last["canary"] or any("minus_held_out" in name for name in last["canary"])
    assert last["firsts"]["second.minus_held_out"].n == 240
    assert monitor.report.n_members > 120
    assert len([note for note in monitor.report.notes if "planted canaries" in note]) == 1


def test_bad_settings_are_refused_at_construction():
    for bad in (["attributes"], [], "nothing", ["copies", "copies"], [AttributeProbe], [object()]):
        with pytest.raises(MemguardError):
            LeakageMonitor(probes=bad)
    for bad in ({"share": 0}, {"share": 1.5}, {"patients": 1}, {"samples": 0}, {"references": 8}):
        with pytest.raises(MemguardError):
            LightProbes(["copies"], **bad)
    with pytest.raises(MemguardError, match="shares"):
        LeakageMonitor(probes={"probes": ["copies"], "shares": 0.1})


def test_without_probes_nothing_of_them_is_imported():
    code = (
        "import sys, memguard; memguard.LeakageMonitor();"
        "print([n for n in sys.modules if n.startswith(('memguard.auditing', 'memguard.callbacks.probing'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reports_of_before_are_still_read(tmp_path):
    monitor, _ = fit(tmp_path, None, epochs=2)
    body = json.loads(monitor.report.to_json())
    for point in body["curve"]:
        del point["probes"]
    assert WatchReport.from_json(json.dumps(body)).curve[-1].probes == {}


@pytest.mark.usefixtures("rich")
def test_strategies_that_shard_are_refused_by_a_note(tmp_path, monkeypatch):
    from memguard.callbacks import probing

    monkeypatch.setattr(probing, "_SHARDED", frozenset({"SingleDeviceStrategy"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        monitor, _ = fit(tmp_path, ["membership"], epochs=2)
    (note,) = [note for note in monitor.report.notes if "No probe" in note]
    assert "SingleDeviceStrategy" in note and "memguard.audit" in note


class Bigram(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 30))

    def forward(self, codes):
        return self.net(codes)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[:, :-1]).transpose(1, 2), batch[:, 1:])

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.usefixtures("rich", "unstated")
def test_a_private_training_is_not_touched(tmp_path, monkeypatch):
    for home in ("memguard.privacy.noise.entropy", "memguard.callbacks.private_data.entropy"):
        monkeypatch.setattr(home, lambda: bytes(range(32)))  # or else two runs never draw the same

    def weights(probes, name):
        pl.seed_everything(0, verbose=False)
        dpsgd = private(noise_multiplier=0.5, delta=1e-3, engine="opacus", dirpath=tmp_path / name / "dp")
        monitor = LeakageMonitor(dirpath=tmp_path / name, probes=probes, on_problem="raise")
        run, module = trainer(tmp_path / name, dpsgd, monitor, epochs=3), Bigram()
        run.fit(module, *loaders())
        return dpsgd, monitor, [one.detach().clone() for one in module.parameters()]

    plain, _, alone = weights(None, "plain")
    dpsgd, monitor, beside = weights(["attribute", Firsts()], "probed")
    assert plain._run.steps == dpsgd._run.steps > 0
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert {"attribute", "firsts"} <= set(monitor.curve[-1].probes)


@pytest.mark.usefixtures("rich")
def test_the_audit_at_the_end_follows_as_ever(tmp_path):
    options = {"references": "counts", "probes": ["attribute"], "budget": Budget(patients=20)}
    monitor, _ = fit(tmp_path, ["attribute"], epochs=2, audit_on_end=options)
    assert monitor.audit is not None
    assert monitor.audit.report.watch.curve[-1].probes == monitor.curve[-1].probes
