"""What an audit may ask of a model, whatever kind of module it is."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memguard.records.content import Ragged

__all__ = ["Ability", "ModelAdapter"]

Ability = Literal["log_probs", "generate", "embed"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@runtime_checkable
class ModelAdapter(Protocol):
    """A next-code model that can be asked. Numbers are float64 on the CPU, one thread of control, no side effects.

    Sequences are in the model's own tokens, without padding. What a model cannot do is not in ``abilities``, and
    asking for it raises ``AbilityError``.

    Attributes:
        abilities: What it can be asked.
        vocabulary: Number V of tokens.
        longest: Most tokens of a sequence that it can read, ``None`` without a limit; a longer one raises.
    """

    abilities: frozenset[Ability]
    vocabulary: int
    longest: int | None

    def log_probs(self, sequences: Ragged, *, patient: Ints | None = None) -> Floats:
        """Log-probability of each token given those before it.

        Args:
            sequences: ``n`` sequences with ``total`` tokens together.
            patient: ``(n,)`` whose they are; only a model made of counts needs it, to leave the patient out.

        Returns:
            ``(total,)`` natural logarithms in the order of ``sequences.values``; NaN for the first token of each
            sequence, which nothing predicts.
        """
        ...

    def next_log_probs(self, prompts: Ragged, *, patient: Ints | None = None) -> Floats:
        """Log-probabilities of all V tokens right after each prompt (none of them empty), ``(n, V)``."""
        ...

    def generate(
        self,
        prompts: Ragged,
        n_new: int,
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Ragged:
        """Continuations without their prompts.

        Args:
            prompts: ``n`` prompts, none of them empty.
            n_new: Tokens of a continuation, fewer where ``longest`` or an end token comes first.
            samples: Continuations of each prompt.
            temperature: 0 for the likeliest token always.
            top_p: Draw from the likeliest tokens that have this much probability together.
            seed: The same seed gives the same continuations, whatever the batches.

        Returns:
            ``n * samples`` sequences; continuation ``j`` of prompt ``i`` is number ``i * samples + j``.
        """
        ...

    def embed(self, sequences: Ragged) -> Floats:
        """One vector for each sequence, ``(n, D)``: what the model knows after its last token."""
        ...

    def code_vectors(self) -> Floats | None:
        """The model's own vector of each token, ``(V, D)``: how alike codes are to it; ``None`` where it has none."""
        ...

    def of(self, module: Any) -> ModelAdapter:
        """The same way of asking, of another module of the same kind: a reference model."""
        ...
