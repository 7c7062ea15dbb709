"""Language models of transformers: with padding, with the cache, inside another module."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _sequence_models import V, naive_log_probs, naive_next, sequences
from torch import nn

from memguard.adapters import CausalAdapter, HFAdapter
from memguard.adapters.hf import causal_lm
from memguard.errors import AbilityError
from memguard.records.content import Ragged

transformers = pytest.importorskip("transformers")

LONGEST = 24


def gpt2(**settings):
    config = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": LONGEST, "eos_token_id": None,
              "bos_token_id": None, **settings}  # fmt: skip
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))


def llama(**settings):
    config = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LONGEST,
              "eos_token_id": None, "bos_token_id": None, "attention_dropout": 0.2, **settings}  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def mistral():
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LONGEST,
                                   sliding_window=5, eos_token_id=None)
    )  # fmt: skip


def mamba():
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=V, hidden_size=8, state_size=4, num_hidden_layers=1, eos_token_id=None
        )
    )


def made(build, seed=0, **settings):
    torch.manual_seed(seed)
    model = build(**settings).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "A_log" not in name:
                weight.mul_(8.0 if "GPT" in type(model).__name__ or "Llama" in type(model).__name__ else 4.0)
    return model.train()


@pytest.mark.parametrize("build", [gpt2, llama, mistral, mamba])
def test_answers_equal_those_of_a_sequence_alone(build):
    exact = 1e-6 if build is mamba else 1e-10  # Mamba computes in float32 inside
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its fast kernels are not installed
        model = made(build)
        adapter = HFAdapter(model, batch=6)
        asked = sequences(1, 17, 14, shortest=1)
        np.testing.assert_allclose(adapter.log_probs(asked), naive_log_probs(model, asked), atol=exact)
        expected = np.stack([naive_next(model, asked[i]) for i in range(len(asked))])
        np.testing.assert_allclose(adapter.next_log_probs(asked), expected, atol=exact)
        states = adapter.embed(asked)
        logits = states @ model.get_output_embeddings().weight.detach().numpy().T
        np.testing.assert_allclose(logits - np.logaddexp.reduce(logits, 1)[:, None], expected, atol=exact)
        # Token by token, with what was kept and without.
        assert adapter._cached == (build is not mamba)
        drawn = adapter.generate(asked, 7, samples=2, seed=5)
        adapter._cached = False
        anew = adapter.generate(asked, 7, samples=2, seed=5)
    assert drawn.values.tolist() == anew.values.tolist() and drawn.lengths.tolist() == anew.lengths.tolist()
    assert model.training


@pytest.mark.parametrize("build", [gpt2, llama])
def test_the_likeliest_continuation_is_that_of_generate(build):
    model = made(build)
    adapter = HFAdapter(model)
    assert (adapter.vocabulary, adapter.longest) == (V, LONGEST)
    prompts = sequences(2, 8, 9, shortest=2, first=1)
    found = adapter.generate(prompts, 10, temperature=0)
    model.eval()
    for i in range(8):
        given = torch.as_tensor(prompts[i].astype(np.int64))[None]
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=10, do_sample=False,
                             pad_token_id=0)  # fmt: skip
        assert found[i].tolist() == out[0, len(prompts[i]) :].tolist()
    np.testing.assert_array_equal(
        adapter.code_vectors(), model.get_input_embeddings().weight.detach().numpy()
    )


def test_the_end_token_is_that_of_the_configuration_unless_another_is_passed():
    prompts = sequences(3, 30, 5, shortest=1)
    model = made(llama, eos_token_id=7)
    free = HFAdapter(model, stop=None).generate(prompts, 12, seed=1)
    for stop, adapter in ((7, HFAdapter(model)), (9, HFAdapter(model, stop=9))):
        ended = adapter.generate(prompts, 12, seed=1)
        cut = [
            row[: row.index(stop) + 1] if stop in row else row
            for row in (free[i].tolist() for i in range(30))
        ]
        assert [ended[i].tolist() for i in range(30)] == cut
        assert ended.lengths.sum() < free.lengths.sum()
    both = HFAdapter(made(llama, eos_token_id=[7, 9]))
    assert both.stop == (7, 9)
    for row in (both.generate(prompts, 12, seed=1)[i].tolist() for i in range(30)):
        assert not {7, 9} & set(row[:-1])


def test_prompt_and_continuation_share_the_longest():
    prompts = Ragged.from_lists([[1] * LONGEST, [1] * (LONGEST - 2), [1, 2]])
    adapter = HFAdapter(made(gpt2))
    assert adapter.generate(prompts, 5).lengths.tolist() == [0, 2, 5]
    with pytest.raises(AbilityError, match="25 tokens for a model that reads 24"):
        adapter.log_probs(Ragged.from_lists([[1] * (LONGEST + 1)]))
    with pytest.raises(AbilityError, match="longest=40 for a module with a table of 24"):
        HFAdapter(made(gpt2), longest=40)
    assert HFAdapter(made(llama), longest=40).longest == 40  # rotary positions have no table


class Wrapped(pl.LightningModule):
    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict(models)

    def forward(self, batch: dict) -> torch.Tensor:
        return self.inner["one"](**batch).loss


def test_a_model_inside_a_module_is_found():
    model = made(gpt2)
    module = Wrapped(one=model)
    assert causal_lm(module) is model and causal_lm(model) is model and causal_lm(nn.Linear(2, 2)) is None
    asked = sequences(4, 5, 12)
    adapter = HFAdapter(module)
    np.testing.assert_array_equal(adapter.log_probs(asked), HFAdapter(model).log_probs(asked))
    other = adapter.of(Wrapped(one=made(gpt2, seed=1)))
    assert isinstance(other, HFAdapter) and other.stop == adapter.stop
    assert not np.allclose(other.log_probs(asked), adapter.log_probs(asked), equal_nan=True)
    with pytest.raises(AbilityError, match=r"several language models in the module: inner\.one, inner\.two"):
        causal_lm(Wrapped(one=model, two=made(llama)))
    with pytest.raises(AbilityError, match="no pretrained model"):
        HFAdapter(nn.Linear(2, 2))


def test_a_plain_adapter_reads_it_too():
    model, asked = made(gpt2), sequences(5, 6, 12)
    plain, own = CausalAdapter(model), HFAdapter(model)
    assert plain.longest == own.longest == LONGEST
    np.testing.assert_allclose(plain.log_probs(asked), own.log_probs(asked), atol=1e-12)


def test_models_that_see_what_they_predict_are_refused():
    config = transformers.BertConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=16, max_position_embeddings=LONGEST)  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(AbilityError, match="which comes before it"):
        HFAdapter(transformers.BertForMaskedLM(config))
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(AbilityError, match="forward failed"):
        HFAdapter(t5)
