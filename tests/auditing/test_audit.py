"""The audit from end to end on a small model that has learned its patients by heart."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import memguard
from memguard.errors import DataError, MemguardError, PatientOverlapError
from tests.auditing._next_codes import NAMES, QUICK, Codes, Data, Next, fitted


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = Data()
    return fitted(data, tmp_path_factory.mktemp("fit")), data


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory):
    module, data = trained
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    result = memguard.audit(
        module, data, references=4, backend="sequential", folder=tmp_path_factory.mktemp("audit"), **QUICK
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    return result


@pytest.mark.filterwarnings("ignore::memguard.MemguardWarning")
def test_what_was_learned_by_heart_is_found(found):
    numbers = found.report.numbers()
    assert numbers["membership.strongest.auc"].estimate.low > 0.8
    assert numbers["membership.strongest.auc"].estimate.n == 80
    assert found.report.members.n_patients == 40 and found.report.members.n_records == 80
    assert found.report.references.count == 4
    assert found.subject.static.tolist() == [3] * 160
    assert {one.probe for one in found.report.sections} >= {"membership", "trajectory", "subgroups"}
    why = {gap.what for gap in found.report.gaps()}
    assert "Sensitive codes" in why  # CODE//7 is in no table, and that is said


def test_the_report_is_written_and_read_again(found, tmp_path):
    files = found.save(tmp_path / "out")
    assert {"json", "page", "markdown", "card", "records"} <= set(files)
    assert json.loads(files["json"].read_text())["schema"] == "memguard.audit/1"
    assert all(path.stat().st_mode & 0o077 == 0 for path in files.values())
    text = files["page"].read_text() + files["markdown"].read_text()
    assert "p17" not in text


def test_losses_are_those_of_the_model(trained, found):
    module, data = trained
    with torch.no_grad():
        row = data.train[3][None]
        wanted = F.cross_entropy(module.eval()(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())
    severity = next(one for one in found.results if one.probe == "membership").evidence
    assert severity
    from memguard.auditing.live import in_a_run
    from memguard.auditing.sides import read_sides

    sides = in_a_run(module, data, read_sides)
    assert sides.target.loss[3] == pytest.approx(float(wanted), rel=1e-5)
    assert sides.content.codes[83].tolist() == data.held[3].tolist()
    assert sides.ids[sides.patient[83]] == "p81"


def test_a_second_audit_trains_no_reference_again(trained, tmp_path, capsys):
    module, data = trained
    options = {
        "references": 2,
        "probes": ["membership"],
        "backend": "sequential",
        "folder": tmp_path,
        **QUICK,
    }
    first, second = (memguard.audit(module, data, **options) for _ in range(2))
    assert first.report.references.notes != second.report.references.notes
    assert any("kept from before" in note for note in second.report.references.notes)
    name = "membership.strongest.auc"
    assert first.report.numbers()[name] == second.report.numbers()[name]


@pytest.mark.parametrize("references", ["none", "counts"])
def test_without_training_any_reference(trained, tmp_path, references):
    module, data = trained
    result = memguard.audit(
        module, data, references=references, probes=["membership", "copies"], folder=tmp_path, **QUICK
    )
    assert result.report.references.kind == references
    assert result.report.numbers()["membership.loss.auc"].estimate.low > 0.8


def test_loaders_in_the_place_of_a_datamodule(trained, tmp_path):
    module, data = trained
    pair = data.train_dataloader(), data.val_dataloader()
    one = memguard.audit(module, pair, references="none", probes=["membership"], folder=tmp_path, **QUICK)
    other = memguard.audit(
        module, data, heldout=pair[1], references="none", probes=["membership"], folder=tmp_path, **QUICK
    )
    name = "membership.loss.auc"
    assert one.report.numbers()[name] == other.report.numbers()[name]


def test_a_model_without_its_trainer_or_its_arguments_says_what_was_not_tested(trained, tmp_path):
    _, data = trained
    module = Next()
    result = memguard.audit(module, data, references=2, probes=["membership"], folder=tmp_path, **QUICK)
    gaps = {gap.what: gap for gap in result.report.gaps()}
    assert "trainer=" in gaps["Comparison with reference models"].fix
    assert result.report.references.kind == "counts"


@pytest.mark.parametrize(
    ("data", "options", "error", "match"),
    [
        (Data(overlap=True), {}, PatientOverlapError, "also trained on"),
        ("folder", {}, DataError, "LightningDataModule"),
        (Data(), {"probes": ["membrship"]}, MemguardError, "use one of membership"),
        (Data(), {"references": 1}, MemguardError, "references=1"),
        (Data(), {"vocabulary": NAMES[:4], "probes": ["membership"], "static": -1}, DataError, "negative"),
    ],
)
def test_refused(trained, tmp_path, data, options, error, match):
    with pytest.raises(error, match=match):
        memguard.audit(trained[0], data, folder=tmp_path, **{"references": "none", **QUICK, **options})


@pytest.mark.filterwarnings("ignore::memguard.MemguardWarning")
def test_an_audit_when_training_ends(tmp_path):
    options = {"references": 2, "probes": ["membership"], "backend": "sequential"}
    monitors = [
        memguard.LeakageMonitor(dirpath=tmp_path / name, audit_on_end=given)
        for name, given in (("with", options), ("without", False))
    ]
    modules = [fitted(Data(), tmp_path, epochs=8, callbacks=[monitor]) for monitor in monitors]
    weights = [torch.cat([p.detach().flatten() for p in module.parameters()]) for module in modules]
    assert torch.equal(*weights) and modules[0].training == modules[1].training
    found = monitors[0].audit
    assert found is not None and monitors[1].audit is None
    assert found.report.watch == monitors[0].report and found.report.references.count == 2
    assert (tmp_path / "with" / "audit" / "report.html").exists()
    afterwards = memguard.audit(modules[0], Data(), **QUICK, **options, folder=tmp_path / "with" / "audit")
    name = "membership.loss.auc"
    assert afterwards.report.numbers()[name] == found.report.numbers()[name]
    assert any("kept from before" in note for note in afterwards.report.references.notes)
    with pytest.raises(MemguardError, match="references"):
        memguard.LeakageMonitor(audit_on_end={"reference": 3})


def test_an_audit_that_fails_costs_no_training(tmp_path):
    monitor = memguard.LeakageMonitor(
        dirpath=tmp_path / "w", audit_on_end={"references": "none", "vocabulary": "nothing"}
    )
    with pytest.warns(memguard.MemguardWarning, match="the audit was not finished"):
        module = fitted(Data(220), tmp_path, epochs=2, callbacks=[monitor])
    assert monitor.report is not None and monitor.audit is None and module.trainer.state.finished


@pytest.mark.filterwarnings("ignore::memguard.MemguardWarning")
def test_canaries_of_the_datamodule_are_asked_about(tmp_path):
    from memguard.records import Ragged, make_canaries

    data = Data()
    records = Ragged.from_padded(data.train.rows.numpy())
    canaries = make_canaries(records, 40, names=NAMES, n_rare=12, n_alternatives=31, seed=3)
    planted = memguard.PlantedCanaries(data, canaries, dirpath=tmp_path)
    module = fitted(planted, tmp_path)
    found = memguard.audit(
        module, planted, references="none", probes=["membership", "canary"], folder=tmp_path, **QUICK
    )
    numbers = found.report.numbers()
    assert numbers["canary.auc"].estimate.low > 0.6
    assert numbers["canary.epsilon_lower_bound"].estimate.low > 0.2
    assert any("planted canaries" in note for note in found.report.notes)
    assert found.report.members.n_records == 80 and found.report.canaries == int(canaries.included.sum())


def test_what_is_left_out_is_the_same_in_both_ways_to_ask():
    import inspect

    from memguard.auditing.examine import Options

    given, made = inspect.signature(memguard.audit).parameters, Options()
    for name in set(Options.__dataclass_fields__) - {"answers", "budget"}:
        assert given[name].default == getattr(made, name), name


def test_loaders_that_are_given_come_before_those_of_the_monitor(trained, tmp_path):
    module, data = trained
    monitor = memguard.LeakageMonitor(heldout=DataLoader(Codes(5, 60, 1000), batch_size=16))
    pair = data.train_dataloader(), data.val_dataloader()
    options = {"references": "none", "probes": ["membership"], "folder": tmp_path, **QUICK}
    assert memguard.audit(module, pair, monitor=monitor, **options).report.held_out.n_records == 80
    monitor.mitigated("FloorFlagged", "FloorFlagged: 7 patients were held.")
    report = memguard.audit(module, data, monitor=monitor, **options).report
    assert report.held_out.n_records == 60 and report.mitigations == ("FloorFlagged: 7 patients were held.",)
