"""Mitigations in a Trainer: who is weighed, what stays as it was, what is refused, and what it does to the unique."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _processes import launch, saved
from _runs import LENGTH, VOCABULARY, Forecaster, Visits, loaders, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader

from memguard import DPSGD, LeakageMonitor
from memguard.callbacks.mitigate import DropFlagged, FloodFlagged, FloorFlagged, Reweight
from memguard.errors import DataError, MemguardError, PrivacyError

pytestmark = pytest.mark.filterwarnings("ignore")
MITIGATIONS = (FloorFlagged, FloodFlagged, DropFlagged, Reweight)


@dataclass
class Found:
    """Stands for a ranking of a look: the patients named are flagged, at a rate of one half."""

    patient: np.ndarray
    severity: np.ndarray
    severity_low: np.ndarray
    severity_high: np.ndarray

    @classmethod
    def of(cls, n, flagged):
        severity = np.zeros(n)
        severity[flagged] = 2 + np.arange(len(flagged))
        return cls(np.arange(n), severity, severity - 1, severity + 1)

    def flagged(self, rate):
        return self.severity > 0


@dataclass
class Looked:
    memorization: Found | None


class Flagging(LeakageMonitor):
    """A monitor that says at the end of each epoch that certain patients are memorized."""

    said: tuple = ()
    expected = 2.0

    @property
    def last_look(self):
        done = self.curve and self.watch is not None
        if not done:
            return None
        n = self.watch.members.patients.n_patients
        self.watch.expected = np.full(len(self.watch.members.patients), self.expected, np.float32)
        looks = self.__dict__.setdefault("looks", {})
        at = min(len(self.curve), len(self.said)) - 1
        return looks.setdefault((len(self.curve), n), Looked(Found.of(n, self.said[at])))


def fitted(tmp_path, *mitigations, said=(), epochs=3, dropout=0.1, data=None, module=None, **kwargs):
    pl.seed_everything(0, verbose=False)
    monitor = (Flagging if said else LeakageMonitor)(dirpath=tmp_path / "watch", final_evaluation=False)
    monitor.said = said
    run = trainer(tmp_path, *mitigations, monitor, epochs=epochs, **{"logger": False, **kwargs})
    module = module or Forecaster(dropout=dropout)
    run.fit(module, *(data or loaders(120, 60)))
    return monitor, run, [p.detach().clone() for p in module.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Without(Forecaster):
    """Trains from the second epoch on as if certain records had no loss, over the same denominator."""

    gone: tuple = ()

    def training_step(self, batch, batch_idx):
        codes = batch["codes"]
        logits = self.out(self.drop(self.rnn(self.embed(codes[:, :-1]))[0]))
        each = F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], ignore_index=0, reduction="none")
        if self.current_epoch:
            each = each * ~torch.isin(batch["at"], torch.tensor(self.gone))[:, None]
        return each.sum() / (codes[:, 1:] != 0).sum()


class Numbered(Visits):
    def __getitem__(self, i):
        return {"codes": self.codes[i], "at": i}


def numbered():
    return (
        DataLoader(Numbered(120, 1), batch_size=32, shuffle=True),
        DataLoader(Numbered(60, 2, first_patient=10_000), batch_size=60),
    )


def test_dropped_patients_are_trained_without_from_the_look_on(tmp_path):
    gone = (3, 17, 44, 45, 80, 119)
    drop = DropFlagged()
    monitor, run, found = fitted(tmp_path / "a", drop, said=(list(gone),), data=numbered())
    plain = trainer(tmp_path / "b", epochs=3, logger=False)
    pl.seed_everything(0, verbose=False)
    fresh = Without()
    fresh.gone = gone
    plain.fit(fresh, *numbered())
    for one, other in zip(found, fresh.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert run.callback_metrics["memguard/drop_flagged/patients"] == 6
    torch.testing.assert_close(float(run.callback_metrics["memguard/drop_flagged/mean_weight"]), 1 - 6 / 120)
    said = [note for note in monitor.report.notes if note.startswith("DropFlagged")]
    assert len(said) == 1 and "6 patients" in said[0] and "no guarantee" in said[0]
    assert monitor.mitigations == tuple(said)


def test_small_cells_are_not_told(tmp_path):
    monitor, run, _ = fitted(tmp_path, DropFlagged(), said=([3, 4],))
    assert run.callback_metrics["memguard/drop_flagged/patients"] == 4
    assert run.callback_metrics["memguard/drop_flagged/mean_weight"] == 1
    assert any("fewer than 5 patients" in note for note in monitor.report.notes)


def test_most_and_sticky(tmp_path):
    many, more = list(range(40)), list(range(60, 70))
    drop = DropFlagged(most=0.1)
    _, run, _ = fitted(tmp_path / "a", drop, said=(many[:8], more))
    # Of 120; severities are 2 to 9 in the first look and 2 to 11 in the others: who was ever at 5 or above.
    assert run.callback_metrics["memguard/drop_flagged/patients"] == 12
    kept = np.flatnonzero(drop.state_dict()["concerned"].numpy()).tolist()
    assert kept == [*many[3:8], *more[3:]]
    drop = DropFlagged(most=0.1, sticky=False)
    _, run, _ = fitted(tmp_path / "b", drop, said=(many, more))
    assert run.callback_metrics["memguard/drop_flagged/patients"] == 10
    assert np.flatnonzero(drop.state_dict()["concerned"].numpy()).tolist() == list(range(60, 70))


@pytest.mark.parametrize(("expected", "weight"), [(0.5, 1), (99.0, 0)])
def test_the_floor_holds_only_while_the_loss_is_below_it(tmp_path, monkeypatch, expected, weight):
    monkeypatch.setattr(Flagging, "expected", expected)
    _, run, _ = fitted(tmp_path, FloorFlagged(most=1), said=(list(range(120)),), epochs=2)
    assert run.callback_metrics["memguard/floor_flagged/mean_weight"] == weight
    assert run.callback_metrics["memguard/floor_flagged/patients"] == 120 * (1 - weight)


def test_flood_turns_round_below_the_expectation_alone(tmp_path, monkeypatch):
    with pytest.raises(MemguardError, match="strength="):
        FloodFlagged(strength=0)
    means = []
    for expected in (0.5, 99.0):
        monkeypatch.setattr(Flagging, "expected", expected)
        flood = FloodFlagged(strength=0.5, most=1)
        _, run, _ = fitted(tmp_path / str(expected), flood, said=(list(range(120)),), epochs=2)
        means.append(run.callback_metrics["memguard/flood_flagged/mean_weight"])
        assert flood.touched.all() == (expected > 1)
    assert means == [1, -0.5]


@pytest.mark.parametrize("kind", MITIGATIONS)
def test_no_bit_changes_while_nobody_is_flagged(tmp_path, kind):
    monitor, run, found = fitted(tmp_path, kind(), said=([],))
    _, _, plain = fitted(tmp_path)
    assert equal(found, plain)
    name = {
        FloorFlagged: "floor_flagged",
        FloodFlagged: "flood_flagged",
        DropFlagged: "drop_flagged",
        Reweight: "reweight",
    }[kind]
    assert run.callback_metrics[f"memguard/{name}/patients"] == 0
    assert any("no patient" in note for note in monitor.report.notes)


def test_reweighted_patients_count_by_how_far_they_stand_out(tmp_path):
    _, run, _ = fitted(tmp_path, Reweight(lowest=0.25), said=(list(range(10)),))
    # severity_low is 1, 2, 3, ... above a range of 2: weights .625 and .25
    wanted = 1 - (0.375 + 9 * 0.75) / 120
    torch.testing.assert_close(float(run.callback_metrics["memguard/reweight/mean_weight"]), wanted)


def test_a_resumed_run_is_the_same(tmp_path):
    said = (list(range(10)), list(range(20, 30)))

    def go(folder, epochs, **kwargs):
        keep = ModelCheckpoint(tmp_path / folder, filename="last", save_on_train_epoch_end=True)
        drop = DropFlagged()
        pl.seed_everything(0, verbose=False)
        monitor = Flagging(dirpath=tmp_path / folder / "watch", final_evaluation=False)
        monitor.said = said
        run = trainer(
            tmp_path / folder, drop, monitor, keep, epochs=epochs, logger=False, enable_checkpointing=True
        )
        module = Forecaster(dropout=0.0)
        train, held = Visits(120, 1), Visits(60, 2, first_patient=10_000)
        run.fit(module, DataLoader(train, batch_size=32), DataLoader(held, batch_size=60), **kwargs)
        return drop, [p.detach().clone() for p in module.parameters()], keep.best_model_path, monitor

    whole, weights, _, monitor = go("whole", 3)
    _, _, path, _ = go("half", 2)
    resumed, again, _, monitor2 = go("half2", 3, ckpt_path=path)
    assert equal(weights, again)
    for name, value in whole.state_dict().items():
        other = resumed.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert [n for n in monitor.report.notes if "Drop" in n] == [
        n for n in monitor2.report.notes if "Drop" in n
    ]

    stranger = DropFlagged()
    state = {**whole.state_dict(), "fingerprint": "other"}
    stranger.load_state_dict(state)
    with pytest.raises(DataError, match="other data sets"):
        fitted(tmp_path / "other", stranger)


class ByHand(Forecaster):
    automatic_optimization = False


def test_refusals(tmp_path):
    data = loaders(60, 40)
    for kind in MITIGATIONS:
        private = trainer(tmp_path, kind(), LeakageMonitor(), DPSGD(noise_multiplier=1.0), logger=False)
        with pytest.raises(PrivacyError, match="void"):
            private.fit(Forecaster(), *data)
        with pytest.raises(MemguardError, match="0 LeakageMonitor"):
            trainer(tmp_path, kind(), logger=False).fit(Forecaster(), *data)
        with pytest.raises(MemguardError, match="manual optimization"):
            trainer(tmp_path, kind(), LeakageMonitor(), logger=False).fit(ByHand(), *data)
        wrong = trainer(tmp_path, kind(monitor=LeakageMonitor()), LeakageMonitor(), logger=False)
        with pytest.raises(MemguardError, match="monitor= is none of the 1 LeakageMonitor"):
            wrong.fit(Forecaster(), *data)
    for kind in (FloorFlagged, FloodFlagged, DropFlagged):
        for most in (0, 1.5, float("nan"), "0.1", None):
            with pytest.raises(MemguardError, match="most="):
                kind(most=most)
    for lowest in (1.0, "0", None):
        with pytest.raises(MemguardError, match="lowest="):
            Reweight(lowest=lowest)
    for strength in (1.5, "1", None):
        with pytest.raises(MemguardError, match="strength="):
            FloodFlagged(strength=strength)


def test_a_share_of_less_than_one_patient_is_refused(tmp_path):
    """Such a mitigation would never act on anybody, and its report would look like one without flags."""
    with pytest.raises(MemguardError, match=r"most=0\.008 of 120 training patients.*at least 1/120"):
        fitted(tmp_path / "a", DropFlagged(most=0.008), said=([3],))
    drop = DropFlagged(most=0.29)  # times 100 is less than 29 in binary
    fitted(tmp_path / "b", drop, said=(list(range(40)),), epochs=2, data=loaders(100, 60))
    assert drop.touched.sum() == 29


@pytest.mark.parametrize("kind", MITIGATIONS)
@pytest.mark.parametrize("held_out", [60, 120])
def test_where_nobody_is_ranked_it_says_that_it_did_nothing(tmp_path, kind, held_out):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        monitor, _, _ = fitted(tmp_path, kind(), data=loaders(120, held_out))
    said = [str(one.message) for one in seen if "did nothing" in str(one.message)]
    notes = [note for note in monitor.report.notes if note.startswith(kind.__name__)]
    if held_out < 100:  # what a ranking needs
        assert len(said) == 1 and "60 held-out patients, and a ranking needs 100" in said[0]
        assert len(notes) == 1 and "did nothing" in notes[0] and "no patient" not in notes[0]
    else:
        assert not said and not any("did nothing" in note for note in notes)


class Telling(Numbered):
    """Its batches name the patients, two records of each; the data set does not."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.who = self.patient_ids
        del self.patient_ids

    def __getitem__(self, i):
        return {**super().__getitem__(i), "who": int(self.who[i])}


@pytest.mark.parametrize("kind", [DropFlagged, Reweight])
def test_patients_that_batches_name_are_counted_as_patients(tmp_path, kind):
    pl.seed_everything(0, verbose=False)
    callback = kind()
    monitor = Flagging(dirpath=tmp_path, record_to_patient="who", final_evaluation=False)
    monitor.said = (list(range(6)),)
    run = trainer(tmp_path, callback, monitor, epochs=3, logger=False)
    train, held = Telling(120, 1, per_patient=2), Telling(60, 2, first_patient=10_000, per_patient=2)
    run.fit(Forecaster(), DataLoader(train, batch_size=32, shuffle=True), DataLoader(held, batch_size=60))
    name = "drop_flagged" if kind is DropFlagged else "reweight"
    assert callback.touched.sum() == 12 and run.callback_metrics[f"memguard/{name}/patients"] == 6
    assert any(note.startswith(f"{kind.__name__}: 6 patients") for note in monitor.report.notes)


class Later(Forecaster):
    """From the second epoch on its loss has a second term, and is no longer that of its records."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + self.out.weight.square().mean() if self.current_epoch else loss


def test_a_mitigation_that_ends_early_says_so(tmp_path):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        monitor, _, _ = fitted(tmp_path, DropFlagged(), said=([3, 4],), module=Later())
    assert any(str(one.message).startswith("DropFlagged: ") for one in seen)
    assert any("ended early" in note for note in monitor.report.notes if note.startswith("DropFlagged"))


def test_two_mitigations_share_one_capture(tmp_path):
    drop, weigh = DropFlagged(), Reweight()
    monitor, run, _ = fitted(tmp_path, drop, weigh, said=(list(range(8)),))
    assert run.callback_metrics["memguard/drop_flagged/patients"] == 8
    assert run.callback_metrics["memguard/reweight/patients"] == 8
    assert sum("no guarantee" in note for note in monitor.report.notes) == 2


class Mixed(Visits):
    """The first ``unique`` patients are noise that nothing foretells."""

    def __init__(self, n, seed, first_patient=0, unique=24):
        super().__init__(n, seed, first_patient)
        noise = np.random.default_rng(seed + 100).integers(1, VOCABULARY, (unique, LENGTH))
        self.codes[:unique] = torch.from_numpy(noise)
        self.unique = np.arange(n) < unique


def losses(module, data):
    module.eval()
    with torch.no_grad():
        codes = data.codes
        logits = module.out(module.rnn(module.embed(codes[:, :-1]))[0])
        each = F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], ignore_index=0, reduction="none")
        return (each.sum(1) / (codes[:, 1:] != 0).sum(1)).numpy()


def test_floor_and_flood_narrow_the_gap_of_unique_patients(tmp_path):
    train, held = Mixed(240, 1), Mixed(160, 2, first_patient=10_000)
    gaps, left_out = [], []
    for name, mitigations in (("plain", []), ("floor", [FloorFlagged()]), ("flood", [FloodFlagged()])):
        module = Forecaster(lr=1e-2)
        data = DataLoader(train, batch_size=32, shuffle=True), DataLoader(held, batch_size=64)
        fitted(tmp_path / name, *mitigations, epochs=8, data=data, module=module)
        inside, outside = losses(module, train), losses(module, held)
        gaps.append(outside[held.unique].mean() - inside[train.unique].mean())
        left_out.append(outside.mean())
    assert gaps[1] < gaps[0] - 0.2 and gaps[2] < gaps[1] - 0.3
    assert max(left_out[1:]) < 1.01 * left_out[0]


def test_two_processes_leave_out_the_same_patients(tmp_path):
    launch("_mitigate_ddp.py", tmp_path, 2)
    first, second = saved(tmp_path, 2)
    assert np.flatnonzero(first["touched"].numpy()).tolist() == [3, 17, 44, 45, 80, 119]
    assert torch.equal(first["touched"], second["touched"]) and equal(first["found"], second["found"])
    assert first["patients"] == second["patients"] == 6
    assert first["difference"] < 1e-6 < 1e-3 < first["from_plain"]
