"""Causal language models of Hugging Face transformers, alone or inside a LightningModule."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memguard.adapters._causality import apart, noise_of
from memguard.adapters._device import doubled
from memguard.adapters.causal import CausalAdapter
from memguard.adapters.sampling import Reading
from memguard.capture.stillness import untouched
from memguard.errors import AbilityError

__all__ = ["HFAdapter", "causal_lm"]

Floats = NDArray[np.float64]


def causal_lm(module: nn.Module) -> Any | None:
    """The one pretrained-model object with an output layer in a module, or the module itself.

    Returns:
        ``None`` if there is none; transformers is not imported to find out.

    Raises:
        AbilityError: If there are several.
    """
    # Where this is not loaded there is no such object; transformers itself, which others load, is lazy and slow.
    library = sys.modules.get("transformers.modeling_utils")
    kind = getattr(library, "PreTrainedModel", None) if library is not None else None
    if kind is None:
        return None
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{outer}.") if outer else True for outer in found)
        if not inside and isinstance(part, kind) and part.get_output_embeddings() is not None:
            found[name] = part
    if len(found) > 1:
        raise AbilityError(
            f"several language models in the module: {', '.join(found)}",
            "it is not clear which one is to be asked",
            f"pass the one itself, for instance adapter=HFAdapter(module.{next(iter(found))})",
        )
    return next(iter(found.values()), None)


class HFAdapter(CausalAdapter):
    """Ask a transformers model that maps ``input_ids`` to ``.logits``, with an attention mask for the padding.

    Continuations are read one token at a time, with the keys and values of those before kept
    (``past_key_values``), from prompts of one length together, so that no padding comes in between. This is done only
    where it has been seen to give the logits of the whole sequence read anew; otherwise that is done.

    Args:
        module: A ``PreTrainedModel``, or a module with exactly one inside.
        vocabulary: V, if it is known and to be checked.
        longest: Most tokens of a sequence; by default ``max_position_embeddings`` of the configuration.
        pad: Fills up shorter sequences behind the attention mask.
        stop: A token that ends a continuation, or several; by default ``eos_token_id`` of the configuration, as for
            the model's own ``generate``. The configurations of transformers have a default for it (2 for Llama):
            pass ``None`` where your vocabulary has no such token.
        batch: Most sequences in one call.

    Raises:
        AbilityError: If no such model is in the module, or it is not causal.

    What it does and does not show: the model is asked for tokens. If the module gives it embeddings of its own
    making (``inputs_embeds``), these are other predictions: ``find_adapter`` with the module's losses sees it.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> _ = torch.manual_seed(0)
        >>> config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=16, eos_token_id=None)
        >>> model = HFAdapter(LlamaForCausalLM(config))
        >>> model.vocabulary, model.longest, sorted(model.abilities)
        (20, 16, ['embed', 'generate', 'log_probs'])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        vocabulary: int | None = None,
        longest: int | None = None,
        pad: int = 0,
        stop: int | tuple[int, ...] | Literal["config"] | None = "config",
        batch: int = 64,
    ) -> None:
        model = causal_lm(module)
        if model is None:
            raise AbilityError(
                f"no pretrained model with an output layer in {type(module).__name__}",
                "there is nothing to ask",
                "pass the model itself, or use CausalAdapter",
            )
        if longest is None:
            longest = getattr(model.config, "max_position_embeddings", None)
        super().__init__(
            model,
            vocabulary=vocabulary,
            longest=longest,
            pad=pad,
            stop=_end(model, stop),
            batch=batch,
        )
        with untouched(model):
            self._cached = self._keeps()

    def of(self, module: Any) -> HFAdapter:
        """Ask another module with a model of the same kind in the same way.

        Raises:
            AbilityError: If it does not fit.
        """
        return HFAdapter(
            module,
            vocabulary=self.vocabulary,
            longest=self.longest,
            pad=self.pad,
            stop=self.stop,
            batch=self.batch,
        )

    def code_vectors(self) -> Floats | None:
        """The input embeddings, ``(V, D)``."""
        model: Any = self.module
        table = model.get_input_embeddings()
        if table is None:
            return super().code_vectors()
        vectors: Floats = doubled(table.weight.detach()[: self.vocabulary]).cpu().numpy()
        return vectors

    def _called(self, tokens: Tensor, real: Tensor, **more: Any) -> Any:
        return self.module(input_ids=tokens, attention_mask=real.long(), return_dict=True, **more)

    def _logits(self, tokens: Tensor, real: Tensor) -> Tensor:
        logits: Tensor = self._called(tokens, real, use_cache=False).logits
        return logits

    def _states(self, tokens: Tensor, real: Tensor) -> Tensor:
        out = self._called(tokens, real, use_cache=False, output_hidden_states=True)
        states: Tensor = out.hidden_states[-1]
        return states

    def _has_states(self) -> bool:
        return True

    def _read(self, tokens: Tensor, lengths: Tensor) -> Reading:
        if not self._cached:
            yield from super()._read(tokens, lengths)
        kept, new, length = None, tokens, tokens.shape[1]
        while True:
            real = torch.ones((len(tokens), length), dtype=torch.bool, device=tokens.device)
            out = self._called(new, real, past_key_values=kept, use_cache=True)
            kept = out.past_key_values
            following, _ = yield out.logits[:, -1]
            new, length = following[:, None], length + 1

    def _keeps(self) -> bool:
        """Whether reading on from what was kept gives the logits of reading anew."""
        length = 5 if self.longest is None else min(5, self.longest)
        if length < 3:
            return False
        tokens = torch.arange(2 * length, device=self.device).reshape(2, length) % self.vocabulary
        real = torch.ones_like(tokens, dtype=torch.bool)
        anew = self._logits(tokens, real)
        kept = None
        for start, end in ((0, length - 2), (length - 2, length - 1), (length - 1, length)):
            try:
                out = self._called(tokens[:, start:end], real[:, :end], past_key_values=kept, use_cache=True)
            except TypeError:  # state space models keep something else
                return False
            kept = getattr(out, "past_key_values", None)
            if kept is None or apart(out.logits[:, -1], anew[:, end - 1]).max() > 10 * noise_of(anew):
                return False
        return True


def _end(model: Any, stop: int | tuple[int, ...] | str | None) -> int | tuple[int, ...] | None:
    if not isinstance(stop, str):
        return stop
    found = getattr(model.config, "eos_token_id", None)
    return tuple(found) if isinstance(found, list) else found
