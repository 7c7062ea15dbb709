"""Studies in YAML: what is laid over what, and what is refused before anything is trained."""

import pickle
import sys

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from memguard.comparing.written import read_study
from memguard.errors import MemguardError

MODULE = """
import lightning.pytorch as pl
from torch import nn


class Net(pl.LightningModule):
    def __init__(self, width=4, lr=0.1, encoder=None):
        super().__init__()
        if width < 1:
            raise ValueError("width below 1")
        self.width, self.lr, self.encoder = width, lr, encoder


class Deeper(pl.LightningModule):
    def __init__(self, depth=2):
        super().__init__()
        self.net, self.depth = nn.Linear(2, 2), depth


class Data(pl.LightningDataModule):
    def __init__(self, n=3):
        super().__init__()
        self.n = n


class Mark(pl.Callback):
    def __init__(self, name="mark"):
        self.name = name


def groups(subject):
    return {}
"""
BASE = """
model: {class_path: ward.Net, init_args: {width: 8, lr: 1e-3}}
data: {class_path: ward.Data, init_args: {n: 5}}
trainer: {max_epochs: 3, accelerator: cpu}
callbacks: [ward.Mark]
baseline: plain
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    (tmp_path / "ward.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text):
        (tmp_path / "study.yaml").write_text(text)
        return tmp_path / "study.yaml"

    yield write
    sys.modules.pop("ward", None)


@pytest.fixture
def arm(written):
    """An arm beside the baseline, from what stands under it."""
    return lambda text: read_study(written(f"{BASE}arms:\n  plain:\n  other: {text}\n")).arms["other"]


def test_an_arm_without_a_word_is_what_stands_above(written):
    study = read_study(written(f"{BASE}arms:\n  plain:\n"))
    plain = study.arms["plain"]
    module = plain.model()
    assert (module.width, module.lr, plain.trainer) == (8, 1e-3, {"max_epochs": 3, "accelerator": "cpu"})
    assert [one.name for one in plain.callbacks()] == ["mark"] and plain.settings == {}
    assert study.data().n == 5 and study.baseline == "plain" and study.seeds == 8


def test_each_call_makes_new_ones_and_reading_leaves_randomness_alone(written):
    before = torch.get_rng_state()
    study = read_study(written(BASE + "arms: {plain: {model: ward.Deeper}}"))
    assert torch.equal(before, torch.get_rng_state())
    plain = study.arms["plain"]
    assert plain.model() is not plain.model() and plain.callbacks()[0] is not plain.callbacks()[0]


def test_init_args_are_laid_over_one_by_one(arm):
    found = arm("{model: {init_args: {width: 16}}}")
    assert (found.model().width, found.model().lr) == (16, 1e-3)
    assert found.settings == {"model.width": 16}
    assert arm("{model: {init_args: }}").model().width == 8  # nothing written is nothing changed


@pytest.mark.parametrize("text", ["ward.Deeper", "{class_path: ward.Deeper}"])
def test_another_class_takes_no_arguments_of_the_first(arm, text):
    found = arm(f"{{model: {text}}}")
    assert type(found.model()).__name__ == "Deeper" and found.model().depth == 2
    assert found.settings == {"model": "Deeper"}
    assert arm("{model: {class_path: ward.Deeper, init_args: {depth: 5}}}").settings == {
        "model": "Deeper",
        "model.depth": 5,
    }
    assert arm("{model: {class_path: ward.Net, init_args: {width: 2}}}").model().lr == 1e-3  # the same class


def test_trainer_arguments_are_laid_over(arm):
    found = arm("{trainer: {max_epochs: 9, gradient_clip_val: 1e0}}")
    assert found.trainer == {"max_epochs": 9, "accelerator": "cpu", "gradient_clip_val": 1.0}
    assert found.settings == {"trainer.max_epochs": 9, "trainer.gradient_clip_val": 1.0}


def test_callbacks_are_added_with_and_without_arguments(arm):
    found = arm(
        "{callbacks: [ward.Mark, {class_path: ward.Mark, init_args: {name: third}}, {class_path: "
        "lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val_loss, min_delta: 5E-2}}]}"
    )
    *marks, early = found.callbacks()
    assert [one.name for one in marks] == ["mark", "mark", "third"]
    assert isinstance(early, EarlyStopping) and abs(early.min_delta) == 0.05
    assert found.settings == {
        "Mark": True,
        "Mark.name": "third",
        "EarlyStopping.monitor": "val_loss",
        "EarlyStopping.min_delta": 0.05,
    }


def test_classes_within_arguments_are_made(arm):
    linear = "{class_path: torch.nn.Linear, init_args: {in_features: 3, out_features: 2}}"
    found = arm(f"{{model: {{init_args: {{encoder: {linear}}}}}}}")
    assert isinstance(found.model().encoder, nn.Linear) and found.model().width == 8
    assert found.model().encoder is not found.model().encoder
    assert found.settings == {
        "model.encoder": "Linear",
        "model.encoder.in_features": 3,
        "model.encoder.out_features": 2,
    }
    several = arm(f"{{model: {{init_args: {{encoder: [{linear}, 7]}}}}}}").model().encoder
    assert isinstance(several[0], nn.Linear) and several[1] == 7


def test_settings_of_the_study(written):
    more = "seeds: 4\nstages: 2\ncontrol: false\nfpr: 2e-2\nstrata: ward.groups\nseed: 7\narms: {plain: }\n"
    study = read_study(written(BASE + more))
    assert (study.seeds, study.stages, study.control, study.fpr, study.seed) == (4, 2, False, 0.02, 7)
    assert study.strata.__name__ == "groups"


def test_a_study_can_be_sent_to_other_processes(written):
    arms = pickle.loads(pickle.dumps(read_study(written(f"{BASE}arms: {{plain: }}")).arms))
    assert arms["plain"].model().width == 8 and arms["plain"].callbacks()[0].name == "mark"


ARMS = "arms: {plain: }\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: [", "cannot be read"),
        ("{}", "without arms:"),
        ("- plain", "without arms:"),
        (f"{BASE}arms: [plain]", "without arms:"),
        (BASE.replace("baseline: plain", "") + ARMS, "without baseline:"),
        (BASE.replace("data:", "dta:") + ARMS, "has dta"),
        (BASE.replace("class_path: ward.Data, ", "") + ARMS, r"data: without class_path:"),
        (BASE.replace("class_path: ward.Net, ", "") + ARMS, r"model: without class_path:"),
        (BASE.replace("[ward.Mark]", "[{init_args: {name: a}}]") + ARMS, "without class_path:"),
        (BASE.replace("[ward.Mark]", "ward.Mark") + ARMS, "callbacks: 'ward.Mark'"),
        (BASE.replace("[ward.Mark]", "[3]") + ARMS, "3. no class is named"),
        (BASE.replace("{max_epochs: 3, accelerator: cpu}", "3") + ARMS, "trainer: 3"),
        (BASE.replace("{width: 8, lr: 1e-3}", "[8]") + ARMS, r"init_args: \[8\]"),
        (BASE.replace("ward.Net", "ward.Nett") + ARMS, "class_path ward.Nett cannot be imported"),
        (BASE.replace("ward.Net", "Net") + ARMS, "class_path Net cannot be imported"),
        (
            BASE.replace("ward.Net", "ward.Mark").replace("width: 8, lr: 1e-3", "") + ARMS,
            "Mark where a Light",
        ),
        (BASE.replace("[ward.Mark]", "[ward.Deeper]") + ARMS, "Deeper where a Callback belongs"),
        (BASE.replace("width: 8", "wide: 8") + ARMS, "Net cannot be made.*wide.*init_args of ward.Net"),
        (BASE.replace("width: 8", "width: 0") + ARMS, "ValueError: width below 1"),
        (BASE.replace("init_args: {width: 8", "width: 8, init_args: {width: 8") + ARMS, "width beside class"),
        (f"{BASE}arms: {{plain: , other: [1]}}", r"arm 'other' is \[1\]"),
        (f"{BASE}arms: {{plain: , other: {{epochs: 3}}}}", "arm 'other' has epochs"),
        (f"{BASE}arms: {{plain: , plain: {{trainer: {{max_epochs: 9}}}}}}", r"plain: twice \(line 7\)"),
        (f"{BASE}arms: {{plain: {{trainer: {{logger: true}}}}}}", "trainer argument logger"),
        (f"{BASE}arms: {{other: }}", "baseline 'plain'"),
        (f"{BASE}{ARMS}strata: ward.group", "strata: ward.group cannot be imported"),
        (f"{BASE}{ARMS}fpr: one in ten", "fpr='one in ten'"),
        (f"{BASE}{ARMS}seeds: many", "seeds='many'"),
        (f"{BASE}arms: {{plain: , no: , off: }}", "goes by False.*in quotes"),
        (BASE.replace("baseline: plain", "baseline: off") + ARMS, "goes by False"),
    ],
)
def test_what_cannot_be_a_study_is_refused(written, text, said):
    with pytest.raises(MemguardError, match=f"(?is){said}"):
        read_study(written(text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MemguardError, match=r"none\.yaml cannot be read"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00arms")
    with pytest.raises(MemguardError, match=r"bytes\.yaml cannot be read"):
        read_study(tmp_path / "bytes.yaml")


def test_anchors_are_not_names_that_stand_twice(written):
    text = BASE + "arms:\n  plain: &more {trainer: &long {max_epochs: 5}}\n  other: *more\n"
    merged = text + "  third: {trainer: {<<: *long, max_epochs: 6, min_epochs: 2}}\n"
    study = read_study(written(merged))
    assert study.arms["other"].trainer["max_epochs"] == 5
    assert study.arms["third"].settings == {"trainer.max_epochs": 6, "trainer.min_epochs": 2}
