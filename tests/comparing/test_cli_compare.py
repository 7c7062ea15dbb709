"""``memguard compare``, as somebody types it: a study in YAML, a module of his own, exit codes, files."""

from __future__ import annotations

import sys

import pytest

from memguard.cli import main
from memguard.report.comparison import load

MODULE = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Patients(TensorDataset):
    def __init__(self, n, seed, first):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 6, generator=generator)
        super().__init__(x, (x[:, 0] + torch.randn(n, generator=generator) > 0).long())
        self.patient_ids = list(range(first, first + n))


class Data(pl.LightningDataModule):
    def __init__(self, n=60):
        super().__init__()
        self.n = n

    def train_dataloader(self):
        return DataLoader(Patients(self.n, 1, 0), batch_size=15, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Patients(self.n, 2, self.n), batch_size=60)


class Net(pl.LightningModule):
    def __init__(self, width=16, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)
"""
STUDY = """
model: {class_path: tiny_ward.Net}
data: {class_path: tiny_ward.Data}
trainer: {max_epochs: 3, accelerator: cpu}
baseline: plain
seeds: 3
stages: 1
control: false
arms:
  plain:
  dropout: {model: {init_args: {dropout: 0.5}}}
  narrow: {model: {init_args: {width: 2}}}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "tiny_ward.py").write_text(MODULE)
    (folder / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("tiny_ward", None)


def words(here, *more, folder="found"):
    return ["compare", str(here / "study.yaml"), "--folder", str(here / folder), *more]


def test_a_study_from_the_file_to_the_page_and_again_from_what_was_kept(here, capsys):
    assert main(words(here, "--arms", "dropout")) == 0
    said = capsys.readouterr()
    assert "12 trainings, 0 of them kept" in said.err and "12 of 12: " in said.err
    page = here / "found" / "comparison.html"
    assert "1 way to train, compared with “plain”" in said.out and str(page) in said.out
    assert "dropout" in page.read_text() and page.stat().st_mode & 0o077 == 0
    first = load(here / "found")
    assert first.names() == ["plain", "dropout"] and first.arm("dropout").settings == {"model.dropout": 0.5}

    assert main(words(here, "--arms", "dropout")) == 0
    again = capsys.readouterr()
    assert "12 trainings, 12 of them kept" in again.err and " of 12: " not in again.err
    assert again.out == said.out and load(here / "found").rows == first.rows

    assert main(words(here)) == 0  # the arm that is new is trained alone
    assert "18 trainings, 12 of them kept" in capsys.readouterr().err
    assert load(here / "found").names() == ["plain", "dropout", "narrow"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--arms", "another"], "no such arms"),
        (["--folder", "study.yaml/below"], "--folder"),
        (["--workers", "2"], "--workers 2 with --backend sequential"),
        (["--workers", "0", "--backend", "ray"], "a number from 1"),
    ],
)
def test_what_cannot_be_used_is_said_with_code_2(here, capsys, monkeypatch, more, said):
    monkeypatch.chdir(here)
    assert main(words(here, *more, folder="refused")) == 2
    heard = capsys.readouterr()
    assert said in heard.err and heard.err.startswith("memguard compare: ") and heard.out == ""


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("arms:", "ways:", "without arms:"),
        ("tiny_ward.Data", "tiny_ward.Date", "tiny_ward.Date cannot be imported"),
        ("tiny_ward.Data}", "tiny_ward.Data, init_args: {n: 20}}", "20 held-out patients"),
        ("max_epochs: 3", "max_epohcs: 3", "trainer argument max_epohcs"),
        ("plain:\n", "plain\n", "study.yaml cannot be read"),
    ],
)
def test_a_study_that_cannot_be_used_is_said_with_code_2(here, capsys, tmp_path, was, now, said):
    (tmp_path / "study.yaml").write_text(STUDY.replace(was, now))
    assert main(["compare", str(tmp_path / "study.yaml"), "--folder", str(tmp_path / "found")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "found" / "comparison.html").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Ray's own files
def test_ray_gives_the_same_numbers(here, capsys):
    ray = pytest.importorskip("ray")
    found = []
    for name, more in (("one", []), ("two", ["--backend", "ray", "--workers", "2"])):
        assert main(words(here, "--arms", "narrow", *more, folder=name)) == 0
        assert "12 trainings, 0 of them kept" in capsys.readouterr().err
        found.append(load(here / name))
    assert not ray.is_initialized(), "what was started is shut down"
    assert found[0].rows == found[1].rows and len(found[0].rows) > 10
    assert (found[0].may, found[0].may_not) == (found[1].may, found[1].may_not)
