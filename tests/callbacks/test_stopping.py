"""LeakageStopping in a Trainer: when it stops, what it keeps and puts back, what it says, and what it refuses."""

from __future__ import annotations

import contextlib
import stat
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _light import Firsts, Reader
from _light import loaders as light_loaders
from _private import Data, Held, Mlp, private
from _private import Visits as Private
from _runs import Forecaster, Visits, loaders, trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from memguard import LeakageMonitor, LeakageStopping
from memguard.attacks.estimate import Estimate
from memguard.callbacks.under_limit import KeptWeights
from memguard.capture.weights import weights_hash
from memguard.errors import DataError, MemguardError, MemguardWarning
from memguard.mitigations.looks import confidence_of
from memguard.privacy.ledger import Ledger
from memguard.privacy.statement import Statement
from memguard.probes.allowance import Allowance

pytestmark = pytest.mark.filterwarnings("ignore")


def estimate(value, n=400):
    return Estimate(value=value, low=value - 0.05, high=value + 0.05, n=n, method="scripted")


class Scripted(LeakageMonitor):
    """A monitor whose looks have the AUC that a script says; everything else is measured."""

    script: tuple = ()

    @property
    def last_look(self):
        look = self._results.last_look
        known = self.__dict__.setdefault("known", [])
        if look is None:
            return None
        if not known or known[-1][0] is not look:
            auc = estimate(self.script[min(len(known), len(self.script) - 1)])
            known.append((look, replace(look, membership=replace(look.membership, auc=auc))))
        return known[-1][1]


class Records(pl.Callback):
    """The weights at each end of a step and of an epoch."""

    def __init__(self):
        self.at = {}

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.at[trainer.global_step] = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}


def equal(module, weights):
    now = module.state_dict()
    return now.keys() == weights.keys() and all(torch.equal(now[k], v) for k, v in weights.items())


def fit(
    tmp_path,
    stopping,
    *more,
    script=None,
    epochs=6,
    module=None,
    data=None,
    ckpt=None,
    monitor=None,
    **kwargs,
):
    pl.seed_everything(0, verbose=False)
    options = {"dirpath": tmp_path / "watch", "final_evaluation": False, **(monitor or {})}
    watch = (LeakageMonitor if script is None else Scripted)(**options)
    if script is not None:
        watch.script = tuple(script)
    records, module = Records(), module or Forecaster(dropout=0.0)
    run = trainer(tmp_path, watch, stopping, records, *more, epochs=epochs, **{"logger": False, **kwargs})
    run.fit(module, *(data or loaders(120, 100)), ckpt_path=ckpt)
    return watch, run, module, records


def plain(limit, **kwargs):
    return LeakageStopping(limit, bound="value", **kwargs)


# -- a real training ------------------------------------------------------------------------------------------


def test_a_training_that_learns_by_heart_is_stopped_and_goes_back_to_the_best_weights_under_the_limit(
    tmp_path,
):
    stopping = LeakageStopping(0.6)
    module = Forecaster(lr=1e-2, dropout=0.0)
    watch, run, module, records = fit(tmp_path, stopping, epochs=25, module=module, data=loaders(240, 160))
    stopped, best = stopping.stopped, stopping.best
    assert stopped is not None and run.current_epoch == stopped.epoch < 25
    assert watch.curve[-1].auc.low > 0.6
    assert stopping.looks[-1].bound == stopped.bound > 0.6 >= best.bound
    # the same curve with the error shared out: none of the bounds is above that of the curve
    assert all(look.bound <= point.auc.low for look, point in zip(stopping.looks, watch.curve, strict=True))
    under = [look for look in stopping.looks if not look.over]
    assert best == min(under, key=lambda look: look.utility)
    assert best.utility == watch.curve[int(best.epoch) - 1].held_out_loss
    assert best.step != run.global_step
    assert equal(module, records.at[best.step]) and not equal(module, records.at[run.global_step])
    kept = load_file(stopping.best_path)
    assert equal(module, kept)
    module.load_state_dict(kept)
    assert stat.S_IMODE(stopping.best_path.stat().st_mode) == 0o600
    assert f"step {best.step}" in next(
        note for note in watch.report.notes if note.startswith("LeakageStopping")
    )


def test_bounds_are_made_for_the_planned_looks_together(tmp_path):
    stopping = LeakageStopping(0.99)
    watch, *_ = fit(tmp_path, stopping, epochs=3)
    assert stopping._planned == 5  # three epochs, the last one counts apart, and one when training is over
    for t, (look, point) in enumerate(zip(stopping.looks, watch.curve, strict=True), start=1):
        z = -np.log(point.auc.low / (1 - point.auc.low)) + np.log(point.auc.value / (1 - point.auc.value))
        from scipy.stats import norm

        ratio = norm.ppf(0.5 + confidence_of(t, 5) / 2) / norm.ppf(0.975)
        centre = np.log(point.auc.value / (1 - point.auc.value))
        assert look.bound == pytest.approx(1 / (1 + np.exp(-(centre - ratio * z))), abs=1e-6)
    each = LeakageStopping(0.99, over_looks=False)
    watch, *_ = fit(tmp_path, each, epochs=3)
    assert [look.bound for look in each.looks] == [point.auc.low for point in watch.curve]


@pytest.mark.parametrize("of", ["membership.tpr_at_fpr_0.1", "memorized_share"])
def test_other_numbers_are_bounded_from_the_losses_of_the_look(tmp_path, of, monkeypatch):
    from memguard.mitigations import looks

    def never(*args):
        raise AssertionError("the losses do not give the estimate of the look")

    monkeypatch.setattr(looks, "wider", never)
    stopping = LeakageStopping(0.95, of=of, bound="high", patience=99)
    module = Forecaster(lr=1e-2, dropout=0.0)
    watch, *_ = fit(
        tmp_path,
        stopping,
        epochs=4,
        module=module,
        data=loaders(240, 160),
        monitor={"final_evaluation": True},
    )
    points = [p.tpr[0.1] if "tpr" in of else p.memorized_share for p in watch.curve]
    assert len(stopping.looks) == 5  # the last point was looked at twice
    for look, point in zip(stopping.looks[:3], points, strict=False):
        assert look.bound >= point.high - 1e-6


# -- scripted leakage -----------------------------------------------------------------------------------------


def test_patience_counts_looks_in_a_row(tmp_path):
    stopping = plain(0.6, patience=2)
    _, run, module, records = fit(tmp_path, stopping, script=[0.5, 0.7, 0.5, 0.7, 0.7, 0.5])
    assert [look.over for look in stopping.looks] == [False, True, False, True, True]
    assert run.current_epoch == 5 and stopping.stopped.epoch == 5
    assert stopping.best.epoch == 3 and equal(module, records.at[stopping.best.step])
    key = "memguard/leakage_stopping/membership.auc"
    assert run.callback_metrics[f"{key}/bound"] == pytest.approx(0.7)
    assert run.callback_metrics[f"{key}/limit"] == pytest.approx(0.6)
    assert run.callback_metrics[f"{key}/over_in_a_row"] == 2


def test_looks_inside_an_epoch_stop_it_there(tmp_path):
    stopping = plain(0.6)
    script = [0.5, 0.5, 0.5, 0.5, 0.7]  # steps 1, 2, 3, 4 (the validation), 5
    _, run, module, records = fit(tmp_path, stopping, script=script, monitor={"every_n_steps": 1})
    assert stopping.stopped.step == run.global_step == 5
    assert len(records.at) == 5  # not one step more
    assert stopping.best.step <= 4 and equal(module, records.at[stopping.best.step])


def test_min_epochs_are_trained(tmp_path):
    stopping = plain(0.6)
    _, run, module, records = fit(tmp_path, stopping, script=[0.5, 0.7], min_epochs=4)
    assert stopping.stopped.epoch == 2 and run.current_epoch == 4
    assert stopping.best.epoch == 1 and equal(module, records.at[stopping.best.step])


def test_a_limit_that_is_never_passed_still_keeps_the_best(tmp_path):
    class Worse(Forecaster):
        def validation_step(self, batch, batch_idx):
            loss = super().validation_step(batch, batch_idx)
            self.log("score", float([3, 5, 4][self.current_epoch]))
            return loss

        def on_validation_epoch_end(self):
            self.log("late", float([3, 5, 4][self.current_epoch]))

    for utility in ("score", "late"):  # as torchmetrics are often logged
        stopping = plain(0.6, utility=utility, mode="max")
        _, run, module, records = fit(
            tmp_path / utility, stopping, script=[0.5], epochs=3, module=Worse(dropout=0.0)
        )
        assert stopping.stopped is None and run.current_epoch == 3
        assert stopping.best.epoch == 2 and stopping.best.utility == 5
        assert equal(module, records.at[stopping.best.step])
    with pytest.raises(MemguardError, match=r"utility='auroc'.*val_loss"):
        fit(tmp_path / "none", plain(0.6, utility="auroc"), script=[0.5], epochs=1)


def test_without_any_look_under_the_limit_nothing_is_kept_and_that_is_said(tmp_path):
    stopping = plain(0.6, patience=2)
    with pytest.warns(MemguardWarning, match=r"no look was under the limit 0\.6"):
        watch, run, module, records = fit(tmp_path, stopping, script=[0.7])
    assert stopping.best is None and stopping.best_path is None and not list(tmp_path.rglob("*.safetensors"))
    assert equal(module, records.at[run.global_step])
    assert any("No look was under the limit" in note for note in watch.report.notes)


def test_the_final_look_has_the_last_word_on_its_weights(tmp_path):
    stopping = plain(0.6)
    script = [0.5, 0.5, 0.5, 0.9]  # three epochs, and all members of the last
    with pytest.warns(MemguardWarning, match="the final look changed"):
        _, _, module, records = fit(
            tmp_path, stopping, script=script, epochs=3, monitor={"final_evaluation": True}
        )
    assert [look.step for look in stopping.looks] == [4, 8, 12, 12]
    assert stopping.best.step == 8 and equal(module, records.at[8])
    assert load_file(stopping.best_path).keys() and equal(module, load_file(stopping.best_path))


def test_restore_false_leaves_the_last_weights(tmp_path):
    stopping = plain(0.6, restore=False, dirpath=tmp_path / "mine")
    _, run, module, records = fit(tmp_path, stopping, script=[0.5, 0.7])
    assert equal(module, records.at[run.global_step])
    assert stopping.best_path.parent == tmp_path / "mine"
    kept, wanted = load_file(stopping.best_path), records.at[stopping.best.step]
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    none = plain(0.6, save=False)
    fit(tmp_path / "b", none, script=[0.5, 0.7])
    assert (
        none.best is not None and none.best_path is None and not list((tmp_path / "b").rglob("*.safetensors"))
    )


def test_buffers_and_shared_weights_come_back(tmp_path):
    class Shared(Forecaster):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.out.weight = self.embed.weight
            self.norm = torch.nn.BatchNorm1d(64)
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.register_buffer("never", torch.full((2,), torch.nan))

        def training_step(self, batch, batch_idx):
            self.count += 1
            self.norm(self.embed(batch["codes"][:, 0]))
            return super().training_step(batch, batch_idx)

    stopping = plain(0.6)
    _, run, module, records = fit(tmp_path, stopping, script=[0.5, 0.7], module=Shared())
    assert int(module.count) == stopping.best.step < run.global_step
    assert module.out.weight is module.embed.weight
    assert torch.equal(module.norm.running_mean, records.at[stopping.best.step]["norm.running_mean"])
    Shared().load_state_dict(load_file(stopping.best_path))


def test_a_module_that_hands_out_copies_is_refused_when_it_should_take_weights_back():
    class Copies(Forecaster):
        def state_dict(self, *args, **kwargs):
            return {k: v.clone() for k, v in super().state_dict(*args, **kwargs).items()}

    kept, module = KeptWeights(), Copies()
    kept.keep({1}, 1, module)
    torch.nn.init.zeros_(module.out.bias)
    with pytest.raises(MemguardError, match="does not take its own weights back"):
        kept.put_back(1, module)


def test_a_full_disk_costs_the_file_alone(tmp_path, monkeypatch):
    from memguard.callbacks import under_limit

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(under_limit, "write_whole", full)
    stopping = plain(0.6)
    with pytest.warns(MemguardWarning, match="No space left"):
        _, _, module, records = fit(tmp_path, stopping, script=[0.5, 0.7])
    assert stopping.best_path is None and equal(module, records.at[stopping.best.step])


def test_training_itself_is_left_as_it_was(tmp_path):
    _, _, with_it, _ = fit(tmp_path / "a", plain(0.9, restore=False), script=[0.5], epochs=3)
    pl.seed_everything(0, verbose=False)
    alone = Forecaster(dropout=0.0)
    monitor = LeakageMonitor(dirpath=tmp_path / "b", final_evaluation=False)
    trainer(tmp_path, monitor, epochs=3, logger=False).fit(alone, *loaders(120, 100))
    assert equal(with_it, alone.state_dict())


def test_a_fast_run_and_a_second_fit(tmp_path):
    stopping = plain(0.6)
    fit(tmp_path / "fast", stopping, script=[0.7], fast_dev_run=True)
    assert stopping.looks == [] and stopping.best is None
    fit(tmp_path / "a", stopping, script=[0.5, 0.7])
    first = stopping.looks
    fit(tmp_path / "b", stopping, script=[0.5, 0.7])
    assert stopping.looks == first


def test_few_patients_are_not_judged(tmp_path):
    class Few(Scripted):
        @property
        def last_look(self):
            look = super().last_look
            if look is None:
                return None
            return self.__dict__.setdefault("few", {}).setdefault(
                id(look), replace(look, membership=replace(look.membership, auc=estimate(0.9, n=4)))
            )

    stopping = plain(0.6)
    pl.seed_everything(0, verbose=False)
    few = Few(dirpath=tmp_path / "watch", final_evaluation=False)
    few.script = (0.9,)
    run = trainer(tmp_path, few, stopping, epochs=2, logger=False)
    with pytest.warns(MemguardWarning, match="judged no look: none had membership.auc"):
        run.fit(Forecaster(), *loaders(120, 100))
    assert any("No look had the number" in note for note in few.report.notes)
    assert stopping.looks == [] and not any("leakage_stopping" in name for name in run.callback_metrics)


# -- resuming -------------------------------------------------------------------------------------------------


class Cut(pl.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise ZeroDivisionError("killed")


@pytest.mark.parametrize("killed_after", [2, 4])
def test_a_killed_and_resumed_run_stops_at_the_same_look_with_the_same_best(tmp_path, killed_after):
    def data():
        train, held = Visits(120, 1), Visits(100, 2, first_patient=10_000)
        return DataLoader(train, batch_size=32), DataLoader(held, batch_size=100)

    def go(folder, script, cut=None, ckpt=None):
        keep = ModelCheckpoint(tmp_path / folder, filename="last", save_on_train_epoch_end=True)
        stopping = LeakageStopping(0.6, patience=2)
        more = [keep, *([Cut(cut)] if cut else [])]
        out = None
        with contextlib.suppress(ZeroDivisionError):
            out = fit(
                tmp_path / folder,
                stopping,
                *more,
                script=script,
                data=data(),
                ckpt=ckpt,
                enable_checkpointing=True,
            )
        return stopping, out, tmp_path / folder / "last.ckpt"

    script = [0.5, 0.5, 0.5, 0.9, 0.9, 0.5]
    whole, (_, run, module, _), _ = go("whole", script)
    killed, out, path = go("half", script, cut=killed_after)
    assert out is None and len(killed.looks) == killed_after
    resumed, (_, run2, module2, _), _ = go("again", script[killed_after:], ckpt=path)
    assert whole.stopped.epoch == 5
    assert resumed.looks == whole.looks and resumed.best == whole.best and resumed.stopped == whole.stopped
    assert run2.global_step == run.global_step
    assert equal(module2, module.state_dict())
    assert all(torch.equal(v, load_file(whole.best_path)[k]) for k, v in load_file(resumed.best_path).items())


def test_a_run_that_was_told_to_stop_does_not_go_on_when_resumed(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    first = plain(0.6)
    _, _, module, _ = fit(tmp_path / "a", first, keep, script=[0.5, 0.7], enable_checkpointing=True)
    again = plain(0.6)
    _, run, module2, records = fit(tmp_path / "b", again, script=[0.7], ckpt=keep.best_model_path)
    assert records.at == {} and run.current_epoch == 2
    assert again.best == first.best and equal(module2, module.state_dict())
    # another limit is another rule: it has no state there, and training goes on
    other = plain(0.8)
    _, run, *_ = fit(tmp_path / "c", other, script=[0.5], ckpt=keep.best_model_path)
    assert run.current_epoch == 6 and len(other.looks) == 4
    strange = plain(0.6)
    saved = torch.load(keep.best_model_path, weights_only=True)  # tensors and primitives
    saved["callbacks"][strange.state_key]["version"] = 2
    torch.save(saved, tmp_path / "strange.ckpt")
    with pytest.raises(DataError, match="another version"):
        fit(tmp_path / "d", strange, script=[0.5], ckpt=tmp_path / "strange.ckpt")


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"limit": 0.4}, "limit=0.4 of membership.auc"),
        ({"limit": 1.0}, "limit=1 of membership.auc"),
        ({"limit": float("nan")}, "limit=nan"),
        ({"limit": 0.005, "of": "membership.tpr_at_fpr_0.01"}, "0.01 is what chance gives"),
        ({"limit": -0.1, "of": "memorized_share"}, "limit=-0.1"),
        ({"limit": 0.6, "patience": 0}, "patience=0"),
        ({"limit": 0.6, "bound": "middle"}, "bound='middle'"),
        ({"limit": 0.6, "mode": "max"}, "without utility="),
        ({"limit": "0.6"}, "limit='0.6'"),
        ({"limit": 0.6, "of": None}, "of=None"),
        ({"limit": 0.6, "of": "auc"}, "of='auc'.*memorized_share"),
        ({"limit": 0.6, "of": "membership.tpr_at_fpr_many"}, "no false-positive rate"),
    ],
)
def test_arguments_are_refused(given, match):
    with pytest.raises(MemguardError, match=match):
        LeakageStopping(**given)


def test_numbers_of_numpy_are_numbers():
    stopping = LeakageStopping(np.float32(0.75), patience=np.int64(2))
    assert (stopping.rule.limit, stopping.rule.patience) == (0.75, 2)


def test_trainers_are_refused(tmp_path):
    def go(*callbacks, **kwargs):
        trainer(tmp_path, *callbacks, logger=False, **kwargs).fit(Forecaster(), *loaders(60, 40))

    with pytest.raises(MemguardError, match="0 LeakageMonitor"):
        go(plain(0.6))
    with pytest.raises(MemguardError, match="2 LeakageMonitor"):
        go(LeakageMonitor(), LeakageMonitor(heldout=DataLoader(Visits(40, 3))), plain(0.6))
    with pytest.raises(MemguardError, match="put the monitor first"):
        go(plain(0.6), LeakageMonitor())
    with pytest.raises(MemguardError, match="the audit would be about the last weights"):
        go(LeakageMonitor(audit_on_end=True), plain(0.6))
    with pytest.raises(MemguardError, match="beside LeakageStopping"):
        go(LeakageMonitor(), plain(0.6), plain(0.1, of="memorized_share"))
    with pytest.raises(MemguardError, match="beside EMAWeightAveraging"):
        go(LeakageMonitor(), plain(0.6), EMAWeightAveraging())
    with pytest.raises(MemguardError, match=r"the monitor measures .*tpr_at_fpr_0\.2, memorized_share"):
        go(LeakageMonitor(fprs=(0.2,)), plain(0.6, of="membership.tpr_at_fpr_0.1"))
    with pytest.raises(MemguardError, match=r"copies/<number>"):
        go(LeakageMonitor(probes=["copies"]), plain(0.6, of="attribute/minus_held_out"))
    # known only at the first look: 40 held-out patients cannot tell 1 in 1000
    with pytest.raises(MemguardError, match=r"too few for it, and the look has membership\.auc"):
        go(LeakageMonitor(dirpath=tmp_path), plain(0.6, of="membership.tpr_at_fpr_0.001"))


def test_two_limits_where_one_has_the_last_word(tmp_path):
    both = plain(0.6), plain(0.99, of="memorized_share", restore=False)
    _, run, *_ = fit(tmp_path, both[0], both[1], script=[0.5, 0.7], data=loaders(240, 160))
    assert run.current_epoch == 2 and len({one.best_path for one in both}) == 2
    assert {name.split("/")[2] for name in run.callback_metrics if "leakage_stopping" in name} == {
        "membership.auc",
        "memorized_share",
    }


def test_a_missing_library_is_said_at_once(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MemguardError, match="save=False"):
        LeakageStopping(0.6)
    LeakageStopping(0.6, save=False)


# -- beside DPSGD ---------------------------------------------------------------------------------------------


def test_beside_dpsgd_the_choice_stands_outside_of_epsilon(tmp_path):
    pl.seed_everything(0, verbose=False)
    dpsgd = private(noise_multiplier=1.0, delta=1e-3, dirpath=tmp_path / "dp")
    monitor = Scripted(dirpath=tmp_path / "watch", final_evaluation=False)
    monitor.script = (0.5, 0.7)
    stopping, module = plain(0.6), Mlp(lr=0.5)
    run = trainer(tmp_path, dpsgd, monitor, stopping, epochs=4, logger=False)
    with pytest.warns(MemguardWarning, match="LeakageStopping on 'membership.auc'") as heard:
        run.fit(module, datamodule=Data(Private(150, 300), Held(100, 150), batch_size=50))
    assert sum("which weights are kept" in str(one.message) for one in heard) == 1
    assert run.current_epoch == 2 and stopping.best.epoch == 1
    ledger = Ledger.read(dpsgd.ledger_path.parent, dpsgd.ledger_path.stem)
    kinds = [entry["kind"] for entry in ledger.tally.events]
    assert kinds.count("early_stop") == 1 and kinds.count("monitored_checkpoint") == 2
    assert ledger.tally.events[-1]["weights"] == weights_hash(module)
    statement = Statement.from_ledger(ledger)
    assert not statement.no_guarantee and statement.ended
    text = " ".join(statement.text().split())
    for acts_on in ("the number of steps", "which weights are kept"):
        assert text.count(f"LeakageStopping on 'membership.auc': {acts_on} then depends on") == 1
    assert "memguard/leakage_stopping/membership.auc/bound" in text
    written = " ".join((tmp_path / "dp").glob("*-statement.txt").__next__().read_text().split())
    assert "which weights are kept then depends on losses of training patients" in written


# -- probes of the audit --------------------------------------------------------------------------------------


def test_a_number_of_a_probe_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Allowance, "saved", property(lambda _: 1e6))

    def go(folder, stopping):
        monitor = LeakageMonitor(dirpath=folder, probes=[Firsts()], final_evaluation=False)
        pl.seed_everything(0, verbose=False)
        run = trainer(folder, monitor, stopping, epochs=3, logger=False)
        run.fit(Reader(), *light_loaders())
        return monitor, run

    stopping = LeakageStopping(-10.0, of="memguard/firsts/second.minus_held_out", patience=2, bound="high")
    monitor, run = go(tmp_path / "a", stopping)
    points = [point.probes["firsts"]["second.minus_held_out"] for point in monitor.curve]
    assert run.current_epoch == 2 and stopping.stopped.epoch == 2
    for look, point in zip(stopping.looks, points, strict=True):
        assert look.bound > point.high  # stretched
    assert "memguard/leakage_stopping/firsts/second.minus_held_out/bound" in run.callback_metrics
    with pytest.raises(MemguardError, match=r"the probe has firsts/second\.minus_held_out"):
        go(tmp_path / "b", plain(0.5, of="firsts/third"))
