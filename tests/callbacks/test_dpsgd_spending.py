"""Steps, ledger and epsilon: over resumes, rollbacks and lost files, what was spent is never forgotten."""

from __future__ import annotations

import functools
import shutil
import warnings

import lightning.pytorch as pl
import pytest
import torch
from _private import Data, Held, Mlp, Recorder, Visits, private, trainer, worst
from lightning.pytorch.callbacks import ModelCheckpoint

from memguard.callbacks.dpsgd import DPSGD
from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.accounting import Phase, epsilon
from memguard.privacy.ledger import Ledger

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")


def ledger_of(dpsgd):
    return Ledger.read(dpsgd.ledger_path.parent, dpsgd.ledger_path.stem)


def fit(folder, dpsgd, *callbacks, module=None, data=None, ckpt=None, epochs=2, **options):
    """A fit that keeps a checkpoint of every step, ``step=N.ckpt``."""
    keep = ModelCheckpoint(
        folder / "kept",
        filename="{step}",
        every_n_train_steps=1,
        save_top_k=-1,
        save_on_train_epoch_end=False,
    )
    run = trainer(folder, dpsgd, *callbacks, keep, max_epochs=epochs, enable_checkpointing=True, **options)
    run.fit(module or Mlp(), datamodule=data or Data(batch_size=20, val=Held()), ckpt_path=ckpt)
    return run


@functools.cache
def _of(history):
    return epsilon(history, 1e-3).value


def of(history):
    """Epsilon at delta .001."""
    return _of(tuple(history))


@pytest.fixture
def begun(tmp_path, unstated):
    """A run of 2 epochs of 3 steps at noise 2, with a checkpoint of each step."""
    first = private(noise_multiplier=2.0, delta=1e-3)
    fit(tmp_path, first)
    return first


def kept(folder, step):
    return folder / "kept" / f"step={step}.ckpt"


class Stops(pl.Callback):
    """A run that is cut off right after the checkpoint of a step, so that its ledger ends there too."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize("step", [3, 2, 1], ids=["end of an epoch", "inside", "first step"])
def test_epsilon_of_a_resumed_run_is_that_of_the_uninterrupted_one(tmp_path, unstated, step):
    cut = private(noise_multiplier=2.0, delta=1e-3)
    fit(tmp_path, cut, Stops(step))
    assert cut._run.steps == step
    again = private(noise_multiplier=2.0, delta=1e-3)
    run = fit(tmp_path, again, ckpt=kept(tmp_path, step))
    assert run.global_step == 6
    assert again._run.steps == ledger_of(again).n_steps == 6
    assert again.ledger_path == cut.ledger_path
    assert ledger_of(again).history() == [Phase(2.0, 1 / 3, 6)]
    assert again.epsilon == of([Phase(2.0, 1 / 3, 6)])
    assert [entry["step"] for entry in ledger_of(again).entries() if entry["kind"] == "step"] == [*range(6)]


@pytest.mark.parametrize("physical", [None, 6], ids=["whole draws", "parts"])
def test_updates_after_a_resume_are_those_of_plain_dp_sgd(tmp_path, physical):
    module, data = Mlp(), Data(batch_size=20)
    fit(tmp_path, private(physical_batch_size=physical), epochs=1)
    again = private(physical_batch_size=physical)
    recorder = Recorder(again)
    run = fit(tmp_path, again, recorder, module=module, data=data, ckpt=kept(tmp_path, 2), epochs=3)
    assert run.global_step == 9
    assert len(recorder.steps) == 7
    assert worst(again, recorder, module, data.train) < 1e-6


class SavesAt(pl.Callback):
    """A checkpoint after some batch, in the middle of a draw."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("batch", "workers"), [(0, 0), (1, 0), (2, 0), (13, 0), (1, 1)])
@pytest.mark.filterwarnings("ignore:.*persistent_workers")
def test_resume_in_the_middle_of_a_draw(tmp_path, batch, workers):
    module, data = Mlp(), Data(batch_size=10, num_workers=workers)
    first = private(physical_batch_size=20)
    trainer(tmp_path, first, SavesAt(tmp_path / "torn.ckpt", batch), max_epochs=3).fit(Mlp(), datamodule=data)
    parts = first._run.plan.parts
    assert parts == 3
    assert first._run.steps == 18
    again = private(physical_batch_size=20)
    recorder = Recorder(again)
    run = trainer(tmp_path, again, recorder, max_epochs=3)
    run.fit(module, datamodule=data, ckpt_path=tmp_path / "torn.ckpt")
    done = (batch + 1) // parts
    assert run.global_step == 18
    assert len(recorder.steps) == 18 - done
    assert recorder.batches == 18 * parts - batch - 1
    assert again._run.steps == 36 - done
    assert worst(again, recorder, module, data.train) < 1e-6


@pytest.mark.parametrize("batch", [3, 5])
def test_resume_inside_an_epoch_with_other_parts(tmp_path, batch):
    first = private(physical_batch_size=20)
    data = Data(batch_size=10)
    trainer(tmp_path, first, SavesAt(tmp_path / "torn.ckpt", batch), max_epochs=2).fit(Mlp(), datamodule=data)
    again = private(physical_batch_size=4)
    recorder, module = Recorder(again), Mlp()
    run = trainer(tmp_path, again, recorder, max_epochs=2)
    run.fit(module, datamodule=data, ckpt_path=tmp_path / "torn.ckpt")
    assert again._run.plan.parts != first._run.plan.parts == 3
    done = (batch + 1) // 3
    assert run.global_step == 12
    assert len(recorder.steps) == 12 - done
    assert recorder.batches == (12 - done) * again._run.plan.parts
    assert worst(again, recorder, module, data.train) < 1e-6


def test_a_rollback_counts_what_was_repeated(tmp_path, begun):
    again = private(noise_multiplier=2.0, delta=1e-3)
    run = fit(tmp_path, again, ckpt=kept(tmp_path, 2))
    assert run.global_step == 6
    assert again._run.steps == ledger_of(again).n_steps == 10
    assert again.epsilon == of([Phase(2.0, 1 / 3, 10)]) > of([Phase(2.0, 1 / 3, 6)])


def test_a_target_is_kept_over_a_rollback(tmp_path, unstated):
    settings = {"target_epsilon": 4.0, "delta": 1e-3}
    cut = private(**settings)
    fit(tmp_path, cut, Stops(4))
    again = private(**settings)
    run = fit(tmp_path, again, ckpt=kept(tmp_path, 2))
    assert run.global_step == 6
    assert again._run.steps == 8
    assert again.noise_multiplier > cut.noise_multiplier
    assert 3.9 < again.epsilon <= 4.0
    with pytest.raises(PrivacyError, match=r"8 steps have spent epsilon .*of target_epsilon=4.*raise target"):
        fit(tmp_path, private(**settings), ckpt=kept(tmp_path, 2))  # nothing is left


def test_a_target_is_kept_with_the_same_noise_over_a_resume(tmp_path, unstated):
    settings = {"target_epsilon": 4.0, "delta": 1e-3}
    cut = private(**settings)
    fit(tmp_path, cut, Stops(4))
    again = private(**settings)
    fit(tmp_path, again, ckpt=kept(tmp_path, 4))
    assert again.noise_multiplier == cut.noise_multiplier
    assert ledger_of(again).history() == [Phase(cut.noise_multiplier, 1 / 3, 6)]
    assert 3.9 < again.epsilon <= 4.0


def test_more_steps_than_planned_are_not_taken(tmp_path, unstated):
    class Extends(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.fit_loop.max_epochs = 9

    dpsgd = private(target_epsilon=4.0, delta=1e-3)
    run = fit(tmp_path, dpsgd, Extends())
    assert run.global_step == dpsgd._run.steps == 6
    assert dpsgd.epsilon <= 4.0
    run.fit_loop.min_epochs = None

    class Insists(Extends):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = False

    dpsgd = private(target_epsilon=4.0, delta=1e-3)
    with pytest.raises(PrivacyError, match="a step more than the 6"):
        fit(tmp_path, dpsgd, Insists())
    assert dpsgd._run.steps == ledger_of(dpsgd).n_steps == 6


def test_the_natural_end_is_no_early_stop(tmp_path, unstated):
    validations = []

    class Counts(Mlp):
        def on_validation_start(self):
            validations.append(self.trainer.current_epoch)

    dpsgd = private(target_epsilon=4.0, delta=1e-3)
    run = fit(tmp_path, dpsgd, module=Counts(), epochs=3, check_val_every_n_epoch=2, num_sanity_val_steps=0)
    assert validations == [1]
    assert not run.should_stop
    (end,) = [entry for entry in ledger_of(dpsgd).entries() if entry["kind"] == "ended"]
    assert end["why"] == "as planned"


# -- what is refused ------------------------------------------------------------------------------------------


def test_without_its_ledger_a_run_is_not_resumed(tmp_path, begun):
    path = begun.ledger_path
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(path, away / path.name)
    with pytest.raises(
        PrivacyError, match=r"no ledger .*epsilon would begin at zero again.*put the file there"
    ):
        fit(tmp_path, private(noise_multiplier=2.0, delta=1e-3), ckpt=kept(tmp_path, 2))
    moved = private(noise_multiplier=2.0, delta=1e-3, dirpath=away)
    fit(tmp_path, moved, ckpt=kept(tmp_path, 2))
    assert moved.ledger_path.parent == away
    assert moved._run.steps == 10


def test_an_older_copy_of_the_ledger_is_refused(tmp_path, begun):
    lines = begun.ledger_path.read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if line.startswith(b'{"kind":"step"'))
    begun.ledger_path.write_bytes(b"".join(lines[: at + 2]))
    with pytest.raises(PrivacyError, match="holds 2 steps, the checkpoint knows of 6"):
        fit(tmp_path, private(noise_multiplier=2.0, delta=1e-3), ckpt=kept(tmp_path, 6), epochs=3)


def test_a_checkpoint_without_dpsgd_is_refused(tmp_path):
    fit(tmp_path, pl.Callback())
    with pytest.raises(PrivacyError, match=r"from step 2.*no state of DPSGD.*no epsilon could be given"):
        fit(tmp_path, private(), ckpt=kept(tmp_path, 2))


@pytest.mark.parametrize(
    ("settings", "data", "match"),
    [
        ({}, Visits(24, 60, seed=5), "fingerprint of the data set"),
        ({}, Visits(20, 60), "n_owners"),
        ({"unit": "record"}, None, "unit patient then, record now"),
        ({"max_records_per_patient": 1}, None, "max_records"),
        ({"average": "sum"}, None, "average mean then, sum now"),
    ],
)
def test_other_data_or_another_unit_are_refused(tmp_path, begun, settings, data, match):
    with pytest.raises(PrivacyError, match=match):
        fit(
            tmp_path, private(noise_multiplier=2.0, delta=1e-3, **settings), ckpt=kept(tmp_path, 2),
            data=Data(train=data, batch_size=20),
        )  # fmt: skip


def test_a_resume_with_other_noise_is_another_phase(tmp_path, begun):
    again = private(noise_multiplier=5.0, delta=1e-3)
    fit(tmp_path, again, ckpt=kept(tmp_path, 4))
    assert ledger_of(again).history() == [Phase(2.0, 1 / 3, 6), Phase(5.0, 1 / 3, 2)]
    assert again._run.epsilon_now() > of([Phase(2.0, 1 / 3, 6)])


# -- noise ----------------------------------------------------------------------------------------------------


def noise_of(recorder):
    return [torch.cat([grad.flatten() for grad in grads.values()]) for _, _, grads in recorder.steps]


def test_noise_and_draws_are_never_repeated(tmp_path, unstated):
    settings = {"noise_multiplier": 100.0, "delta": 1e-3, "sample_rate": 0.5}
    updates, draws, seeds = [], [], []
    for ckpt in (None, kept(tmp_path, 2), kept(tmp_path, 2)):
        pl.seed_everything(7, verbose=False)
        dpsgd = private(**settings)
        recorder = Recorder(dpsgd)
        fit(tmp_path, dpsgd, recorder, ckpt=ckpt)
        updates += noise_of(recorder)
        draws += [tuple(positions) for _, positions, _ in recorder.steps]
        seeds = ledger_of(dpsgd).seeds()
    assert len(set(draws)) == len(draws) >= 6
    assert len(set(seeds)) == len(seeds) == 6
    apart = torch.corrcoef(torch.stack(updates)) - torch.eye(len(updates))
    assert apart.abs().max() < 0.6  # 74 numbers: equal noise would give .99 and more


def test_noise_has_the_size_that_is_accounted(tmp_path, unstated):
    dpsgd = private(noise_multiplier=50.0, max_grad_norm=0.2)
    recorder = Recorder(dpsgd)
    fit(tmp_path, dpsgd, recorder, epochs=6)
    found = torch.cat(noise_of(recorder))
    assert found.std().item() == pytest.approx(50 * 0.2 / dpsgd._run.plan.expected_owners, rel=0.1)
    assert found.mean().abs().item() < 4 * found.std().item() / len(found) ** 0.5


def accuracy(noise, folder):
    pl.seed_everything(0, verbose=False)
    module, data = Mlp(lr=1.0), Data(Visits(100, 150), Held(60, 200), batch_size=30)
    dpsgd = private(noise_multiplier=noise, max_grad_norm=1.0)
    trainer(folder, dpsgd, max_epochs=4, limit_val_batches=0).fit(module, datamodule=data)
    with torch.no_grad():
        right = module(data.val.x).argmax(1) == data.val.y
    return right.float().mean().item()


def test_noise_of_a_thousand_destroys_what_is_learned(tmp_path, unstated):
    # Draws come from the system's randomness: .91 +- .02 without noise, .5 +- .15 with it.
    assert sum(accuracy(0.0, tmp_path) for _ in range(2)) / 2 > 0.82
    assert sum(accuracy(1e3, tmp_path) for _ in range(4)) / 4 < 0.8


def test_a_statement_that_cannot_be_written_costs_no_training(tmp_path, monkeypatch):
    from memguard.privacy.run import PrivateRun

    def full(run):
        raise OSError("no space left on device")

    monkeypatch.setattr(PrivateRun, "write_statement", full)
    module = Mlp()
    before = module.net[0].weight.clone()
    with pytest.warns(MemguardWarning, match="no space left"):
        trainer(tmp_path, private()).fit(module, datamodule=Data(batch_size=20))
    assert not torch.equal(module.net[0].weight, before)


def test_files_are_for_their_owner_alone(tmp_path):
    dpsgd = private()
    trainer(tmp_path, dpsgd).fit(Mlp(), datamodule=Data(batch_size=20))
    files = {path.name: path.stat().st_mode & 0o777 for path in dpsgd.ledger_path.parent.iterdir()}
    run = dpsgd.ledger_path.stem
    assert files == {f"{run}.jsonl": 0o600, f"{run}-statement.txt": 0o600, f"{run}-statement.json": 0o600}
    assert DPSGD(noise_multiplier=1.0).ledger_path is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dpsgd.statement().text().startswith("NO GUARANTEE")
