"""The promise comes from the ledger: of this training, of these weights, or not at all, and then with the reason."""

from __future__ import annotations

import dataclasses
import shutil

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import memguard
from memguard.attacks import auc
from memguard.attacks.epsilon import EpsilonBound
from memguard.auditing.choice import Setting, choose
from memguard.auditing.claims import promise_of
from memguard.auditing.composed import shown_of
from memguard.capture.weights import weights_hash
from memguard.errors import DataError, MemguardError, PrivacyError
from memguard.privacy.statement import Statement
from memguard.probes.attacked import MembershipProbe
from memguard.probes.canary import CanaryProbe
from memguard.probes.result import ProbeResult
from memguard.probes.subject import Subject
from memguard.records import make_feature_canaries
from memguard.records.content import Ragged, RecordContent
from memguard.records.patients import resolve_patients
from memguard.report.audit import EpsilonClaim, render_markdown
from tests.auditing._next_codes import QUICK, Data, fitted
from tests.auditing.test_planted import some_canaries
from tests.callbacks import _private as classifier

pytestmark = pytest.mark.filterwarnings("ignore::memguard.MemguardWarning")
OPTIONS = {"references": "none", "probes": ["membership", "canary"], **QUICK}


class Private:
    """A small private training on patients and canaries, and everything that it left."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.data = memguard.PlantedCanaries(Data(), some_canaries(m=60), dirpath=folder / "planted")
        self.dpsgd = memguard.DPSGD(
            **{"noise_multiplier": 1.0, "checks": False, "dirpath": folder / "dp", **settings}
        )
        self.module = fitted(self.data, folder, epochs=2, callbacks=[self.dpsgd])
        self.members = resolve_patients(self.module.trainer.train_dataloader.dataset)
        self.ledger = self.dpsgd.ledger_path

    def promise(self, given, **changes):
        known = {
            "members": self.members,
            "weights": weights_hash(self.module),
            "trainers": (self.module.trainer,),
        }
        return promise_of(given, **{**known, **changes})

    def copied(self, folder):
        shutil.copytree(self.ledger.parent, folder)
        return folder / self.ledger.name


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    return Private(tmp_path_factory.mktemp("private"))


def test_an_audit_finds_the_promise_by_itself(private, tmp_path):
    found = memguard.audit(private.module, private.data, folder=tmp_path, **OPTIONS).report
    statement = private.dpsgd.statement()
    claim = found.claim
    assert (claim.epsilon, claim.delta, claim.unit) == (statement.epsilon, statement.delta, "patient")
    assert claim.statement == statement.text() and "those with which it ended" in claim.source
    (bound,) = found.shown
    # at the delta of the promise, for what one coin decided on: the two can be compared
    assert (bound.probe, bound.delta, bound.unit) == ("canary", claim.delta, "patient")
    assert bound.contradicts(claim) is False and found.no_claim is None
    text = render_markdown(found)
    assert "does not contradict it" in text and "does not confirm it" in text and private.ledger.stem in text
    section = next(one for one in found.sections if one.probe == "canary")
    assert section.settings["claimed_epsilon"] == claim.epsilon
    assert (
        memguard.audit(private.module, private.data, folder=tmp_path, claim=None, **OPTIONS).report.claim
        is None
    )


@pytest.mark.parametrize("kind", ["callback", "ledger", "statement", "text", "folder", "copy"])
def test_the_same_promise_from_each_of_its_forms(private, tmp_path, kind):
    ledger = private.ledger
    statement = ledger.with_name(f"{ledger.stem}-statement.json")
    given = {
        "callback": private.dpsgd,
        "ledger": ledger,
        "statement": str(statement),
        "text": statement.with_suffix(".txt"),
        "folder": str(ledger.parent),
        "copy": private.copied(tmp_path / "copy"),
    }[kind]
    claim, void = private.promise(given)
    assert void is None and claim == private.promise("auto")[0]
    other, _ = private.promise(given, weights="sha256:other")
    assert other.epsilon == claim.epsilon and "nobody checked" in other.source


def test_a_statement_is_not_believed_beside_its_ledger(private, tmp_path):
    ledger = private.copied(tmp_path / "dp")
    statement = ledger.with_name(f"{ledger.stem}-statement.json")
    flattering = dataclasses.replace(
        Statement.from_json(statement.read_text()),
        epsilons={
            name: dataclasses.replace(one, value=0.1)
            for name, one in Statement.from_json(statement.read_text()).epsilons.items()
        },
    )
    statement.write_text(flattering.to_json())
    assert private.promise(statement)[0].epsilon == private.dpsgd.statement().epsilon
    ledger.unlink()
    alone, void = private.promise(statement)
    assert void is None and alone.epsilon == 0.1 and "nobody checked the statement" in alone.source
    assert private.promise(flattering)[0] == alone
    few = private.members.take(np.arange(20))
    assert "in the training data that are audited" in private.promise(statement, members=few)[1].reasons[0]


def test_of_a_broken_ledger_nothing_is_claimed(private, tmp_path):
    ledger = private.copied(tmp_path / "dp")
    lines = ledger.read_text().splitlines()
    assert '"noise_multiplier":1.0' in lines[1].replace(" ", "")
    ledger.write_text("\n".join([lines[0], lines[1].replace("1.0", "9.0", 1), *lines[2:]]) + "\n")
    claim, void = private.promise(ledger)
    assert claim is None and "broken" in void.reasons[0] and void.statement.startswith("NO GUARANTEE")
    report = memguard.audit(private.module, private.data, claim=ledger, folder=tmp_path, **OPTIONS).report
    assert report.claim is None and report.no_claim == void
    assert "can be claimed" in report.verdict() and "NO GUARANTEE" in render_markdown(report)
    assert report.shown[0].delta == 1e-5


def test_of_a_training_without_noise_nothing_is_claimed(tmp_path):
    one = Private(tmp_path, noise_multiplier=0.0)
    claim, void = one.promise("auto")
    assert claim is None and "without noise" in void.reasons[0]
    report = memguard.audit(one.module, one.data, folder=tmp_path, **OPTIONS).report
    assert report.no_claim == void and "without noise" in report.verdict()


def test_the_promise_of_other_patients_or_other_weights_is_none(private, tmp_path):
    few = private.members.take(np.arange(80))
    claim, void = private.promise(private.ledger, members=few)
    assert claim is None and "other training data" in void.reasons[0] and "40 here" in void.reasons[0]
    other = fitted(Data(), tmp_path, epochs=1)
    assert promise_of("auto", weights=weights_hash(other), trainers=(other.trainer, None)) == (None, None)
    # looked at by the Trainer of a private training, and not trained by it
    private_trainer = private.module.trainer
    report = memguard.audit(other, private.data, trainer=private_trainer, folder=tmp_path, **OPTIONS).report
    assert report.claim is None and "not those with which it ended" in report.no_claim.reasons[0]
    ledger = private.copied(tmp_path / "dp")
    moved = type("Moved", (), {"ledger_path": ledger, "statement": lambda self: None})()
    ledger.unlink()
    trainer = type("T", (), {"callbacks": [moved]})()
    assert "no ledger" in promise_of("auto", trainers=(trainer,))[1].reasons[0]
    begun = type("T", (), {"callbacks": [memguard.DPSGD(target_epsilon=1)]})()
    assert "no training has begun" in promise_of("auto", trainers=(begun,))[1].reasons[0]


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ("last.ckpt", DataError, "a checkpoint can be rolled back"),
        ("nothing.jsonl", DataError, "no ledger nothing.jsonl"),
        ("nothing-statement.json", DataError, "cannot be read"),
        (8.0, DataError, "claim= of type float"),
        (memguard.DPSGD(target_epsilon=1), PrivacyError, "no training has begun"),
    ],
)
def test_no_promise_at_all_is_refused(private, tmp_path, monkeypatch, given, error, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        memguard.audit(private.module, private.data, claim=given, folder=tmp_path, **OPTIONS)


def test_files_that_promise_nothing_are_refused(private, tmp_path):
    with pytest.raises(DataError, match="holds no ledger"):
        private.promise(tmp_path)
    ledger = private.copied(tmp_path / "dp")
    shutil.copy(ledger, ledger.with_name("0123456789abcdef.jsonl"))
    with pytest.raises(DataError, match="which training made the audited model"):
        private.promise(ledger.parent)
    (tmp_path / "x-statement.json").write_text("{}")
    (tmp_path / "y-statement.txt").write_text("epsilon = 1")
    for name in ("x-statement.json", "y-statement.txt"):
        with pytest.raises(MemguardError, match="no statement of the form"):
            private.promise(tmp_path / name)
    (tmp_path / "empty.jsonl").write_text("")
    assert private.promise(tmp_path / "empty.jsonl")[1].reasons


@pytest.mark.parametrize("first", ["monitor", "dpsgd"])
def test_when_training_ends(tmp_path, first):
    data = memguard.PlantedCanaries(Data(), some_canaries(m=60), dirpath=tmp_path / "planted")
    dpsgd = memguard.DPSGD(noise_multiplier=1.0, checks=False, dirpath=tmp_path / "dp")
    wanted = {"references": 2, "backend": "sequential", "probes": ["membership", "canary"]}
    monitor = memguard.LeakageMonitor(
        dirpath=tmp_path / "w", audit_on_end={**wanted, "budget": QUICK["budget"]}
    )
    both = [monitor, dpsgd] if first == "monitor" else [dpsgd, monitor]
    module = fitted(data, tmp_path, epochs=2, callbacks=both)
    report = monitor.audit.report
    statement = dpsgd.statement()
    assert report.claim is not None and report.claim.epsilon == statement.epsilon
    assert "those with which it ended" in report.claim.source and report.shown[0].unit == "patient"
    assert report.canaries == data.canaries.included.sum() and report.members.n_records == 80
    assert report.references.count == 2, [str(gap) for gap in report.gaps()]
    assert weights_hash(module) == report.provenance.checkpoint


def test_a_private_classifier_is_asked_about_its_canaries_by_loss(tmp_path):
    table = classifier.Data(train=classifier.Visits(40, 120), val=classifier.Held(60, 120))
    canaries = make_feature_canaries(table.train.x.numpy(), table.train.y.numpy(), m=40, n_alternatives=8)
    data = memguard.PlantedCanaries(table, canaries, dirpath=tmp_path)
    dpsgd = memguard.DPSGD(noise_multiplier=1.0, checks=False, dirpath=tmp_path / "dp")
    pl.seed_everything(0, verbose=False)
    module = classifier.Mlp(lr=0.5)
    trainer = classifier.trainer(tmp_path, dpsgd, max_epochs=3)
    trainer.fit(module, data)
    report = memguard.audit(module, data, folder=tmp_path / "a", **OPTIONS).report
    assert report.canaries == canaries.included.sum() and report.members.n_records == 120
    (shown,) = report.shown
    assert shown.n == 40 and shown.unit == "patient" and shown.contradicts(report.claim) is False
    with torch.no_grad():
        loss = F.cross_entropy(
            module.eval()(torch.from_numpy(canaries.x)), torch.from_numpy(canaries.y), reduction="none"
        )
    wanted = auc(-loss.numpy(), canaries.included)
    assert report.numbers()["canary.auc"].estimate.value == pytest.approx(wanted.value, abs=1e-6)


# -- bounds beside it ----------------------------------------------------------------------------------------


def bound(**changes):
    known = {
        "epsilon": 2.0, "delta": 1e-3, "confidence": 0.95, "n": 50, "guesses": 40, "correct": 39, "largest": 3.0,
        "method": "one run", "assumption": "none", "threshold": "x",
    }  # fmt: skip
    return EpsilonBound(**{**known, **changes})


@pytest.mark.parametrize(
    ("unit", "records", "units", "claimed", "wanted"),
    [
        ("patient", 1, ("patient", "record"), "record", ["record", "record"]),
        ("patient", 1, ("patient",), "patient", ["patient", "patient"]),
        ("patient", 2, ("patient",), "record", ["patient", "patient"]),
        ("record", 1, ("record",), "patient", ["record", "record"]),
        ("patient", 2, (), "patient", ["patient", "canary"]),
    ],
)
def test_what_a_coin_decided_on(unit, records, units, claimed, wanted):
    codes = Ragged.from_lists([[1, 2]] * 4)
    subject = Subject(
        n_members=2, patient=np.arange(4) // records, content=RecordContent.from_codes(codes), unit=unit
    )
    results = [ProbeResult(probe=name, question="?", bounds=(bound(),)) for name in ("membership", "canary")]
    claim = EpsilonClaim(epsilon=1.0, delta=1e-3, unit=claimed)
    shown = shown_of(results, subject, claim, {"canary": units})
    assert [one.unit for one in shown] == wanted
    assert [one.contradicts(claim) for one in shown] == [True if one == claimed else None for one in wanted]


def test_probes_take_the_delta_of_the_claim_and_keep_their_own():
    claim = EpsilonClaim(epsilon=3.0, delta=1e-2, unit="patient")
    own = CanaryProbe(canaries=some_canaries(), delta=1e-4, claimed_epsilon=1.0)
    setting = Setting(canaries=some_canaries(), claim=claim)
    coins, canary, kept, loss = choose([MembershipProbe(coins=True), "canary", own, "membership"], setting)
    assert (coins.delta, canary.delta, canary.claimed_epsilon, loss.delta) == (1e-2, 1e-2, 3.0, 1e-2)
    assert kept == own
    other = choose(["canary"], dataclasses.replace(setting, comparable=False))[0]
    assert (other.delta, other.claimed_epsilon) == (1e-2, None)
    assert choose(["canary"], Setting(canaries=some_canaries()))[0].delta is None


def test_a_claim_that_is_false_is_called_false(tmp_path):
    """Learned by heart and said to be private: the bound lies above the claim, and the report says what that proves."""
    data = memguard.PlantedCanaries(Data(), some_canaries(m=120), dirpath=tmp_path)
    module = fitted(data, tmp_path, epochs=40)
    claim = EpsilonClaim(epsilon=0.5, delta=1e-4, unit="patient")
    found = memguard.audit(module, data, claim=claim, folder=tmp_path, **OPTIONS)
    (shown,) = found.report.shown
    assert shown.contradicts(claim) is True and shown.epsilon > 1.0
    assert found.report.verdict().startswith("The claim of differential privacy is contradicted")
    assert "The claim is false at this confidence" in render_markdown(found.report)
    assert found.report.numbers()["epsilon.canary"].estimate.low == shown.epsilon
    assert torch.isfinite(next(module.parameters())).all()
