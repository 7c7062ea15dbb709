"""The loss of each record: every loss function against arithmetic by hand, and every refusal."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memguard.capture.graph import GraphRoute
from memguard.capture.layout import LayoutMemory, unflatten_length
from memguard.capture.losses import CapturedLoss, LossCapture, attribute, check_batch, from_override
from memguard.errors import AmbiguousLossError

B, C, T = 6, 5, 4


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def capture(fn, *args, batch_size=B, batch=None, **kwargs):
    with LossCapture() as seen:
        loss = fn(*args, **kwargs)
    return attribute(seen.calls, loss, batch_size, batch=batch), loss


def x(*shape, seed=0, positive=False):
    values = torch.randn(*shape, generator=gen(seed))
    return (values.abs() + 0.1 if positive else values).requires_grad_()


LABELS = torch.randint(0, C, (B,), generator=gen(1))
HITS = torch.randint(0, 2, (B, C), generator=gen(2)).float()

ELEMENTWISE = {
    "binary_cross_entropy_with_logits": (lambda i, t: F.softplus(i) - i * t, HITS, {}),
    "binary_cross_entropy": (lambda i, t: -(t * i.log() + (1 - t) * (1 - i).log()), HITS, {}),
    "mse_loss": (lambda i, t: (i - t) ** 2, HITS, {}),
    "l1_loss": (lambda i, t: (i - t).abs(), HITS, {}),
    "smooth_l1_loss": (
        lambda i, t: torch.where((i - t).abs() < 1, 0.5 * (i - t) ** 2, (i - t).abs() - 0.5), HITS, {},
    ),
    "huber_loss": (
        lambda i, t: torch.where((i - t).abs() < 1, 0.5 * (i - t) ** 2, (i - t).abs() - 0.5), HITS, {},
    ),
    "poisson_nll_loss": (lambda i, t: i.exp() - t * i, HITS, {}),
    "gaussian_nll_loss": (
        lambda i, t: 0.5 * (math.log(2.0) + (i - t) ** 2 / 2.0), HITS, {"var": torch.full((B, C), 2.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_losses(name, reduction):
    naive, target, kwargs = ELEMENTWISE[name]
    given = torch.sigmoid(x(B, C)) if name == "binary_cross_entropy" else x(B, C)
    captured, _ = capture(getattr(F, name), given, target, reduction=reduction, **kwargs)
    torch.testing.assert_close(captured.loss, naive(given, target).mean(1).detach())
    assert captured.tokens.tolist() == [C] * B
    assert not captured.loss.requires_grad
    nats = "nats/record" if ("nll" in name or "entropy" in name) else "loss/record"
    assert captured.unit == nats


MODULES = [
    nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.BCELoss(), nn.NLLLoss(), nn.MSELoss(), nn.L1Loss(),
    nn.HuberLoss(), nn.SmoothL1Loss(), nn.GaussianNLLLoss(), nn.PoissonNLLLoss(),
    nn.KLDivLoss(reduction="batchmean"),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_modules_give_one_value_a_record_and_change_nothing(module):
    def run(watched):
        logits = x(B, C, seed=3)
        args = {
            "CrossEntropyLoss": lambda: (logits, LABELS), "NLLLoss": lambda: (logits.log_softmax(1), LABELS),
            "BCELoss": lambda: (logits.sigmoid(), HITS), "GaussianNLLLoss": lambda: (logits, HITS, HITS + 1),
            "KLDivLoss": lambda: (logits.log_softmax(1), HITS.softmax(1)),
        }.get(type(module).__name__, lambda: (logits, HITS))()  # fmt: skip
        captured = None
        if watched:
            captured, loss = capture(module, *args)
        else:
            loss = module(*args)
        loss.backward()
        return loss.detach(), logits.grad, captured

    plain, watched = run(False), run(True)
    assert torch.equal(plain[0], watched[0])
    assert torch.equal(plain[1], watched[1])
    assert watched[2].loss.shape == (B,)
    assert torch.allclose(watched[2].loss.mean(), watched[0], rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", ["class", "dense", "flat"])
@pytest.mark.parametrize("grad", [True, False])
def test_cross_entropy(smoothing, weighted, shape, grad):
    weight = torch.rand(C, generator=gen(4)) + 0.1 if weighted else None
    codes = torch.randint(0, C, (B, T), generator=gen(5))
    codes[2, 1:] = -100
    codes[4, 0] = -100
    logits = x(B, T, C, seed=6)
    with torch.set_grad_enabled(grad):
        if shape == "class":
            codes, logits = codes[:, 0].clamp(min=0), logits[:, 0]
            args = (logits, codes)
        elif shape == "dense":
            args = (logits.transpose(1, 2), codes)
        else:
            args = (logits.reshape(-1, C), codes.reshape(-1))
        captured, loss = capture(
            F.cross_entropy, *args, weight=weight, label_smoothing=smoothing, batch={"codes": codes}
        )
    with torch.no_grad():
        expected = torch.stack(
            [
                F.cross_entropy(
                    logits[b].reshape(-1, C), codes[b].reshape(-1), weight, label_smoothing=smoothing
                )
                for b in range(B)
            ]
        )
    torch.testing.assert_close(captured.loss, expected)
    counts = (codes.reshape(B, -1) != -100).sum(1)
    assert torch.equal(captured.tokens, counts)
    assert captured.unit == ("nats/record" if shape == "class" else "nats/token")
    assert torch.equal(captured.targets, codes)
    if weight is None:
        torch.testing.assert_close((captured.loss * counts).sum() / counts.sum(), loss.detach())


def test_values_from_the_graph_are_the_same_bits():
    logits, labels = x(B * T, C), torch.randint(0, C, (B * T,), generator=gen(1))
    labels[3] = -100
    with LossCapture() as seen:
        F.cross_entropy(logits, labels)
        F.cross_entropy(logits.reshape(B, T, C).transpose(1, 2), labels.reshape(B, T))
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(seen.calls[0].elements, expected)
    assert torch.equal(seen.calls[1].elements.reshape(-1), expected)


def test_probabilities_as_targets():
    soft = torch.rand(B, C, generator=gen(7)).softmax(1)
    logits = x(B, C)
    captured, _ = capture(F.cross_entropy, logits, soft)
    torch.testing.assert_close(captured.loss, -(soft * logits.log_softmax(1)).sum(1).detach())


def test_kl_batchmean_is_a_sum_over_classes():
    p, q = x(B, C).log_softmax(1), x(B, C, seed=8).softmax(1)
    captured, loss = capture(F.kl_div, p, q, reduction="batchmean")
    torch.testing.assert_close(captured.loss.mean(), loss.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    captured, loss = capture(F.cross_entropy, x(B, C).to(dtype), LABELS)
    assert captured.loss.dtype is torch.float32
    torch.testing.assert_close(captured.loss.mean(), loss.detach().float(), rtol=2e-2, atol=2e-2)


def test_autocast():
    layer = nn.Linear(C, C)
    with torch.autocast("cpu", torch.bfloat16):
        captured, loss = capture(F.cross_entropy, layer(x(B, C)), LABELS)
    torch.testing.assert_close(captured.loss.mean(), loss.detach().float(), rtol=2e-2, atol=2e-2)


def test_legacy_arguments():
    with pytest.warns(UserWarning, match="size_average"):
        captured, loss = capture(F.mse_loss, x(B, C), HITS, size_average=False)
    torch.testing.assert_close(captured.loss.sum() * C, loss.detach())


def test_empty_batch_and_records_without_targets():
    captured, _ = capture(F.cross_entropy, x(0, C), LABELS[:0], batch_size=0)
    assert captured.loss.shape == (0,)
    codes = torch.full((B, T), -100)
    codes[1:] = 1
    captured, _ = capture(F.cross_entropy, x(B, C, T), codes)
    assert captured.loss.isnan().tolist() == [True] + [False] * (B - 1)
    assert captured.tokens.tolist() == [0] + [T] * (B - 1)


def test_nan_losses_stay_nan():
    logits = x(B, C).detach()
    logits[2] = math.nan
    captured, _ = capture(F.cross_entropy, logits, LABELS)
    assert captured.loss.isnan().tolist() == [False, False, True, False, False, False]


def test_metrics_are_no_losses():
    torchmetrics = pytest.importorskip("torchmetrics")
    with LossCapture() as seen:
        torchmetrics.MeanSquaredError()(torch.rand(4), torch.rand(4))
        torchmetrics.classification.MulticlassAccuracy(C)(torch.rand(B, C), LABELS)
        torchmetrics.text.Perplexity()(torch.rand(2, 3, C), torch.ones(2, 3, dtype=torch.long))
    assert seen.calls == []


# -- acceptance ---


def two_heads():
    a, b = F.cross_entropy(x(B, C), LABELS), F.mse_loss(x(B, C), HITS)
    return a + 0.1 * b


REFUSED = {
    "two heads": two_heads,
    "scaled": lambda: F.cross_entropy(x(B, C), LABELS) / 2,
    "masked": lambda: (F.cross_entropy(x(B, C), LABELS, reduction="none") * (LABELS > 1)).mean(),
    "by hand": lambda: -x(B, C).log_softmax(1).gather(1, LABELS[:, None]).mean(),
    "aten": lambda: torch._C._nn.cross_entropy_loss(x(B, C), LABELS),
    "twice the same": lambda: [F.cross_entropy(x(B, C), LABELS) for _ in range(2)][1].clone(),
    "vmap": lambda: torch.func.vmap(F.mse_loss)(x(B, C), HITS).mean(),
    "broadcast": lambda: F.mse_loss(x(B), HITS[:, :1]),
    "no loss": lambda: None,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_way_out(name):
    with LossCapture() as seen:
        loss = REFUSED[name]()
    with pytest.raises(AmbiguousLossError) as caught:
        attribute(seen.calls, loss, B)
    assert "per_record_loss=" in str(caught.value) or name == "broadcast"


def test_accepted_beside_other_calls():
    with LossCapture() as seen:
        loss = F.cross_entropy(x(B, C), LABELS)
        F.mse_loss(x(B, C), HITS)
    assert attribute(seen.calls, loss, B).route == "cross_entropy, the returned loss"
    assert attribute(seen.calls, {"loss": loss, "more": 1}, B).signature == ("cross_entropy", "mean")
    assert attribute(seen.calls, loss.clone(), B).route == "cross_entropy, equal to the returned loss"
    assert attribute(seen.calls, None, B, like=("mse_loss", "mean")).unit == "loss/record"
    assert attribute(seen.calls, loss, B, exact_call=seen.calls[0]).loss.shape == (B,)
    with pytest.raises(AmbiguousLossError):
        attribute(seen.calls, None, B)


def test_plain_mean_of_unreduced_values_is_accepted():
    with LossCapture() as seen:
        loss = F.cross_entropy(x(B, C), LABELS, reduction="none").mean()
    captured = attribute(seen.calls, loss, B)
    torch.testing.assert_close(captured.loss.mean(), loss.detach())


# -- flattened losses ---


def flat_call(target, source=None, grad=True):
    with torch.set_grad_enabled(grad):
        logits = x(target.numel(), C) if source is None else source.reshape(-1, C)
        with LossCapture() as seen:
            loss = F.cross_entropy(logits, target.reshape(-1))
    return seen.calls, loss


def test_flattened_proven_by_the_batch():
    codes = torch.randint(0, C, (B, T + 1), generator=gen(9))
    calls, loss = flat_call(codes[:, 1:])
    memory = LayoutMemory()
    assert attribute(calls, loss, B, batch=[codes], memory=memory).targets.shape == (B, T)
    assert memory.proven == {("cross_entropy", "0"): 1}


def test_flattened_proven_by_the_graph():
    codes = torch.randint(0, C, (B, T), generator=gen(9))
    for grad in (True, False):
        calls, loss = flat_call(codes, x(B, T, C), grad)
        assert unflatten_length(calls[0], B) == T
        assert attribute(calls, loss, B).loss.shape == (B,)


def test_flattened_and_unproven_is_refused():
    codes = torch.randint(0, C, (B, T), generator=gen(9))
    calls, loss = flat_call(codes)
    with pytest.raises(AmbiguousLossError, match="record order"):
        attribute(calls, loss, B)
    calls, loss = flat_call(codes, x(T, B, C))  # time first
    with pytest.raises(AmbiguousLossError, match="do not stand first"):
        attribute(calls, loss, B)
    packed = codes[torch.rand(B, T, generator=gen(3)) > 0.3]
    calls, loss = flat_call(packed[: len(packed) // B * B])  # divisible by accident
    with pytest.raises(AmbiguousLossError):
        attribute(calls, loss, B, batch=[codes])
    with pytest.raises(AmbiguousLossError, match="selected or packed"):
        attribute(*flat_call(codes.reshape(-1)[:-1]), B)


def test_one_record_needs_no_proof():
    calls, loss = flat_call(torch.zeros(1, T, dtype=torch.long))
    assert attribute(calls, loss, 1).tokens.tolist() == [T]


def test_batches_with_other_row_counts_are_refused():
    check_batch(None, 3)
    check_batch({"x": torch.zeros(3, 2), "edges": torch.zeros(2, 9)}, 3)
    with pytest.raises(AmbiguousLossError, match="collate"):
        check_batch([torch.zeros(2), {"y": torch.zeros(2, 4)}], 3)


def test_override_is_checked():
    assert isinstance(from_override(torch.zeros(3), batch_size=3), CapturedLoss)
    for wrong in (torch.zeros(2), torch.zeros(3, 1), torch.tensor(1.0), [1.0, 2.0, 3.0]):
        with pytest.raises(AmbiguousLossError, match="one loss per record"):
            from_override(wrong, batch_size=3)


# -- models with the loss inside ---


def tiny(kind):
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, **common)
        return transformers.GPT2LMHeadModel(config)
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, **common,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3,
        problem_type="multi_label_classification" if kind == "bert_multi" else None, **common,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_hugging_face_language_models(kind, grad):
    model = tiny(kind).eval()
    ids = torch.randint(1, 32, (4, 9), generator=gen(1))
    labels = ids.clone()
    labels[1, 5:] = -100
    batch = {"input_ids": ids, "labels": labels}
    with torch.set_grad_enabled(grad), LossCapture() as seen:
        out = model(**batch)
    captured = attribute(seen.calls, out, 4, batch=batch)
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    expected = -log_p.gather(2, labels[:, 1:, None].clamp(min=0)).squeeze(2)
    keep = labels[:, 1:] != -100
    torch.testing.assert_close(captured.loss, (expected * keep).sum(1) / keep.sum(1), rtol=1e-4, atol=1e-5)
    assert torch.equal(captured.tokens, keep.sum(1))
    assert captured.unit == "nats/token"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bert", "bert_multi"])
def test_hugging_face_classifiers(kind):
    model = tiny(kind).eval()
    labels = (
        torch.tensor([0, 1, 2, 1])
        if kind == "bert"
        else torch.randint(0, 2, (4, 3), generator=gen(1)).float()
    )
    batch = {"input_ids": torch.randint(1, 32, (4, 9), generator=gen(1)), "labels": labels}
    with LossCapture() as seen:
        out = model(**batch)
    captured = attribute(seen.calls, out, 4, batch=batch)
    torch.testing.assert_close(captured.loss.mean(), out.loss.detach())


def test_listening_never_stops_a_step(monkeypatch):
    from memguard.capture import mode

    def out_of_memory(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(mode, "_elements", out_of_memory)
    with LossCapture() as seen:
        loss = F.mse_loss(x(B, C), HITS)
    assert loss.requires_grad
    with pytest.raises(AmbiguousLossError, match="out of memory"):
        attribute(seen.calls, loss, B)
    monkeypatch.undo()
    with LossCapture() as seen:
        loss = F.cross_entropy(x(B, C), LABELS)
    seen.calls[0].elements = torch.zeros(B, 2, 2)
    with pytest.raises(AmbiguousLossError, match=r"(unexpected form|pool to)"):
        attribute(seen.calls, loss, B)


def test_saved_tensors_that_are_elsewhere_are_not_fetched():
    looked = []

    def unpack(saved):
        looked.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        captured, loss = capture(F.cross_entropy, x(B, C), LABELS)
    assert looked == []
    torch.testing.assert_close(captured.loss.mean(), loss.detach())


@pytest.mark.filterwarnings("ignore")
def test_fused_evaluation_paths_keep_their_bits():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
    net = nn.TransformerEncoder(layer, 2).eval()
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    given = torch.randn(3, 7, 16)
    before = torch.overrides.has_torch_function
    with torch.no_grad():
        plain = net(given), attention(given, given, given)[0]
        with LossCapture():
            heard = net(given), attention(given, given, given)[0]
            with pytest.raises(KeyError), LossCapture():
                raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(plain, heard, strict=True))
    assert torch.overrides.has_torch_function is before


# -- the graph of the returned loss instead of listening ---


def graph_steps(make, steps=4):
    route, loss = GraphRoute(), None
    for _ in range(steps):
        with LossCapture() as seen:
            loss = make()
        route.compare(loss, seen.calls)
    return route, loss, seen.calls


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(B,), (B, T), (B, T, 2)])
def test_the_graph_tells_what_listening_tells(reduction, weighted, shape):
    logits = x(shape[0], C, *shape[1:])
    y = torch.randint(0, C, shape, generator=gen(4))
    y.view(-1)[::3] = -100
    weight = torch.rand(C, generator=gen(5)) if weighted else None
    route, loss, calls = graph_steps(lambda: F.cross_entropy(logits, y, weight, reduction=reduction))
    assert route.proven
    told, heard = route.call(loss), calls[0]
    assert told.result is loss and told.signature == heard.signature and told.ignore_index == -100
    assert torch.equal(told.elements, heard.elements) and torch.equal(told.target, y)
    a, b = attribute([told], loss, B), attribute(calls, loss, B)
    assert torch.equal(a.loss.isnan(), b.loss.isnan()) and a.loss.nan_to_num().equal(b.loss.nan_to_num())


def test_the_graph_proves_the_layout_of_flattened_rows():
    codes, source = torch.randint(0, C, (B, T), generator=gen(9)), x(B, T, C)
    route, loss, calls = graph_steps(lambda: F.cross_entropy(source.flatten(0, 1), codes.flatten()))
    assert attribute([route.call(loss)], loss, B).loss.equal(attribute(calls, loss, B).loss)
    source = x(T, B, C)  # time first
    route, loss, _ = graph_steps(lambda: F.cross_entropy(source.flatten(0, 1), codes.flatten()))
    with pytest.raises(AmbiguousLossError, match="do not stand first"):
        attribute([route.call(loss)], loss, B)


@pytest.mark.parametrize(
    "make",
    [
        lambda logits, y: F.cross_entropy(logits, y) * 1.0,
        lambda logits, y: F.cross_entropy(logits, y, label_smoothing=0.1),
        lambda logits, y: F.mse_loss(logits[:, 0], y.float()),
        lambda logits, y: F.cross_entropy(logits, F.one_hot(y, C).float()),
        lambda logits, y: F.cross_entropy(logits.detach(), y),
    ],
    ids=["scaled", "smoothed", "squared", "soft", "no gradient"],
)
def test_other_losses_are_listened_to(make):
    logits, y = x(B, C), torch.arange(B) % C
    route, loss, _ = graph_steps(lambda: make(logits, y))
    assert not route.proven
    assert route.call(loss) is None


def test_a_backward_inside_the_step_ends_the_route():
    logits, y = x(B, C), torch.arange(B) % C
    logits.requires_grad_()
    route, _, _ = graph_steps(lambda: F.cross_entropy(logits, y))
    loss = F.cross_entropy(logits, y)
    loss.backward()
    assert route.proven and route.call(loss) is None and not route.proven


# -- cross entropy without a gradient: one log-softmax for the result and the values ---


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(B,), (B, T), (B, T, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_halves_give_the_same_bits(reduction, weighted, shape, dtype):
    logits = x(shape[0], C, *shape[1:]).detach().to(dtype)
    y = torch.randint(0, C, shape, generator=gen(4))
    y.view(-1)[::3] = -100
    weight = torch.rand(C, generator=gen(5)).to(dtype) if weighted else None
    for step in range(6):
        now = logits * (1 + step / 10)
        with torch.no_grad(), LossCapture() as seen:
            loss = F.cross_entropy(now, y, weight, reduction=reduction)
        with torch.no_grad():
            plain = F.cross_entropy(now, y, weight, reduction=reduction)
            values = F.cross_entropy(now, y, weight, reduction="none")
        (call,) = seen.calls
        assert torch.equal(loss, plain) and loss.dtype == plain.dtype and call.result is loss
        assert torch.equal(call.elements, values) and call.reduction == reduction


def test_halves_leave_other_calls_alone():
    logits, y = x(B, C).detach(), LABELS
    with torch.no_grad(), LossCapture() as seen:
        for _ in range(5):
            F.cross_entropy(logits, y, label_smoothing=0.1)
            F.cross_entropy(logits, F.one_hot(y, C).float())
            F.cross_entropy(logits, y, reduction="none")
            with pytest.warns(UserWarning, match="size_average"):
                F.cross_entropy(logits, y, size_average=False)
    assert len(seen.calls) == 20 and all(call.elements is not None for call in seen.calls)
    torch.testing.assert_close(seen.calls[-1].elements.sum(), seen.calls[-1].result)
    assert [call.reduction for call in seen.calls[:4]] == ["mean", "mean", "none", "sum"]
    for _ in range(5):  # no such class: the error is the call's own
        with torch.no_grad(), LossCapture(), pytest.raises(IndexError):
            F.cross_entropy(logits, y + C)
