"""The adapter that fits is found, proved by the module's own losses, or the mismatch is named."""

from __future__ import annotations

import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _sequence_models import Plain, Recurrent, V, made, sequences
from torch import nn

from memguard.adapters import CausalAdapter, CountsAdapter, find_adapter
from memguard.errors import AbilityError
from memguard.records.content import Ragged


def losses(module: nn.Module, example: Ragged, shift: int = 1) -> np.ndarray:
    """As a validation step computes them, one sequence at a time."""
    was, out = module.training, []
    module.eval()
    for i in range(len(example)):
        tokens = torch.as_tensor(example[i].astype(np.int64))[None]
        with torch.no_grad():
            logits = module(tokens)
        logits = logits[0] if isinstance(logits, tuple) else logits
        out.append(float(F.cross_entropy(logits[0, : tokens.shape[1] - shift], tokens[0, shift:])))
    module.train(was)
    return np.array(out)


EXAMPLE = sequences(1, 30, 15, shortest=3)


@pytest.mark.parametrize("build", [Plain, Recurrent])
def test_a_plain_module_is_proved_by_its_losses(build):
    module = made(build)
    found = find_adapter(module, V, EXAMPLE, loss=losses(module, EXAMPLE))
    assert isinstance(found.adapter, CausalAdapter)
    limit = "at most 32 in a sequence" if build is Plain else "no limit of length"
    assert (
        found.why
        == f"CausalAdapter of {build.__name__}: 23 tokens, {limit}; equals its losses on 30 examples"
    )
    adapter, why = find_adapter(module)
    assert adapter is not None and why.endswith("not compared with its losses")


def test_losses_in_sixteen_bits_are_near_enough():
    module = made(Plain)
    exact = losses(module, EXAMPLE)
    rounded = torch.as_tensor(exact).to(torch.bfloat16).double().numpy()
    assert find_adapter(module, V, EXAMPLE, loss=rounded).adapter is not None
    with pytest.raises(AbilityError):
        find_adapter(module, V, EXAMPLE, loss=rounded, tolerance=1e-5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda exact, n, module: exact * n, "sums over a sequence"),
        (lambda exact, n, module: exact / np.log(2), "in bits"),
        (lambda exact, n, module: exact * n / (n + 1), "the first one too"),
        (lambda exact, n, module: exact * n / n.max(), "length of the longest sequence"),
        (lambda exact, n, module: exact + 0.4, "a constant lies between them"),
        (lambda exact, n, module: losses(module, EXAMPLE, shift=2), "targets moved by one place"),
    ],
)
def test_a_mismatch_is_named(wrong, named):
    module = made(Plain)
    stated = wrong(losses(module, EXAMPLE), EXAMPLE.lengths - 1, module)
    with pytest.raises(AbilityError, match=named):
        find_adapter(module, V, EXAMPLE, loss=stated)


def test_another_tokenizer_is_noticed():
    module = made(Plain)
    other = Ragged(np.random.default_rng(0).permutation(V)[EXAMPLE.values], EXAMPLE.offsets)
    with pytest.raises(AbilityError, match="other tokens"):
        find_adapter(module, V, other, loss=losses(module, EXAMPLE))
    with pytest.raises(AbilityError, match="30 names for the 23 tokens"):
        find_adapter(module, 30, EXAMPLE)
    # With losses that are equal the names may be more than the tokens, or fewer.
    for names in (20, 30):
        assert f"{names} names" in find_adapter(module, names, EXAMPLE, loss=losses(module, EXAMPLE)).why
    large = Ragged.from_lists([[1, 2, V + 1]])
    with pytest.raises(AbilityError, match="tokens up to 24 in the examples for a vocabulary of 23"):
        find_adapter(module, V, large, loss=[1.0])


def test_examples_that_cannot_be_compared_are_left_out():
    module = made(Plain)
    example = Ragged.concat([EXAMPLE.take(range(4)), Ragged.from_lists([[1], [], [2] * 40])])
    stated = np.concatenate([losses(module, EXAMPLE.take(range(4))), [0.0, 0.0, 9.0]])
    stated[1] = np.nan
    assert find_adapter(module, V, example, loss=stated).why.endswith("equals its losses on 3 examples")
    none = find_adapter(module, V, example, loss=np.full(7, np.nan))
    assert none.adapter is not None and none.why.endswith("not compared with its losses")
    with pytest.raises(AbilityError, match=r"losses of shape \(3,\) for 7 examples"):
        find_adapter(module, V, example, loss=np.zeros(3))


def test_what_does_not_fit_is_said_and_not_guessed():
    for module, said in [
        (nn.Linear(4, 1), "forward failed"),
        (made(Plain, causal=False), "padding to the right|which comes before it"),
        (object(), "object is no torch module"),
    ]:
        found = find_adapter(module)
        assert found.adapter is None
        assert re.search(said, found.why)


class Writes(pl.LightningModule):
    """Says itself how it is asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: dict) -> torch.Tensor:
        raise NotImplementedError

    def memguard_adapter(self) -> CausalAdapter:
        return CausalAdapter(self.inner, batch=5)


def test_what_the_user_says_goes_first():
    inner = made(Plain)
    module = Writes(inner)
    found = find_adapter(module, V, EXAMPLE, loss=losses(inner, EXAMPLE))
    assert found.adapter.batch == 5 and "30 examples" in found.why
    counts = CountsAdapter(EXAMPLE, vocabulary=V)
    assert find_adapter(module, adapter=counts).adapter is counts
    assert find_adapter(inner, adapter=lambda m: CausalAdapter(m, stop=3)).adapter.stop == 3
    assert isinstance(find_adapter(inner, adapter=CausalAdapter).adapter, CausalAdapter)
    with pytest.raises(AbilityError, match="adapter= gives a str"):
        find_adapter(module, adapter="plain")
    module.memguard_adapter = lambda: 3
    with pytest.raises(AbilityError, match=r"memguard_adapter\(\) gives a int"):
        find_adapter(module)
    # A counted model is asked as if the examples were nobody's who was counted.
    stated = [-np.nanmean(counts.log_probs(EXAMPLE.take([i]), patient=np.array([-1]))) for i in range(30)]
    assert find_adapter(module, adapter=counts, example=EXAMPLE, loss=stated).why.endswith("on 30 examples")


def test_language_models_and_meds_eic_ar_are_recognized():
    pytest.importorskip("transformers")
    from test_hf import gpt2
    from test_hf import made as made_hf
    from test_meds_eic_ar import Standing

    model = made_hf(gpt2)
    example = sequences(2, 9, 12, shortest=3)
    model.eval().loss_type = "ForCausalLM"
    with torch.no_grad():
        rows = [torch.as_tensor(example[i].astype(np.int64))[None] for i in range(9)]
        stated = [float(model(row, labels=row).loss) for row in rows]
    found = find_adapter(nn.ModuleDict({"language": model}), V, example, loss=stated)
    assert (
        found.why
        == "HFAdapter of ModuleDict: 23 tokens, at most 24 in a sequence; equals its losses on 9 examples"
    )
    torch.manual_seed(0)
    assert find_adapter(Standing()).why.startswith("MEICARAdapter of Standing")
