"""MEDS-EIC-AR models: a stand-in with their attributes, and the class itself where it is installed."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _sequence_models import V, naive_log_probs, sequences
from torch import Tensor, nn

from memguard.adapters import HFAdapter, MEICARAdapter
from memguard.adapters._sequences import padded
from memguard.adapters.meds_eic_ar import codes_of, is_meicar
from memguard.errors import AbilityError, DataError
from memguard.records.content import Ragged

transformers = pytest.importorskip("transformers")

END = 5
SETTINGS = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 24, "eos_token_id": END}  # fmt: skip


class Model(nn.Module):
    """The attributes and the loss of MEDS_EIC_AR.model.Model."""

    def __init__(self) -> None:
        super().__init__()
        self.HF_model_config = transformers.LlamaConfig(**SETTINGS)
        self.HF_model = transformers.LlamaForCausalLM(self.HF_model_config)
        self.forward = self._forward

    @property
    def max_seq_len(self) -> int:
        return self.HF_model_config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.HF_model_config.vocab_size

    def _hf_inputs(self, batch: SimpleNamespace) -> dict[str, Tensor]:
        return {"input_ids": batch.code, "attention_mask": batch.code != 0}

    def _forward(self, batch: SimpleNamespace) -> tuple[Tensor, object]:
        outputs = self.HF_model(**self._hf_inputs(batch))
        loss = F.cross_entropy(outputs.logits[:, :-1].transpose(2, 1), batch.code[:, 1:], ignore_index=0)
        return loss, outputs


class Standing(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()


def standing() -> pl.LightningModule:
    return Standing()


def real() -> pl.LightningModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies warn about each other
        pytest.importorskip("MEDS_EIC_AR")
        from MEDS_EIC_AR.model import Model as Published
        from MEDS_EIC_AR.training import MEICARModule, NextCodeMetrics
    model = Published(dict(SETTINGS), precision="32-true")
    return MEICARModule(model=model, metrics=NextCodeMetrics(top_k=[1], vocab_size=V), optimizer=None)


def loud(module: pl.LightningModule) -> pl.LightningModule:
    module.double()
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 2:
                weight.mul_(8.0)
    return module.train()


@pytest.fixture(params=[standing, real])
def module(request) -> pl.LightningModule:
    torch.manual_seed(0)
    return loud(request.param())


def test_its_loss_is_the_mean_of_our_log_probs(module):
    adapter = MEICARAdapter(module)
    assert (adapter.vocabulary, adapter.longest, adapter.stop, adapter.pad) == (V, 24, END, 0)
    asked = sequences(1, 12, 20, shortest=2, first=1)
    batch = SimpleNamespace(code=torch.as_tensor(padded(asked, 0)[0]), PAD_INDEX=0)
    module.eval()
    with torch.no_grad():
        loss, _ = module.model(batch)
    module.train()
    ours = adapter.log_probs(asked)
    assert -np.nanmean(ours) == pytest.approx(float(loss), abs=1e-10)
    np.testing.assert_allclose(ours, naive_log_probs(module.model.HF_model, asked), atol=1e-10)
    assert codes_of(batch).values.tolist() == asked.values.tolist()
    assert module.training and adapter.of(module).longest == 24


def test_a_timeline_ends(module):
    prompts = sequences(2, 20, 8, shortest=1, first=1)
    found = MEICARAdapter(module).generate(prompts, 14, seed=2)
    assert np.any(found.lengths < 14)
    for i in range(20):
        row = found[i].tolist()
        assert END not in row[:-1]
        assert row[-1] == END or len(row) == 14
    with pytest.raises(DataError, match="token 0, which is padding to this model, inside 1 sequences"):
        MEICARAdapter(module).log_probs(Ragged.from_lists([[3, 0, 4], [3, 4]]))


def test_the_likeliest_continuation_is_the_published_one():
    torch.manual_seed(0)
    module = loud(real())
    prompts = Ragged.from_lists([[3, 4, 6], [9, 8, 7]])
    found = MEICARAdapter(module).generate(prompts, 24, temperature=0)
    module.eval()
    batch = SimpleNamespace(code=torch.as_tensor(padded(prompts, 0)[0]), PAD_INDEX=0)
    published = module.model.generate(batch, do_sample=False)
    for i in range(2):
        tokens = found[i].tolist()
        assert tokens == published[i][: len(tokens)].tolist()
        assert tokens[-1] == END or len(tokens) == 24 - 3


def test_other_modules_are_not_taken_for_one():
    torch.manual_seed(0)
    module = Standing()
    assert is_meicar(module) and is_meicar(module.model) and not is_meicar(module.model.HF_model)
    assert not is_meicar(nn.Linear(2, 2)) and not is_meicar(None)
    with pytest.raises(AbilityError, match=r"Linear without a model\.HF_model"):
        MEICARAdapter(nn.Linear(2, 2))
    assert HFAdapter(module).longest == 24
