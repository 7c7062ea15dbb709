"""Whether a module predicts each token from those before it, from nothing else, and always the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from memguard.errors import AbilityError

__all__ = ["apart", "check_causal", "noise_of"]

_LENGTH = 6
_WIDER = 3  # padding that is added to see whether it matters


def check_causal(
    logits: Callable[[Tensor, Tensor], Tensor],
    vocabulary: int,
    *,
    longest: int | None,
    pad: int,
    device: torch.device,
) -> bool:
    """Change one token after the other and see which logits change.

    Args:
        logits: ``(B, T)`` tokens and which of them are real to ``(B, T, V)`` logits.
        vocabulary: Tokens that may be tried.
        longest: Most tokens of a sequence, ``None`` without a limit.
        pad: What sequences are padded with.
        device: Where the tokens go.

    Returns:
        Whether anything was seen: false where the logits do not depend on the input at all (an output layer of
        zeros, before training), so that it has to be looked at again.

    Raises:
        AbilityError: If the logits of a token depend on later tokens, on padding, on the other sequences of a
            batch or on chance, or come one place later than those of a next-token model.
    """
    length = _LENGTH if longest is None else min(_LENGTH, longest)
    # No padding among the tokens, since some modules derive a mask from it.
    known = np.setdiff1d(np.arange(vocabulary), [pad])
    if length < 2 or len(known) < 2:
        return True
    base = np.random.default_rng(0).integers(len(known), size=length)
    rows = np.repeat(
        base[None], length + 1, axis=0
    )  # in row s token s is another one; the last row is as it was
    rows[np.arange(length), np.arange(length)] = (base + 1) % len(known)
    tokens = torch.as_tensor(known[rows], device=device)

    def ask(given: Tensor, real: int) -> Tensor:
        mask = torch.arange(given.shape[1], device=device).expand(given.shape) < real
        return logits(given, mask)[:, :real]

    alone, batch = ask(tokens[-1:], length)[0], ask(tokens, length)
    noise = noise_of(alone)
    if apart(alone, ask(tokens[-1:], length)[0]).max() > noise:
        raise AbilityError(
            "two identical calls in eval mode give different logits",
            "a score would be partly chance",
            "take the randomness out of eval mode (dropout by nn.Dropout, not by a function that is always on)",
        )
    if apart(alone, batch[-1]).max() > 10 * noise:
        raise AbilityError(
            "the logits of a sequence depend on the other sequences of its batch",
            "one patient's score would depend on another's record",
            "check batch_first= and the axis that attention runs over",
        )
    wider = 0 if longest is None else longest - length
    wider = _WIDER if longest is None else min(_WIDER, wider)
    if wider:
        given = torch.nn.functional.pad(tokens[-1:], (0, wider), value=pad)
        if apart(alone, ask(given, length)[0]).max() > 10 * noise:
            raise AbilityError(
                "padding to the right changes the logits before it",
                "a score would depend on the longest sequence of the batch",
                "pass logits= with a function that gives the module what it needs to know about padding",
            )
    return _judge(apart(batch[:-1], batch[-1]).amax(-1).cpu().numpy(), noise)


def _judge(change: np.ndarray, noise: float) -> bool:
    """Read ``(L, L)`` changes of the logits at t after a change of token s."""
    seen = change > noise
    if np.any(np.triu(seen.T, 1)):
        s, t = np.argwhere(np.triu(seen.T, 1))[0][::-1]
        raise AbilityError(
            f"token {s + 1} changes the logits of token {t + 1}, which comes before it",
            "the model sees what it is to predict, so that its log-probabilities are not those of a next-code model",
            "ask a causal model, or pass logits= with a function that hands it its causal mask",
        )
    if not seen.diagonal().any() and seen.diagonal(1).any():
        raise AbilityError(
            "the logits at a place do not depend on the token there but on those before it",
            "the module moves its input one place on by itself, and every token would be scored as the next one",
            "pass logits= with a function that returns at each place the logits of the token after it",
        )
    return bool(seen.any())


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Absolute differences, 0 where both are the same infinity or NaN."""
    a, b = a.float(), b.float()
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs().nan_to_num(torch.inf))


def noise_of(logits: Tensor) -> float:
    """Differences that arithmetic alone may make."""
    finite = logits.float().nan_to_num(0.0, 0.0, 0.0).abs().max()
    relative = 4 * torch.finfo(logits.dtype).eps
    if logits.dtype in (torch.float32, torch.float64):
        rounds = logits.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
        relative = 4e-3 if rounds else 1e-5
    return float(relative * max(float(finite), 1e-3))
