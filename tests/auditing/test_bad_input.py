"""What a stranger gets wrong: the audit runs what it can, says what it could not, and fills no gap by a default."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import memguard
from memguard.adapters import CausalAdapter
from memguard.errors import DataError, MemguardError
from memguard.probes.asked import Budget
from memguard.report.audit import evaluate
from tests.auditing._next_codes import NAMES as ALL_NAMES
from tests.auditing._next_codes import Codes, Data, Next, fitted

NAMES = (*ALL_NAMES[:-1], "ICD10CM/B20")  # a sensitive code among them
pytestmark = pytest.mark.filterwarnings("ignore::memguard.MemguardWarning")


class Few(Data):
    """A record for each of a few patients."""

    def __init__(self, held=30):
        super().__init__(40, held, each=1, vocabulary=NAMES)


class NanWhereSeven(Next):
    """Diverges on some records alone."""

    def forward(self, codes):
        seen = ((codes == 7).cumsum(1) > 0)[..., None] & torch.tensor(not self.training)
        return super().forward(codes).masked_fill(seen, torch.nan)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fitted(Few(), tmp_path_factory.mktemp("fit"))


@pytest.fixture
def ask(trained, tmp_path):
    def run(data=None, module=None, **options):
        given = {
            "references": "none", "probes": ["membership"], "backend": "sequential", "folder": tmp_path / "kept",
            "progress": False, "budget": Budget(patients=10, samples=1),
        }  # fmt: skip
        return memguard.audit(module or trained, data or Few(), **{**given, **options})

    return run


def gaps_of(found):
    return {gap.what: gap for gap in found.report.gaps()}


def as_trained(kind, trained):
    module = kind()
    module.load_state_dict(trained.state_dict())
    module._trainer = trained._trainer
    return module


@pytest.mark.parametrize(
    ("vocabulary", "why"),
    [
        ((*NAMES, "X"), "31 names for a model of 30 tokens"),
        (NAMES[:9], "9 names, and records hold tokens up to 29"),
    ],
)
def test_names_of_another_tokenizer_cost_what_needs_names_and_nothing_else(ask, vocabulary, why):
    found = ask(vocabulary=vocabulary, probes=["membership", "attribute"])
    gap = gaps_of(found)["Anything that needs names of codes: sensitive codes, age, sex"]
    assert gap.why.startswith(why) and "vocabulary=" in gap.fix
    numbers = found.report.numbers()
    assert numbers["membership.loss.auc"].estimate.low > 0.6
    assert not any(name.startswith("attribute.") for name in numbers)
    assert found.subject.names == () and "elderly" not in found.subject.strata


def test_a_vocabulary_that_is_shorter_than_the_model_and_not_than_the_data_is_filled_up(ask):
    data = Few()
    for side in (data.train, data.held):
        side.rows = side.rows.clamp(max=28)
    found = ask(data, vocabulary=NAMES[:29])
    assert found.subject.names == (*NAMES[:29], "tok29")


def test_tokens_that_the_model_does_not_know(ask):
    for side in ("train", "held"):
        data = Few()
        getattr(data, side).rows[:, 5] = 77
        with pytest.raises(DataError, match=r"the model fails on .*IndexError.*another tokenizer"):
            ask(data)


def test_weights_of_another_training_are_said_to_be(ask, trained):
    data = Few()
    order = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(1, 30)))
    for side in (data.train, data.held):  # another tokenizer with as many tokens
        side.rows = torch.cat([torch.zeros(1, dtype=torch.long), order])[side.rows]
    found = ask(data)
    gap = gaps_of(found)["The model of these patients, as it seems"]
    assert "more than a guess among" in gap.why
    assert "as it seems" in str(found)
    assert "The model of these patients, as it seems" not in gaps_of(ask())


class Wrong(pl.LightningModule):
    """Gives the outcome the wrong way round."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[5.0, 0.0], [-5.0, 0.0]]))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class WrongToo(Wrong):
    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)


def outcomes(seed):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=20)


def test_a_classifier_that_knows_less_than_a_guess_is_not_of_these_patients():
    options = {"references": "none", "probes": ["membership"], "progress": False}
    found = memguard.audit(WrongToo(), (outcomes(0), outcomes(1)), **options)
    why = gaps_of(found)["The model of these patients, as it seems"].why
    assert "2 outcomes of these records (0.69)" in why
    with pytest.raises(MemguardError, match="has no validation_step"):
        memguard.audit(Wrong(), (outcomes(0), outcomes(1)), **options)


def test_losses_that_are_no_numbers_cost_their_records_alone(ask, trained):
    module = as_trained(NanWhereSeven, trained)
    found = ask(module=module, adapter=CausalAdapter(module), probes=["membership", "trajectory"])
    gaps = gaps_of(found)
    assert "NaN" in gaps["Min-K %, K = 20"].why
    assert any("their loss is not a number" in gap.why for gap in gaps.values())
    seven = sum(bool((row == 7).any()) for side in (Few().train, Few().held) for row in side.rows[:, :-1])
    assert found.report.numbers()["membership.loss.auc"].estimate.n == 70 - seven
    assert "NaN" in gaps["Extraction: records given back word for word"].why


def test_a_model_of_nothing_but_nan_passes_no_gate(ask, trained):
    module = as_trained(Next, trained)
    with torch.no_grad():
        module.out.bias.fill_(torch.nan)
    found = ask(module=module)
    assert "Nothing was measured" in str(found)
    (gate,) = evaluate(["membership.strongest.auc.high > .6"], found.report)
    assert not gate.ok and "was not measured" in gate.reason


def test_where_nobody_could_be_flagged_a_gate_on_flags_does_not_pass(ask):
    found = ask(Few(held=6))
    assert "flagged" not in str(found)
    assert "Which patients stand out" in gaps_of(found)
    (gate,) = evaluate(["membership.flagged.value > 0"], found.report)
    assert not gate.ok and "was not measured" in gate.reason
    (gate,) = evaluate(["membership.tpr_at_fpr_0.01.high > .05"], found.report)
    assert (
        not gate.ok
        and gaps_of(found)["TPR at a false-positive rate of 0.01"].fix == "hold out at least 100 patients"
    )
    (gate,) = evaluate(["membership.flagged.value >= 41"], ask().report)
    assert gate.ok  # where somebody could be, none is a number


def test_an_adapter_that_cannot_generate(ask, trained):
    class Mute:
        abilities = frozenset({"log_probs"})

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

    found = ask(adapter=Mute(CausalAdapter(trained)), probes=["membership", "trajectory", "embedding"])
    gaps = gaps_of(found)
    assert "cannot be asked for continuations" in gaps["Extraction: records given back word for word"].why
    assert "cannot be asked for embeddings" in gaps["Attributes read from embeddings"].why
    assert "membership.min_k.auc" in found.report.numbers()


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: nn.Linear(2, 2), "a factory that gives Linear"),
    ],
)
def test_a_factory_that_gives_no_module(ask, factory, why):
    found = ask(references=2, factory=factory)
    assert why in gaps_of(found)["Comparison with reference models"].why
    assert found.report.references.kind == "counts"


def test_references_that_underfit_raise_an_alarm(ask):
    found = ask(references=2, trainer={"max_epochs": 1})
    assert found.report.references.alike is False
    assert any("underfit" in note for note in found.report.references.notes)
    assert str(found).startswith("The reference models are not like the audited one")


def test_references_of_another_data_set_are_not_taken(ask):
    ask(references=2)
    other = Few()
    other.train.rows = Codes(9, 40, 0, each=1).rows
    found = ask(other, references=2)
    assert any("do not fit any more: data" in note for note in found.report.references.notes)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"vocabulary": []}, "an empty vocabulary"),
        ({"vocabulary": 7}, "a vocabulary of type int"),
        ({"static": None}, "whole numbers of tokens"),
        ({"static": 1.5}, "whole numbers of tokens"),
        ({"references": 2, "backend": "quick"}, "backend='quick'"),
        ({"references": 2, "folder": "here/file"}, "nothing can be written to"),
        ({"strata": {"x": [True, False]}}, "a stratum 'x'"),
        ({"sensitive": "no.toml"}, "cannot be read"),
        ({"module": nn.Linear(2, 2)}, "a model of type Linear"),
        ({"module": pl.LightningModule()}, "fails on a training batch .*training_step"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_trained(
    ask, tmp_path, monkeypatch, options, match
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    with pytest.raises(MemguardError, match=match):
        ask(**options)
    assert not list((tmp_path / "kept").glob("references/*"))
