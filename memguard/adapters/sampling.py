"""Continuations drawn token by token: temperature, nucleus (top-p) sampling, one random stream a sequence."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import torch
from torch import Tensor

from memguard.adapters._device import doubled
from memguard.adapters._sequences import batches, padded
from memguard.errors import AbilityError, MemguardError
from memguard.records.content import Ragged

__all__ = ["Reading", "draw", "sample"]

Reading = Generator[Tensor, tuple[Tensor, Tensor], None]
"""Yields ``(B, V)`` logits of the next token; is sent ``(B,)`` new tokens and which sequences take theirs."""


def sample(
    read: Callable[[Tensor, Tensor], Reading],
    prompts: Ragged,
    n_new: int,
    *,
    vocabulary: int,
    longest: int | None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | tuple[int, ...] | None = None,
    batch: int = 64,
    equal: bool = False,
    pad: int = 0,
    device: torch.device | None = None,
) -> Ragged:
    """Continue each prompt ``samples`` times.

    The random numbers of continuation ``j`` of prompt ``i`` come from a stream of its own, made from ``seed`` and
    ``i * samples + j``: batches do not matter, and a larger ``n_new`` prolongs the same continuations. What is left
    is rounding: a draw that falls within 1e-7 of the border between two tokens may go either way in float32.

    Args:
        read: Begins to read ``(B, T)`` padded tokens with ``(B,)`` lengths.
        prompts: ``n``, none of them empty.
        n_new: Most tokens of a continuation.
        vocabulary: V.
        longest: Most tokens of prompt and continuation together, ``None`` without a limit.
        samples: Continuations of each prompt.
        temperature: The logits are divided by it; 0 takes the likeliest token, the first of several.
        top_p: Draw from the fewest likeliest tokens that together have at least this probability, at this
            temperature (nucleus sampling, arXiv 1904.09751, section 3.1).
        seed: Not negative.
        stop: A token that ends a continuation, or several; it is the last one kept.
        batch: Sequences read together.
        equal: Read only prompts of one length together.
        pad: Fills up shorter sequences.
        device: Where tokens go.

    Returns:
        ``n * samples`` continuations.

    Raises:
        MemguardError: For settings that define no distribution.
    """
    _check(n_new, samples, temperature, top_p, seed)
    lengths = np.repeat(prompts.lengths, samples)
    room = np.full(len(lengths), n_new) if longest is None else np.minimum(n_new, longest - lengths)
    out = np.full((len(lengths), n_new), pad, dtype=np.int32)
    sizes = np.zeros(len(lengths), dtype=np.int64)
    waiting = np.where(room > 0, lengths, 0)
    for rows in batches(waiting, batch, vocabulary, growth=n_new, equal=equal):
        uniform = np.zeros((len(rows), n_new))
        if temperature > 0:
            for k, row in enumerate(rows):
                uniform[k] = np.random.default_rng([seed, int(row)]).random(n_new)
        tokens, _ = padded(prompts.take(rows // samples), pad)
        reading = read(torch.as_tensor(tokens, device=device), torch.as_tensor(lengths[rows], device=device))
        logits = next(reading)
        alive = np.ones(len(rows), dtype=bool)
        for step in range(int(room[rows].max())):
            new = draw(logits, torch.as_tensor(uniform[:, step]), temperature=temperature, top_p=top_p)
            drawn = new.cpu().numpy()
            out[rows[alive], step] = drawn[alive]
            sizes[rows] += alive
            alive &= sizes[rows] < room[rows]
            if stop is not None:
                alive &= ~np.isin(drawn, stop)
            if not alive.any():
                break
            logits = reading.send((new.to(device), torch.as_tensor(alive, device=device)))
        reading.close()
    return Ragged.from_lengths(out[np.arange(n_new) < sizes[:, None]], sizes)


def draw(logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """One token a row, by the inverse of the distribution function.

    Args:
        logits: ``(B, V)``.
        uniform: ``(B,)`` in [0, 1).
        temperature: See :func:`sample`.
        top_p: See :func:`sample`.

    Returns:
        ``(B,)`` tokens.

    Raises:
        AbilityError: If logits are NaN.

    Example:
        >>> logits = torch.tensor([[0.1, 0.6, 0.3]]).log().expand(4, 3)
        >>> draw(logits, torch.tensor([0.05, 0.5, 0.65, 0.95])).tolist()
        [0, 1, 1, 2]
        >>> draw(logits, torch.tensor([0.05, 0.5, 0.65, 0.95]), top_p=0.8).tolist()
        [1, 1, 1, 2]
        >>> draw(logits, torch.tensor([0.05, 0.5, 0.65, 0.95]), temperature=0.0).tolist()
        [1, 1, 1, 1]
    """
    scores = doubled(logits)
    if bool(scores.isnan().any()):
        raise AbilityError(
            "NaN among the logits",
            "nothing can be drawn from them",
            "check the weights: the training may have diverged",
        )
    if temperature == 0:
        return scores.argmax(-1)
    share = torch.softmax(scores / temperature, -1)
    point = uniform.to(share.device, share.dtype)[:, None]
    if top_p >= 1.0:
        return _inverse(share, point)
    ranked, order = share.sort(dim=-1, descending=True, stable=True)
    kept = torch.where(ranked.cumsum(-1) - ranked < top_p, ranked, 0.0)
    return order.gather(-1, _inverse(kept, point)[:, None])[:, 0]


def _inverse(share: Tensor, point: Tensor) -> Tensor:
    """Where the cumulated shares pass the point; never a token of share 0."""
    summed = share.cumsum(-1)
    place = torch.searchsorted(summed, point * summed[:, -1:], right=True)[:, 0]
    last = share.shape[-1] - 1 - (share > 0).flip(-1).int().argmax(-1)
    return torch.minimum(place, last)


def _check(n_new: int, samples: int, temperature: float, top_p: float, seed: int) -> None:
    wrong = {
        "n_new": n_new < 0,
        "samples": samples < 1,
        "temperature": not (0 <= temperature < np.inf),
        "top_p": not 0 < top_p <= 1,
        "seed": seed < 0,
    }
    given = {"n_new": n_new, "samples": samples, "temperature": temperature, "top_p": top_p, "seed": seed}
    for name in [name for name, bad in wrong.items() if bad]:
        raise MemguardError(
            f"{name}={given[name]}",
            "no continuation can be drawn so",
            "n_new and seed from 0, samples from 1, temperature from 0, top_p in (0, 1]",
        )
