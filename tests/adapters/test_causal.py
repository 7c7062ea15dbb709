"""Plain modules, asked one batch at a time, say what they say one sequence and one position at a time."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from _sequence_models import Plain, Recurrent, V, made, naive_log_probs, naive_next, sequences
from torch import nn

from memguard.adapters import CausalAdapter, ModelAdapter
from memguard.errors import AbilityError, DataError
from memguard.records.content import Ragged
from recipes.nafld_next_code import LONGEST, NextCode

BUILDS = [(Plain, {}), (Plain, {"tied": True}), (Plain, {"parameter": True}), (Recurrent, {})]


@pytest.mark.parametrize(("build", "settings"), BUILDS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_log_probs_equal_one_forward_for_each_position(build, settings, batch):
    model = made(build, **settings)
    adapter = CausalAdapter(model, batch=batch)
    assert isinstance(adapter, ModelAdapter) and adapter.vocabulary == V
    asked = Ragged.concat([sequences(1, 19, 20), Ragged.from_lists([[3], [], [4, 5]])])
    np.testing.assert_allclose(adapter.log_probs(asked), naive_log_probs(model, asked), atol=1e-12)


@pytest.mark.parametrize(("build", "settings"), BUILDS)
def test_next_log_probs_and_embeddings_equal_those_of_a_sequence_alone(build, settings):
    model = made(build, **settings)
    adapter = CausalAdapter(model, batch=5)
    asked = sequences(2, 17, 20, shortest=1)
    expected = np.stack([naive_next(model, asked[i]) for i in range(len(asked))])
    np.testing.assert_allclose(adapter.next_log_probs(asked), expected, atol=1e-12)
    states = adapter.embed(asked)
    head = model.codes.weight if settings.get("tied") else model.out.weight
    bias = 0.0 if settings.get("tied") else model.out.bias.detach().numpy()
    logits = states @ head.detach().numpy().T + bias  # the state is what the output layer is given
    np.testing.assert_allclose(logits - np.logaddexp.reduce(logits, 1)[:, None], expected, atol=1e-12)
    np.testing.assert_array_equal(adapter.code_vectors(), model.codes.weight.detach().numpy())


def test_in_float32_batches_change_no_more_than_rounding():
    model = made(Plain).float()
    asked = sequences(3, 200, 31)
    one, many = (CausalAdapter(model, batch=batch).log_probs(asked) for batch in (1, 64))
    np.testing.assert_allclose(one, many, atol=1e-5)
    assert one.dtype == np.float64


def test_half_precision_is_summed_in_float64():
    model = made(Recurrent).bfloat16()
    found = CausalAdapter(model).next_log_probs(sequences(3, 5, 9, shortest=1))
    np.testing.assert_allclose(np.logaddexp.reduce(found, 1), 0, atol=1e-12)


def test_the_longest_is_found():
    assert CausalAdapter(made(Plain, longest=19)).longest == 19
    assert CausalAdapter(made(Plain, longest=19, parameter=True)).longest == 19
    assert CausalAdapter(made(Plain, longest=130, parameter=True)).longest == 130
    assert CausalAdapter(made(Recurrent)).longest is None
    assert CausalAdapter(made(Plain, longest=19), longest=11).longest == 11
    # As many places as tokens: the two tables are told apart by what is looked up in them.
    model = made(Plain, longest=V)
    adapter = CausalAdapter(model)
    assert adapter.longest == V
    np.testing.assert_array_equal(adapter.code_vectors(), model.codes.weight.detach().numpy())


def test_the_recipe_fits():
    torch.manual_seed(0)
    adapter = CausalAdapter(NextCode(vocabulary=50, width=16, layers=1))
    assert (adapter.vocabulary, adapter.longest) == (50, LONGEST)
    assert adapter.abilities == {"log_probs", "generate", "embed"}


def test_logits_and_embed_may_be_passed():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made(Plain)

        def forward(self, batch: dict) -> torch.Tensor:
            return self.inner(batch["tokens"])

    module, asked = Two(), sequences(4, 6, 9, shortest=1)
    with pytest.raises(AbilityError, match="forward failed"):
        CausalAdapter(module)
    adapter = CausalAdapter(
        module, logits=lambda m, t: m({"tokens": t}), embed=lambda m, t: m.inner.hidden(t)[..., :3]
    )
    plain = CausalAdapter(module.inner)
    np.testing.assert_array_equal(adapter.log_probs(asked), plain.log_probs(asked))
    np.testing.assert_allclose(adapter.embed(asked), plain.embed(asked)[:, :3], atol=1e-12)
    again = adapter.of(Two())
    np.testing.assert_array_equal(again.embed(asked), adapter.embed(asked))


def test_of_asks_another_module_and_only_one_of_the_same_vocabulary():
    adapter = CausalAdapter(made(Plain), stop=4, batch=3)
    other = adapter.of(made(Plain, seed=1))
    assert (other.longest, other.stop, other.batch) == (32, 4, 3)
    asked = sequences(5, 4, 9, shortest=2)
    assert not np.allclose(adapter.log_probs(asked), other.log_probs(asked), equal_nan=True)
    with pytest.raises(AbilityError, match="vocabulary=23 for a module with 9 logits"):
        adapter.of(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)))


class Mixed(nn.Module):
    """Attention over the batch instead of time: what batch_first=False does to a module that meant otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.out = nn.Embedding(V, 16), nn.Linear(16, V)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.codes(tokens)
        return self.out(self.attention(x, x, x)[0])


class Shifted(Recurrent):
    """Moves its input one place on by itself."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(tokens[:, :-1], (1, 0)))[0]


class Noisy(Recurrent):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens)[0] + nn.functional.dropout(torch.ones(V), 0.5, training=True)


class FromTheEnd(Plain):
    """Counts places from the right."""

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        where = self.places(torch.arange(tokens.shape[1]).flip(0))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.blocks(self.codes(tokens) + where, mask=mask)


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (
            Plain,
            {"causal": False},
            "padding to the right|changes the logits of token 1, which comes before it",
        ),
        (Mixed, {}, "other sequences of its batch"),
        (Shifted, {}, "one place on by itself"),
        (Noisy, {}, "two identical calls"),
        (FromTheEnd, {}, "padding to the right"),
    ],
)
def test_a_module_that_is_no_next_token_model_is_refused(build, settings, message):
    with pytest.raises(AbilityError, match=message):
        CausalAdapter(made(build, **settings))


def test_a_look_ahead_is_seen_where_no_padding_can_be_added():
    with pytest.raises(AbilityError, match="token 2 changes the logits of token 1, which comes before it"):
        CausalAdapter(made(Plain, longest=6, causal=False))


def test_a_head_of_zeros_is_looked_at_again_when_it_is_trained():
    model = made(Plain, causal=False)
    weight = model.out.weight.detach().clone()
    nn.init.zeros_(model.out.weight)
    adapter = CausalAdapter(model)
    asked = sequences(6, 3, 9, shortest=2)
    adapter.log_probs(asked)
    with torch.no_grad():
        model.out.weight.copy_(weight)
    with pytest.raises(AbilityError):
        adapter.log_probs(asked)


def test_a_module_without_logits_is_refused():
    with pytest.raises(AbilityError, match="pass logits="):
        CausalAdapter(nn.Sequential(nn.Embedding(9, 4), nn.Flatten()))
    with pytest.raises(AbilityError, match="predicted but not read"):
        CausalAdapter(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 12)))
    with pytest.raises(AbilityError, match="longest=40 for a module with a table of 32"):
        CausalAdapter(made(Plain), longest=40)


def test_what_cannot_be_read_is_refused():
    adapter = CausalAdapter(made(Plain))
    long = Ragged.from_lists([[1] * 33])
    for ask in (adapter.log_probs, adapter.next_log_probs, adapter.embed, lambda p: adapter.generate(p, 2)):
        with pytest.raises(AbilityError, match="33 tokens for a model that reads 32"):
            ask(long)
        for token in (-1, V):
            with pytest.raises(DataError, match=rf"tokens \[{token}\] outside the model's vocabulary of {V}"):
                ask(Ragged.from_lists([[1, token, 3]]))
    for ask in (adapter.next_log_probs, adapter.embed, lambda p: adapter.generate(p, 2)):
        with pytest.raises(DataError, match="1 empty sequences of 2"):
            ask(Ragged.from_lists([[1], []]))
    with torch.no_grad():
        adapter.module.out.bias[3] = torch.nan
    for ask in (adapter.log_probs, adapter.next_log_probs, lambda p: adapter.generate(p, 2)):
        with pytest.raises(AbilityError, match="NaN"):
            ask(Ragged.from_lists([[1, 2]]))


def test_nothing_to_ask_gives_nothing():
    adapter = CausalAdapter(made(Plain))
    nothing = Ragged.from_lists([])
    assert adapter.log_probs(nothing).shape == (0,)
    assert adapter.next_log_probs(nothing).shape == (0, V)
    assert len(adapter.generate(nothing, 3)) == 0 and len(adapter.embed(nothing)) == 0
    assert np.isnan(adapter.log_probs(Ragged.from_lists([[3], []]))).tolist() == [True]


class Traced(Plain):
    """Counts its calls in a buffer, a number and a list, and draws from generators of its own and of everybody."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.own, self.other = torch.Generator(), np.random.default_rng(0)
        self.asked, self.widths = 0, []

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.asked += 1
        self.widths.append(tokens.shape[1])
        (
            torch.rand(1),
            torch.rand(1, generator=self.own),
            self.other.random(),
            random.random(),
            np.random.rand(),
        )
        return super().hidden(tokens)


def test_module_and_generators_are_left_as_they_were():
    model = made(Traced)
    model.out.eval()  # modes need not be the same everywhere

    def state() -> list[object]:
        draws = torch.get_rng_state(), model.own.get_state(), model.calls.clone()
        modes = [part.training for part in model.modules()]
        weights = [weight.clone() for weight in model.parameters()]
        kept = [model.asked, list(model.widths), model.other.bit_generator.state, random.getstate()]
        tensors = [each.tolist() for each in (*draws, *weights)]
        return [modes, *tensors, *kept, repr(np.random.get_state()[1])]

    before = state()
    adapter = CausalAdapter(model)
    asked = sequences(7, 5, 12, shortest=1)
    adapter.log_probs(asked), adapter.next_log_probs(asked), adapter.embed(asked), adapter.generate(asked, 3)
    with pytest.raises(DataError):
        adapter.log_probs(Ragged.from_lists([[V]]))
    assert state() == before
    assert all(weight.grad is None for weight in model.parameters())


class PicksByPlace(torch.nn.Module):
    """Rows of what was computed are picked by place, which looks like a table of positions and is none."""

    def __init__(self):
        super().__init__()
        self.codes = torch.nn.Embedding(V, 6)
        self.out = torch.nn.Linear(6, V)

    def forward(self, tokens):
        hidden = self.codes(tokens).cumsum(1)[0]
        return self.out(hidden[torch.arange(tokens.shape[1])])[None].expand(len(tokens), -1, -1) * 1


def test_activations_that_are_picked_by_place_are_no_table():
    from memguard.adapters._limits import limits_of

    model = PicksByPlace()
    found = limits_of(lambda tokens: model(tokens), pad=0, longest=None, device=torch.device("cpu"))
    assert found.longest is None
