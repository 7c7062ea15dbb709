"""The command line, as somebody types it: a checkpoint, a class, a datamodule, gates, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch

from memguard.cli import main
from memguard.cli.commands import COMMANDS

MODULE = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Patients(TensorDataset):
    def __init__(self, seed, n, first):
        generator = torch.Generator().manual_seed(seed)
        super().__init__(torch.randn(n, 6, generator=generator), torch.randint(0, 2, (n,), generator=generator))
        self.patient_ids = list(range(first, first + n))


class Data(pl.LightningDataModule):
    def __init__(self, n=60):
        super().__init__()
        self.n = n

    def train_dataloader(self):
        return DataLoader(Patients(0, self.n, 0), batch_size=20, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Patients(1, self.n, self.n), batch_size=20)


class Net(pl.LightningModule):
    def __init__(self, width=64):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small_net.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import small_net

        pl.seed_everything(0, verbose=False)
        trainer = pl.Trainer(
            max_epochs=60, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=folder, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(small_net.Net(width=48), small_net.Data())
        trainer.save_checkpoint(folder / "last.ckpt")
        yield folder
    sys.modules.pop("small_net", None)


def words(here, *more, out="out"):
    return [
        "audit", "--model", "small_net.Net", "--checkpoint", str(here / "last.ckpt"), "--data", "small_net.Data",
        "--probes", "membership", "--out", str(here / out), "--quiet", *more,
    ]  # fmt: skip


def test_audit_gates_and_report(here, capsys):
    holds, fails = "membership.loss.auc.low > .99", "membership.loss.auc.high > .6"
    assert main(words(here, "--references", "2", "--backend", "sequential", "--fail-if", holds)) == 0
    said = capsys.readouterr().out
    assert "pass  membership.loss.auc.low > .99" in said and "report.html" in said
    report = json.loads((here / "out" / "report.json").read_text())
    assert report["references"]["count"] == 2  # as long as the checkpoint says, which is all that is known
    assert main(["report", str(here / "out"), "--fail-if", holds, "--fail-if", fails]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["report", str(here / "out"), "--questions", str(here / "answers.json")]) == 0
    answers = json.loads((here / "answers.json").read_text())
    answers["users"]["answer"] = "Two cardiologists."
    (here / "answers.json").write_text(json.dumps(answers))
    assert main(["report", str(here / "out"), "--answers", str(here / "answers.json")]) == 0
    assert "Two cardiologists." in (here / "out" / "report.md").read_text()


def test_a_file_in_the_place_of_arguments(here, capsys):
    (here / "audit.yaml").write_text(
        f"model: small_net.Net\ndata: small_net.Data\ndata_args: {{n: 50}}\ncheckpoint: {here / 'last.ckpt'}\n"
        f"references: none\nprobes: membership\nout: {here / 'other'}\nquiet: true\n"
    )
    assert main(["audit", "--config", str(here / "audit.yaml")]) == 0
    assert json.loads((here / "other" / "report.json").read_text())["members"]["n_patients"] == 50


def test_a_gate_on_what_was_not_measured_fails(here, capsys):
    assert main(words(here, "--references", "none", "--fail-if", "trajectory.auc.low > .5", out="gate")) == 1


def test_check(here, capsys):
    run = ["check", "--model", "small_net.Net", "--data", "small_net.Data"]
    assert main(run) == 0
    said = capsys.readouterr().out
    assert "60 records" in said and "caution" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--model", "small_net.Nett"], "cannot be imported"),
        (["--model-args", "{width: 32}"], "do not fit Net"),
        (["--model-args", "{wide: 32}"], "--model-args"),
        (["--checkpoint", "no.ckpt"], "cannot be read"),
        (["--fail-if", "membership ~ 3"], "gate"),
        (["--probes", "membrship"], "use one of membership"),
        (["--out", "last.ckpt/out"], "nothing can be written"),
        (["--sensitive", "no.toml"], "cannot be read"),
        (["--static", "two"], "--static two"),
        (["--fail-if", "membership.loss.auc.hgh > .6"], "one of value, low, high, n"),
    ],
)
def test_what_cannot_be_used_is_said_with_code_2(here, capsys, monkeypatch, change, said):
    monkeypatch.chdir(here)
    assert main([*words(here, "--references", "none"), *change]) == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_that_would_run_code_is_not_loaded(here, capsys, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"state_dict": {}, "more": Harm()}, tmp_path / "bad.ckpt")
    assert main([*words(here, "--references", "none"), "--checkpoint", str(tmp_path / "bad.ckpt")]) == 2
    assert not (tmp_path / "harm").exists()
    assert "may run code" in capsys.readouterr().err


def test_help_teaches(here):
    done = subprocess.run(
        [sys.executable, "-m", "memguard.cli", "audit", "--help"], capture_output=True, text=True, check=True
    )
    assert "exit codes: 0 done" in done.stdout and "--fail-if" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_its_exit_codes_mean(capsys, name):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert COMMANDS[name].text in said and "exit codes: 0 " in said and "<class" not in said
    with pytest.raises(SystemExit):
        main(["--help"])
    assert COMMANDS[name].summary in capsys.readouterr().out


def test_the_ledger_of_a_private_training(here, tmp_path, capsys):
    import small_net

    from memguard import DPSGD

    dpsgd = DPSGD(noise_multiplier=1.0, checks=False, dirpath=tmp_path / "dp")
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[dpsgd],
    )  # fmt: skip
    trainer.fit(small_net.Net(width=8), small_net.Data())
    trainer.save_checkpoint(tmp_path / "private.ckpt")
    line = ["--checkpoint", str(tmp_path / "private.ckpt"), "--references", "none", "--claim"]
    assert main([*words(here, out="private"), *line, str(dpsgd.ledger_path)]) == 0
    report = json.loads((here / "private" / "report.json").read_text())
    assert report["claim"]["epsilon"] == pytest.approx(dpsgd.epsilon, rel=1e-6)
    assert "those with which it ended" in report["claim"]["source"]
    assert main([*words(here, out="none"), *line, str(tmp_path / "private.ckpt")]) == 2
    assert "a checkpoint can be rolled back" in capsys.readouterr().err
