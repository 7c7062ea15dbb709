import csv
import stat

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from _runs import Forecaster, Visits, loaders, sequences, trainer, watched
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, Subset

from memguard import LeakageMonitor
from memguard.errors import HeldOutError, MemguardError, MemguardWarning, PatientOverlapError
from memguard.report.data import WatchReport

KEYS = {"membership_auc", "tpr_at_fpr_0.1", "loss_gap", "coverage", "surrogate_fit", "flagged_patients", "blind_auc",
        "probe_seconds"}  # fmt: skip


@pytest.fixture(scope="module")
def overtrained(tmp_path_factory):
    """Long enough to memorize."""
    folder = tmp_path_factory.mktemp("overtrained")
    monitor, run, module = watched(folder, epochs=30, module=Forecaster(lr=1e-2, width=128))
    return monitor, run, module, folder


def test_leakage_rises_from_chance_to_plain_sight(overtrained):
    monitor, *_ = overtrained
    first, last = monitor.curve[0], monitor.curve[-1]
    assert len(monitor.curve) == 30
    assert first.auc.low < 0.6
    assert last.auc.low > 0.85
    assert last.loss_gap.low > 0
    assert last.coverage == 1.0
    assert monitor.report.best_epoch < 20


def test_flags_name_patients_with_what_a_reader_needs(overtrained):
    monitor, *_ = overtrained
    assert monitor.flags.height > 100
    assert monitor.patients.height == 240
    assert set(monitor.flags["flagged"]) == {True}
    assert monitor.flags["q"].max() <= 0.1
    assert (monitor.flags["severity_low"] <= monitor.flags["severity"]).all()
    assert (monitor.flags["first_epoch"] <= 30).all()
    assert monitor.patients.sort("rank")["score"].is_sorted(descending=True)
    assert monitor.flags["equivalence_class"].min() >= 1
    bits = monitor.patients["severity"] * monitor.patients["n_tokens"] / np.log(2)
    assert np.allclose(bits, monitor.patients["bits"])


def test_what_leaves_is_private_and_complete(overtrained):
    monitor, _, _, folder = overtrained
    for path in monitor.files.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(monitor.files) == {"json", "flags", "page", "patients"}
    report = WatchReport.from_json((folder / "watch" / "report.json").read_text())
    assert report.last.auc == monitor.curve[-1].auc
    assert report.unit == "patient"
    assert report.n_members == 240
    frame = polars.read_parquet(folder / "watch" / "flags.parquet")
    assert frame.height == monitor.flags.height
    raw = {str(i) for i in range(240)}
    assert not raw & set(frame["patient"])


def test_metrics_reach_the_logger_under_their_names(overtrained):
    *_, folder = overtrained
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name for name in rows[0] if name.startswith("memguard/")}
    assert {f"memguard/{key}" for key in KEYS} <= logged
    values = [float(row["memguard/membership_auc"]) for row in rows if row["memguard/membership_auc"]]
    assert len(values) >= 30
    assert not any("patient" in name and "flagged" not in name for name in logged)


def _weights(tmp_path, *callbacks, **kwargs):
    pl.seed_everything(5, verbose=False)
    module = Forecaster()
    run = trainer(tmp_path, *callbacks, epochs=2, **kwargs)
    run.fit(module, *loaders())
    return torch.cat([p.detach().flatten() for p in module.parameters()]), torch.get_rng_state(), run


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"val_check_interval": 0.5}])
def test_training_is_bitwise_the_same_with_the_monitor(tmp_path, options):
    plain, plain_rng, run = _weights(tmp_path / "a", **options)
    monitor = LeakageMonitor(dirpath=tmp_path / "watch", every_n_steps=3)
    seen, seen_rng, other = _weights(tmp_path / "b", monitor, **options)
    assert torch.equal(plain, seen)
    assert torch.equal(plain_rng, seen_rng)
    assert run.callback_metrics["val_loss"] == other.callback_metrics["val_loss"]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("on_train_end", [True, False, None])
def test_a_resumed_run_ends_with_the_same_curve_and_flags(tmp_path, on_train_end):
    def fit(folder, epochs, ckpt=None):
        pl.seed_everything(3, verbose=False)
        monitor = LeakageMonitor(dirpath=folder / "watch", seed=4, hash_ids=False)
        keep = ModelCheckpoint(
            folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=on_train_end
        )
        # In order and without dropout: Lightning does not restore the generators of the run that was cut off.
        data = DataLoader(Visits(240, 1), batch_size=32), loaders()[1]
        run = trainer(folder, monitor, keep, epochs=epochs, enable_checkpointing=True)
        run.fit(Forecaster(dropout=0.0), *data, ckpt_path=ckpt)
        return monitor

    whole = fit(tmp_path / "whole", 4)
    rest = fit(tmp_path / "rest", 4, ckpt=tmp_path / "whole" / "epoch=1.ckpt")
    assert [p.epoch for p in rest.curve] == [1, 2, 3, 4]
    for a, b in zip(whole.curve, rest.curve, strict=True):
        assert (a.auc, a.tpr, a.flagged_patients, a.surrogate_fit) == (
            b.auc,
            b.tpr,
            b.flagged_patients,
            b.surrogate_fit,
        )
    assert whole.patients.equals(rest.patients)
    state = torch.load(tmp_path / "whole" / "epoch=1.ckpt", weights_only=True)
    assert any(key.startswith("LeakageMonitor") for key in state["callbacks"])


def test_early_stopping_and_checkpoints_can_follow_the_curve(tmp_path):
    stop = EarlyStopping("memguard/membership_auc", mode="min", patience=2)
    keep = ModelCheckpoint(
        tmp_path / "ckpt",
        monitor="memguard/loss_gap",
        mode="min",
        filename="{epoch}",
        auto_insert_metric_name=False,
    )
    monitor = LeakageMonitor(dirpath=tmp_path / "watch")
    run = trainer(tmp_path, monitor, stop, keep, epochs=4, enable_checkpointing=True)
    pl.seed_everything(0, verbose=False)
    run.fit(Forecaster(), *loaders())
    assert keep.best_model_path
    followed = float(run.callback_metrics["memguard/membership_auc"])
    assert monitor.curve[-1].auc.low <= followed <= monitor.curve[-1].auc.high


def test_everything_on_the_trainer_is_as_it_was_after_an_exception(tmp_path):
    class Breaks(Forecaster):
        def training_step(self, batch, batch_idx):
            if self.current_epoch == 1 and batch_idx == 2:
                raise RuntimeError("the disk is on fire")
            return super().training_step(batch, batch_idx)

    monitor = LeakageMonitor(dirpath=tmp_path / "watch")
    run = trainer(tmp_path, monitor, epochs=3)
    before = {name: set(vars(part)) for name, part in (("s", run.strategy), ("p", run.precision_plugin))}
    with pytest.raises(RuntimeError, match="on fire"):
        run.fit(Breaks(), *loaders())
    assert "training_step" not in vars(run.strategy)
    assert "process_dataloader" not in vars(run.strategy)
    assert "convert_input" not in vars(run.precision_plugin)
    assert before["p"] == set(vars(run.precision_plugin))
    assert monitor.report is not None  # what was seen until then is kept
    assert any("cut off by RuntimeError" in note for note in monitor.report.notes)
    assert len(monitor.report.curve) == 1


def test_a_patient_on_both_sides_is_refused_before_the_first_step(tmp_path):
    train = DataLoader(Visits(100, 1), batch_size=16)
    held = DataLoader(Visits(100, 2, first_patient=50), batch_size=16)
    module = Forecaster()
    before = module.out.weight.detach().clone()
    with pytest.raises(PatientOverlapError, match="50 of 100"):
        trainer(tmp_path, LeakageMonitor()).fit(module, train, held)
    assert torch.equal(before, module.out.weight)


def test_no_or_too_few_held_out_patients_are_refused_with_the_argument_that_helps(tmp_path):
    train, _ = loaders()
    with pytest.raises(HeldOutError, match="heldout="):
        trainer(tmp_path, LeakageMonitor()).fit(Forecaster(), train)
    few = DataLoader(Visits(10, 2, first_patient=10_000), batch_size=16)
    with pytest.raises(HeldOutError, match="10 held-out patients"):
        trainer(tmp_path, LeakageMonitor()).fit(Forecaster(), train, few)
    with pytest.raises(HeldOutError, match="heldout=None"):
        trainer(tmp_path, LeakageMonitor(heldout=None)).fit(Forecaster(), train, few)


def test_between_20_and_100_held_out_patients_there_is_a_curve_and_no_ranking(tmp_path):
    train, _ = loaders()
    some = DataLoader(Visits(60, 2, first_patient=10_000), batch_size=16)
    with pytest.warns(MemguardWarning, match="60 held-out patients"):
        monitor, *_ = watched(tmp_path, data=(train, some), epochs=1)
    assert monitor.curve[-1].auc.low < monitor.curve[-1].auc.high
    assert monitor.curve[-1].flagged_patients is None
    assert monitor.flags.height == 0
    assert sorted(monitor.curve[-1].tpr) == [0.1]
    written = WatchReport.from_json(monitor.files["json"].read_text())
    assert written.flagged_patients is None
    assert written.n_ranked == 0
    assert written.notes == ["Epoch 1: nobody is ranked (60 held-out patients, and a ranking needs 100)."]
    assert "nobody is cleared" in monitor.files["page"].read_text()


def test_without_patient_ids_the_unit_is_the_record_and_the_report_says_so(tmp_path):
    class Bare(Visits):
        def __init__(self, *args):
            super().__init__(*args)
            del self.patient_ids

    data = DataLoader(Bare(200, 1), batch_size=32), DataLoader(Bare(150, 2), batch_size=64)
    with pytest.warns(MemguardWarning, match="no patient ids"):
        monitor, *_ = watched(tmp_path, data=data, epochs=1)
    assert monitor.report.unit == "record"
    assert any("records, not about patients" in note for note in monitor.report.notes)


def test_several_records_of_a_patient_are_one_patient(tmp_path):
    monitor, *_ = watched(tmp_path, data=loaders(360, 360, per_patient=3), epochs=2)
    assert monitor.report.n_members == monitor.patients.height == 120
    assert set(monitor.patients["n_records"]) == {3}


def test_patients_by_sequence_function_mapping_and_batch_key(tmp_path):
    class Keyed(Visits):
        def __getitem__(self, i):
            return {"codes": self.codes[i], "mrn": int(self.patient_ids[i])}

    train = DataLoader(Keyed(200, 1, 0, 2), batch_size=32, shuffle=True)
    held = DataLoader(Keyed(240, 2, 10_000, 2), batch_size=64)
    ours, theirs = train.dataset.patient_ids, held.dataset.patient_ids
    ways = {
        "sequence": list(ours),
        "function": lambda i: int(ours[i]),
        "mapping": {"train": list(ours), "held_out": list(theirs)},
        "key": "mrn",
    }
    curves = {}
    for name, way in ways.items():
        monitor = LeakageMonitor(record_to_patient=way, dirpath=tmp_path / name)
        watched(tmp_path / name, monitor=monitor, data=(train, held), epochs=1)
        assert monitor.report.n_members == 100, name
        assert monitor.report.n_held_out == 120, name
        curves[name] = monitor.curve[-1].auc
    assert len({curve.value for curve in curves.values()}) == 1
    with pytest.raises(MemguardError, match="record_to_patient has 3 ids for 200 records"):
        watched(tmp_path, monitor=LeakageMonitor(record_to_patient=[1, 2, 3]), data=(train, held), epochs=1)


def test_held_out_patients_of_the_monitors_own(tmp_path):
    train, held = loaders()
    own = LeakageMonitor(heldout=held, dirpath=tmp_path / "own")
    pl.seed_everything(0, verbose=False)
    run = trainer(tmp_path / "a", own, epochs=1)
    run.fit(Forecaster(), train)  # no validation loop at all
    free, *_ = watched(tmp_path / "b", epochs=1)
    assert own.curve[-1].auc.value == pytest.approx(free.curve[-1].auc.value, abs=1e-6)
    assert own.curve[-1].held_out_loss == pytest.approx(free.curve[-1].held_out_loss, abs=1e-5)
    assert "memguard/membership_auc" in run.callback_metrics


def test_looks_between_validations(tmp_path):
    monitor = LeakageMonitor(every_n_steps=2, dirpath=tmp_path / "watch")
    watched(tmp_path, monitor=monitor, epochs=2)
    epochs = [point.epoch for point in monitor.curve]
    assert epochs == sorted(epochs)
    assert any(epoch % 1 for epoch in epochs)
    assert all(p.auc is not None for p in monitor.curve)
    assert all(p.flagged_patients is None for p in monitor.curve if p.epoch % 1)


def test_looks_between_take_a_sample_of_the_monitors_own_patients_and_looks_at_the_end_of_an_epoch_all(
    tmp_path,
):
    train, held = loaders(240, 500)
    monitor = LeakageMonitor(heldout=held, every_n_steps=3, dirpath=tmp_path / "watch")
    pl.seed_everything(0, verbose=False)
    trainer(tmp_path, monitor, epochs=2).fit(Forecaster(), train)
    compared = [(point.epoch % 1 == 0, point.auc.n - len(monitor.watch.sample)) for point in monitor.curve]
    assert {n for whole, n in compared if whole} == {500}
    assert max(n for whole, n in compared if not whole) == 200
    assert (monitor.watch.held_out.tokens > 0).all()


def test_every_second_epoch_and_sparse_validation(tmp_path):
    monitor = LeakageMonitor(every_n_epochs=2, dirpath=tmp_path / "a")
    watched(tmp_path / "a", monitor=monitor, epochs=4)
    assert [point.epoch for point in monitor.curve] == [1, 3, 4]
    monitor = LeakageMonitor(dirpath=tmp_path / "b")
    watched(tmp_path / "b", monitor=monitor, epochs=5, check_val_every_n_epoch=2)
    assert [point.epoch for point in monitor.curve] == [2, 4, 5]
    assert monitor.report is not None


def test_limited_batches_count_only_what_was_trained_on(tmp_path):
    ordered = DataLoader(Visits(240, 1), batch_size=32), loaders()[1]
    monitor, *_ = watched(tmp_path, data=ordered, epochs=4, limit_train_batches=3)
    assert monitor.curve[-1].coverage == pytest.approx(96 / 240)
    assert monitor.patients.height == 96
    assert monitor.watch.sample.max() < 96


def test_fast_dev_run_and_no_logger(tmp_path):
    monitor = LeakageMonitor(dirpath=tmp_path / "watch")
    watched(tmp_path, monitor=monitor, fast_dev_run=True)
    pl.seed_everything(0, verbose=False)
    run = trainer(tmp_path, LeakageMonitor(dirpath=tmp_path / "watch2"), epochs=1, logger=False)
    run.fit(Forecaster(), *loaders())


def test_raw_ids_are_written_only_when_asked_for_and_the_report_says_so(tmp_path):
    monitor = LeakageMonitor(dirpath=tmp_path / "watch", hash_ids=False)
    watched(tmp_path, monitor=monitor, epochs=3)
    assert monitor.report.hashed_ids is False
    assert set(monitor.patients["patient"]) == {str(i) for i in range(240)}


def test_two_fits_of_one_monitor_do_not_mix(tmp_path):
    monitor = LeakageMonitor(dirpath=tmp_path / "watch")
    watched(tmp_path, monitor=monitor, epochs=2)
    watched(tmp_path, monitor=monitor, epochs=1)
    assert len(monitor.curve) == 1


def test_small_counts_are_logged_as_the_top_of_their_cell():
    from memguard.callbacks.outputs import logged
    from memguard.report.data import CurvePoint

    def flagged(n):
        return logged(CurvePoint(epoch=1, step=1, flagged_patients=n))["memguard/flagged_patients"]

    assert [flagged(n) for n in (0, 1, 4, 5)] == [0, 4, 4, 5]


def test_members_that_stand_for_held_out_and_the_other_way_round_are_not_flagged(tmp_path):
    """A model trained on other patients: none of its "members" was ever seen."""

    class Frozen(Forecaster):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    others = DataLoader(Visits(300, 9, first_patient=50_000), batch_size=32, shuffle=True)
    _, _, trained = watched(tmp_path / "first", data=(others, loaders()[1]), epochs=4)
    flagged, covered = [], []
    for seed in range(6):
        module = Frozen()
        module.load_state_dict(trained.state_dict())
        data = (
            DataLoader(Visits(240, 100 + seed), batch_size=32, shuffle=True),
            DataLoader(Visits(160, 200 + seed, first_patient=10_000), batch_size=64),
        )
        monitor = LeakageMonitor(dirpath=tmp_path / str(seed), seed=seed, final_evaluation=True)
        watched(tmp_path / str(seed), monitor=monitor, module=module, data=data, epochs=3)
        flagged.append(monitor.flags.height)
        last = monitor.curve[-1]
        covered.append(last.auc.low <= 0.5 <= last.auc.high)
        assert last.memorized_share.low < 0.15
    assert np.mean(np.array(flagged) > 0) <= 0.34
    assert np.mean(covered) >= 0.66


def test_one_reference_sharpens_the_expectation_and_leaves_the_run_alone(tmp_path):
    def fit(folder, budget):
        monitor = LeakageMonitor(dirpath=folder / "watch", reference_budget=budget, final_evaluation=True)
        data = loaders(240, 500)
        *_, module = watched(folder, monitor=monitor, data=data, epochs=5)
        return monitor, torch.cat([p.detach().flatten() for p in module.parameters()])

    without, plain = fit(tmp_path / "a", 0.0)
    monitor, weights = fit(tmp_path / "b", 1.0)
    assert torch.equal(plain, weights)
    assert any("One reference was trained on 250 held-out records" in note for note in monitor.report.notes)
    members, held = monitor.watch.reference
    assert np.isfinite(members).all()
    assert np.isfinite(held).sum() == 250
    assert members.mean() > monitor.curve[-1].member_loss  # it never saw them
    assert monitor.curve[-1].surrogate_fit > 0.8
    assert monitor.patients.height == without.patients.height == 240


def test_a_reference_needs_enough_held_out_patients(tmp_path):
    monitor = LeakageMonitor(dirpath=tmp_path / "watch", reference_budget=1.0)
    watched(tmp_path, monitor=monitor, epochs=2)
    assert any("No reference was trained: 80 held-out patients" in note for note in monitor.report.notes)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_trains_no_reference_from_weights_that_saw_the_members(tmp_path):
    keep = ModelCheckpoint(tmp_path / "a", filename="first")
    run = trainer(tmp_path / "a", keep, epochs=1, enable_checkpointing=True)
    data = loaders(240, 300)
    run.fit(Forecaster(), *data)
    monitor = LeakageMonitor(dirpath=tmp_path / "watch", reference_budget=1.0)
    again = trainer(tmp_path / "b", monitor, epochs=2)
    again.fit(Forecaster(), *data, ckpt_path=keep.best_model_path)
    assert monitor.watch.reference is None
    assert any("the run was resumed" in note for note in monitor.report.notes)


def test_a_subset_of_a_data_set_keeps_its_patients(tmp_path):
    whole = Visits(500, 1)
    rows = np.random.default_rng(0).permutation(500)
    data = (
        DataLoader(Subset(whole, rows[:300].tolist()), batch_size=32),
        DataLoader(Subset(whole, rows[300:].tolist()), batch_size=64),
    )
    monitor, *_ = watched(tmp_path, data=data, epochs=1)
    assert monitor.report.n_members == 300
    assert monitor.report.unit == "patient"


def test_a_split_by_time_is_caught_by_the_blind_baseline(tmp_path):
    class Later(Visits):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.codes = torch.where((self.codes > 0) & (self.codes < 12), self.codes + 20, self.codes)

    train, _ = loaders()
    monitor, *_ = watched(
        tmp_path, data=(train, DataLoader(Later(160, 2, first_patient=10_000), batch_size=64)), epochs=1
    )
    assert monitor.curve[-1].blind_auc.low > 0.6


def test_a_folder_that_cannot_be_written_costs_no_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(MemguardWarning, match="not written|cannot be used"):
        monitor, run, _ = watched(tmp_path, monitor=LeakageMonitor(dirpath=tmp_path / "file"), epochs=1)
    assert run.state.finished
    assert monitor.report is not None


def test_constructor_arguments_are_checked():
    with pytest.raises(MemguardError, match="every_n_epochs=0"):
        LeakageMonitor(every_n_epochs=0)
    with pytest.raises(MemguardError, match="flag_rate=2"):
        LeakageMonitor(flag_rate=2)
    with pytest.raises(MemguardError, match="log_on='always'"):
        LeakageMonitor(log_on="always")


def test_sequences_are_reproducible():
    assert torch.equal(sequences(5, 1), sequences(5, 1))
