"""Which adapter fits a module, and the proof that it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from memguard.adapters.base import ModelAdapter
from memguard.adapters.causal import CausalAdapter
from memguard.adapters.hf import HFAdapter, causal_lm
from memguard.adapters.meds_eic_ar import MEICARAdapter, is_meicar
from memguard.errors import AbilityError
from memguard.records.content import Ragged

__all__ = ["Found", "find_adapter"]

Floats = NDArray[np.float64]

_EXAMPLES = 256


class Found(NamedTuple):
    """What was found.

    Attributes:
        adapter: ``None`` if none fits.
        why: In words: what the adapter is and what proves it, or why none fits.
    """

    adapter: ModelAdapter | None
    why: str


def find_adapter(
    module: Any,
    vocabulary: int | None = None,
    example: Ragged | None = None,
    *,
    adapter: ModelAdapter | Callable[[Any], ModelAdapter] | None = None,
    loss: ArrayLike | None = None,
    tolerance: float = 5e-3,
) -> Found:
    """Find out how a module is to be asked.

    In this order: ``adapter``; ``module.memguard_adapter()``, where the module has that method; MEDS-EIC-AR; a causal
    language model of transformers; a module whose forward maps tokens to logits.

    Args:
        module: What was trained.
        vocabulary: How many tokens the caller has names for.
        example: Sequences that the module was trained or validated on, in its own tokens.
        adapter: An adapter, or a function that makes one of the module, such as ``CausalAdapter``.
        loss: ``(n,)`` the module's own eval-mode loss on each example, nats per predicted token; NaN where not
            measured. Minus the mean of ``log_probs`` over a sequence has to equal it.
        tolerance: How far the means over all examples may be apart, in nats and as a share of the loss; those of one
            example ten times as far. The default leaves room for losses that were computed in 16 bits.

    Returns:
        The adapter and how it was found; no adapter, and why, where the module cannot be asked.

    Raises:
        AbilityError: If an adapter was found but gives other probabilities than the module was trained with: other
            tokens, targets moved by one place, a loss of another kind.

    What it does and does not show: with ``loss``, that the adapter's numbers are those that the module was trained
    on, to ``tolerance``, on at most 256 examples. Without it only the shape of things is known to fit; ``why`` says so.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> bigram = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
        >>> examples = Ragged.from_lists([[1, 2, 3], [4, 5]])
        >>> find_adapter(bigram, example=examples, loss=[2.12, 2.12]).why
        'CausalAdapter of Sequential: 9 tokens, no limit of length; equals its losses on 2 examples'
        >>> find_adapter(nn.Linear(4, 1))
        Found(adapter=None, why='Linear: forward failed on (1, 4) tokens: ...')
    """
    found = _made(module, adapter)
    if found.adapter is None:
        return found
    asked, name = found.adapter, f"{type(found.adapter).__name__} of {type(module).__name__}"
    reach = "no limit of length" if asked.longest is None else f"at most {asked.longest} in a sequence"
    facts = f"{name}: {asked.vocabulary:,} tokens, {reach}"
    proof = _proved(asked, example, loss, tolerance) if loss is not None and example is not None else 0
    if vocabulary is not None and vocabulary > asked.vocabulary and not proof:
        raise AbilityError(
            f"{vocabulary:,} names for the {asked.vocabulary:,} tokens of {type(module).__name__}",
            "they are those of another tokenizer, and every finding would name another code",
            "pass the names of the module's own tokens, or loss= to prove that sequences are in them",
        )
    if vocabulary is not None and vocabulary != asked.vocabulary:
        facts += f", {vocabulary:,} names"
    compared = f"equals its losses on {proof} examples" if proof else "not compared with its losses"
    return Found(asked, f"{facts}; {compared}")


def _made(module: Any, adapter: Any) -> Found:
    own = getattr(module, "memguard_adapter", None)
    if adapter is not None:
        return Found(_conforming(adapter, module, "adapter="), "")
    if callable(own):
        return Found(_conforming(own(), module, "memguard_adapter()"), "")
    if not isinstance(module, nn.Module):
        return Found(None, f"{type(module).__name__} is no torch module and has no memguard_adapter()")
    try:
        if is_meicar(module):
            return Found(MEICARAdapter(module), "")
        if causal_lm(module) is not None:
            return Found(HFAdapter(module), "")
        return Found(CausalAdapter(module), "")
    except AbilityError as error:
        return Found(None, f"{type(module).__name__}: {error}")


def _conforming(adapter: Any, module: Any, given: str) -> ModelAdapter:
    made = adapter if isinstance(adapter, ModelAdapter) and not isinstance(adapter, type) else None
    if made is None and callable(adapter):
        made = adapter(module)
    if not isinstance(made, ModelAdapter):
        raise AbilityError(
            f"{given} gives a {type(adapter if made is None else made).__name__}",
            "it cannot be asked as memguard.adapters.ModelAdapter says",
            "give it all methods and attributes of ModelAdapter",
        )
    return made


def _proved(adapter: ModelAdapter, example: Ragged, loss: ArrayLike, tolerance: float) -> int:
    """On how many examples the losses are equal; 0 if there was none to compare."""
    stated = np.asarray(loss, dtype=np.float64)
    if stated.shape != (len(example),):
        raise AbilityError(
            f"losses of shape {stated.shape} for {len(example)} examples",
            "they cannot be compared",
            "pass loss= with one number for each example",
        )
    usable = np.isfinite(stated) & (example.lengths >= 2)
    if adapter.longest is not None:
        usable &= example.lengths <= adapter.longest
    rows = np.flatnonzero(usable)[:_EXAMPLES]
    if rows.size == 0:
        return 0
    some, stated = example.take(rows), stated[rows]
    known = (some.values >= 0) & (some.values < adapter.vocabulary)
    if not known.all():
        raise AbilityError(
            f"tokens up to {int(some.values.max())} in the examples for a vocabulary of {adapter.vocabulary}",
            "the examples were made with another tokenizer",
            "pass the module's own sequences, or adapter= that reads these",
        )
    scores = adapter.log_probs(some, patient=np.full(len(rows), -1))
    scores[some.offsets[:-1]] = 0.0  # the first token of each, which nothing predicts
    total: Floats = -np.bincount(some.rows, weights=scores, minlength=len(rows)).astype(np.float64)
    count = (some.lengths - 1).astype(np.float64)
    apart = np.abs(total / count - stated)
    if _equal(total / count, stated, tolerance):
        return len(rows)
    worst = int(np.argmax(apart))
    raise AbilityError(
        f"{stated[worst]:.4g} nats a token is the module's loss where the adapter has "
        f"{total[worst] / count[worst]:.4g}; on average {stated.mean():.4g} and {(total / count).mean():.4g} "
        f"over {len(rows)} examples",
        "every score would be of another model than was trained: " + _guess(total, count, stated, tolerance),
        "pass adapter= with one that asks the module as its training step does, or tolerance=",
    )


def _equal(ours: Floats, stated: Floats, tolerance: float) -> bool:
    room = tolerance * np.maximum(1.0, np.abs(stated))
    return bool(abs((ours - stated).mean()) <= room.mean() and np.all(np.abs(ours - stated) <= 10 * room))


def _guess(total: Floats, count: Floats, stated: Floats, tolerance: float) -> str:
    """What would explain the difference."""
    causes = {
        "the stated losses are sums over a sequence, not means": total,
        "the stated losses are in bits": total / count / np.log(2),
        "the stated losses are divided by the number of all tokens, the first one too": total / (count + 1),
        "the stated losses are divided by the length of the longest sequence": total / count.max(),
    }
    for cause, values in causes.items():
        if _equal(values, stated, tolerance):
            return cause
    if len(stated) > 1 and np.std(total / count - stated) < tolerance:
        return "a constant lies between them (label smoothing, or a second term in the loss)"
    return "other tokens, targets moved by one place, other weights, or a loss of another kind"
