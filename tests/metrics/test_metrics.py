"""Each metric says what the function behind it says, and behaves as a torchmetrics.Metric does."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _cases import GROUPED, METRICS, feed, full, records
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection

from memguard import attacks
from memguard.errors import MemguardError, MemguardWarning, ResolutionError
from memguard.metrics import (
    EpsilonLowerBound,
    Exposure,
    MembershipAdvantage,
    MembershipAUROC,
    TNRAtFNR,
    TPRAtFPR,
)

PREDS, TARGET, PATIENTS = (part.numpy() for part in records())


def by_function(name, groups=None):
    return {
        "auroc": lambda: attacks.auc(PREDS, TARGET, groups=groups),
        "tpr": lambda: attacks.tpr_at_fpr(PREDS, TARGET, 0.1, groups=groups),
        "tnr": lambda: attacks.tnr_at_fnr(-PREDS, TARGET, 0.1, groups=groups),
        "advantage": lambda: attacks.membership_advantage(PREDS, TARGET, groups=groups),
        "exposure": lambda: attacks.exposure(-PREDS[TARGET], -PREDS[~TARGET]).mean,
        "epsilon": lambda: attacks.epsilon_one_run(PREDS, TARGET, delta=1e-5),
    }[name]()


@pytest.mark.parametrize("name", METRICS)
def test_equals_the_function_whatever_the_batches(name):
    want = by_function(name)
    for size in (1, 37, 400):
        metric = METRICS[name]()
        feed(metric, name, range(400), size=size)
        assert full(metric, name) == repr(want)
        value = metric.compute()
        assert value.shape == () and value.dtype == torch.float32
        assert float(value) == pytest.approx(want.epsilon if name == "epsilon" else want.value, rel=1e-6)


@pytest.mark.parametrize("name", GROUPED)
def test_groups_cluster_the_interval(name):
    metric = METRICS[name]()
    feed(metric, name, range(400), grouped=True)
    assert metric.estimate() == by_function(name, PATIENTS) != by_function(name)
    assert metric.estimate().n == 200


@pytest.mark.parametrize("name", METRICS)
def test_is_a_metric(name, tmp_path):
    metric = METRICS[name]()
    assert isinstance(metric, Metric) and metric.higher_is_better is False and not metric.is_differentiable
    feed(metric, name, range(200))
    twin = pickle.loads(pickle.dumps(metric))
    other = copy.deepcopy(metric)
    assert full(twin, name) == full(other, name) == full(metric, name)
    rest = METRICS[name]()
    feed(rest, name, range(200, 400))
    first = full(metric, name)
    metric.merge_state(rest)
    assert full(metric, name) != first == full(twin, name)
    assert float(metric.compute()) == pytest.approx(float(METRICS_FULL(name)), rel=1e-6)
    # scores are saved only on request
    assert metric.state_dict() == {}
    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "state.pt")
    loaded = METRICS[name]()
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert full(loaded, name) == full(metric, name)
    metric.reset()
    feed(metric, name, range(200))
    assert full(metric, name) == full(twin, name)


def METRICS_FULL(name):
    metric = METRICS[name]()
    feed(metric, name, range(400))
    return metric.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_narrow_scores_are_kept_exactly(dtype):
    preds, target, _ = records()
    narrow = (4 * preds).to(dtype)
    for labels in (target, target.float(), target.long(), target.to(torch.uint8)):
        metric = MembershipAUROC()
        metric.update(narrow, labels)
        assert metric.estimate() == attacks.auc(narrow.double().numpy(), TARGET)


def test_gradients_are_left_alone_and_shapes_flattened():
    preds = torch.randn(6, 1, requires_grad=True)
    metric = MembershipAUROC()
    metric.update(preds, torch.tensor([[1], [1], [0], [0], [1], [0]]))
    assert not metric.compute().requires_grad
    assert all(not part.requires_grad and part.shape == (6,) for part in metric.preds)


def test_the_type_of_the_metric_does_not_touch_the_scores():
    preds, target, _ = records()
    metric = MembershipAUROC().half()
    metric.update(preds, target)
    assert metric.estimate() == attacks.auc(PREDS, TARGET)
    assert MembershipAUROC()._types()["preds"] is torch.float64
    apple = MembershipAUROC()
    apple._device = torch.device("mps")
    assert apple._types()["preds"] is torch.float32


def test_collection_shares_the_records():
    preds, target, groups = records()
    both = MetricCollection({name: make() for name, make in METRICS.items()})
    for rows in torch.arange(400).split(50):
        both.update(preds=preds[rows], target=target[rows], groups=groups[rows])
    assert sorted(map(len, both.compute_groups.values())) == [2, 4]
    found = both.compute()
    for name in METRICS:
        want = by_function(name, PATIENTS if name in GROUPED else None)
        assert float(found[name]) == pytest.approx(
            want.epsilon if name == "epsilon" else want.value, rel=1e-6
        )
    assert both["tpr"].estimate() == by_function("tpr", PATIENTS)
    both.reset()
    assert both["tpr"].preds == []


class Watched(pl.LightningModule):
    """Members and held-out records in a validation loader each; the metrics are logged as objects."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.leak = MetricCollection({"auroc": MembershipAUROC(), "tpr": TPRAtFPR(0.05)})
        self.found = []

    def training_step(self, batch, index):
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, index, dataloader_idx):
        self.leak.update(batch[0].squeeze(1), torch.full((len(batch[0]),), 1 - dataloader_idx))

    def on_validation_epoch_end(self):
        self.log_dict(dict(self.leak.items()))
        if not self.trainer.sanity_checking:
            self.found.append(self.leak["auroc"].estimate())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_logged_by_a_lightning_module(tmp_path):
    preds, target, _ = records()
    members, others = preds[target].float()[:, None], preds[~target].float()[:, None]
    module = Watched()
    run = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=1,
    )  # fmt: skip
    loaders = [DataLoader(TensorDataset(part), batch_size=8) for part in (members, others)]
    # the sanity check sees too few records for the rate: it is told so, and goes on
    with pytest.warns(MemguardWarning, match="TPRAtFPR is NaN: 8 held-out patients"):
        run.fit(module, loaders[0], loaders)
    want = attacks.auc(
        np.r_[members[:, 0], others[:, 0]], np.repeat([True, False], [len(members), len(others)])
    )
    assert [(e.value, e.n) for e in module.found] == [pytest.approx((want.value, 400))] * 2
    assert float(run.callback_metrics["auroc"]) == pytest.approx(want.value, rel=1e-6)
    assert 0 < float(run.callback_metrics["tpr"]) < 1


def test_what_cannot_be_computed_is_nan_with_a_reason():
    metric = TPRAtFPR(0.01)
    metric.update(torch.arange(50.0), torch.arange(50) % 2)
    with pytest.warns(MemguardWarning, match="TPRAtFPR is NaN: 25 held-out patients"):
        assert metric.compute().isnan()
    with pytest.raises(ResolutionError, match="at least 100"):
        metric.estimate()
    members = MembershipAUROC()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert members(torch.arange(5.0), torch.ones(5)).isnan()  # of the batch: nothing to say, no warning
        assert float(members(torch.arange(2.0), torch.tensor([0, 1]))) == 1
    assert float(members.compute()) == pytest.approx(
        np.mean([(v > 0) + 0.5 * (v == 0) for v in [*range(5), 1]])
    )
    broken = Exposure()
    broken.update(torch.tensor([1.0, math.nan, 2.0]), torch.tensor([1, 0, 0]))
    with pytest.warns(MemguardWarning, match="1 of 3 values in preds"):
        assert broken.compute().isnan()


def test_an_empty_batch_changes_nothing():
    metric = METRICS["auroc"]()
    feed(metric, "auroc", range(400))
    want = full(metric, "auroc")
    metric.update(torch.zeros(0), torch.zeros(0))
    assert full(metric, "auroc") == want


def test_settings_reach_the_function():
    preds, target, _ = records()

    def fed(metric):
        metric.update(preds, target)
        return metric

    assert fed(MembershipAUROC(confidence=0.5)).estimate() == attacks.auc(PREDS, TARGET, confidence=0.5)
    assert fed(TPRAtFPR(0.3, confidence=0.5)).estimate() == attacks.tpr_at_fpr(
        PREDS, TARGET, 0.3, confidence=0.5
    )
    assert fed(TNRAtFNR(0.3, confidence=0.5)).estimate() == attacks.tnr_at_fnr(
        -PREDS, TARGET, 0.3, confidence=0.5
    )
    at = fed(MembershipAdvantage(threshold=0.75, confidence=0.9)).estimate()
    assert at == attacks.membership_advantage(PREDS, TARGET, threshold=0.75, confidence=0.9)
    bits = fed(Exposure(method="extrapolate", space=2**30, confidence=0.9)).exposures()
    want = attacks.exposure(
        -PREDS[TARGET], -PREDS[~TARGET], method="extrapolate", space=2**30, confidence=0.9
    )
    assert repr(bits) == repr(want)
    rule = attacks.Split(0.4)
    for method, function in (
        ("f_dp", attacks.epsilon_f_dp),
        ("clopper_pearson", attacks.epsilon_clopper_pearson),
    ):
        found = fed(EpsilonLowerBound(1e-6, method=method, threshold=rule, confidence=0.9)).bound()
        assert found == function(PREDS, TARGET, delta=1e-6, threshold=rule, confidence=0.9)
    assert fed(EpsilonLowerBound(1e-6, method="gdp")).bound() == attacks.epsilon_gdp(
        PREDS, TARGET, delta=1e-6
    )


@pytest.mark.parametrize("name", METRICS)
def test_plot_draws_the_interval(name):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot as plt

    metric = METRICS[name]()
    feed(metric, name, range(400))
    figure, axes = metric.plot()
    lines = [
        np.ptp(p.vertices[:, 1])
        for c in axes.collections
        for p in c.get_paths()
        if np.ptp(p.vertices[:, 0]) == 0
    ]
    if name in GROUPED:
        e = metric.estimate()
        assert lines == pytest.approx([e.high - e.low])
    else:
        assert len(lines) == (name == "exposure") and np.all(np.isfinite(lines))
    plt.close(figure)
    figure, own = plt.subplots()
    assert metric.plot([metric.compute()] * 3, own) == (None, own)
    plt.close(figure)
    empty = METRICS[name]()
    empty.update(torch.ones(3), torch.ones(3))
    with pytest.warns(MemguardWarning):
        figure, _ = empty.plot()
    plt.close(figure)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: MembershipAUROC().update(torch.zeros(3), torch.zeros(2)), r"preds \(3,\), target \(2,\)"),
        (lambda: MembershipAUROC().update(torch.zeros(2), torch.zeros(2), torch.zeros(3).long()), r"groups \(3,\)"),
        (lambda: MembershipAUROC().update(torch.zeros(2), torch.zeros(2), torch.zeros(2)), "type torch.float32"),
        (lambda: MembershipAUROC(confidence=95), "confidence"),
        (lambda: TPRAtFPR(1.0), "fpr"),
        (lambda: TNRAtFNR(0.0), "fnr"),
        (lambda: Exposure(method="guess"), "method = 'guess'"),
        (lambda: EpsilonLowerBound(1.0), "delta"),
        (lambda: EpsilonLowerBound(0.1, method="guess"), "method = 'guess'"),
        (lambda: EpsilonLowerBound(0.1, method="gdp", threshold=attacks.Split()), "threshold"),
    ],
)  # fmt: skip
def test_refuses_bad_input(call, match):
    with pytest.raises(MemguardError, match=match):
        call()


def test_groups_in_some_batches_only():
    metric = MembershipAUROC()
    metric.update(torch.zeros(2), torch.tensor([0, 1]))
    metric.update(torch.zeros(2), torch.tensor([0, 1]), torch.tensor([3, 4]))
    with pytest.raises(MemguardError, match="groups for 2 of 4 records"):
        metric.estimate()
    wrong = MembershipAUROC()
    wrong.update(torch.zeros(2), torch.tensor([0.5, 1]))
    with pytest.raises(MemguardError, match="neither 0 nor 1"):
        wrong.estimate()
