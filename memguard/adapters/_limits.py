"""How many tokens a module knows, and how many it can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memguard.adapters._listening import Listener
from memguard.errors import AbilityError

__all__ = ["Limits", "limits_of", "logits_in"]

_LONGEST_TRIED = 1024


@dataclass(frozen=True)
class Limits:
    """What trial calls have shown.

    Attributes:
        vocabulary: Logits of a token.
        table: ``(rows, D)`` the embedding of the tokens, if one is looked up.
        longest: Most tokens of a sequence; ``None`` where no limit was met.
        width: Of what the output layer is given, ``None`` if that was not heard.
    """

    vocabulary: int
    table: Tensor | None
    longest: int | None
    width: int | None


def logits_in(output: object, batch: int, length: int, place: int | None = None) -> tuple[Tensor, int | None]:
    """The logits in what a forward pass returned: a tensor, ``.logits``, or the one fitting tensor of a tuple.

    Args:
        output: What was returned.
        batch: Sequences.
        length: Tokens of each.
        place: Where in a tuple they stood before: a state may have the same shape by chance.

    Returns:
        ``(B, T, V)`` logits, and where in a tuple they stand.

    Raises:
        AbilityError: If there is none, or more than one.
    """
    found = output
    if not isinstance(found, Tensor):
        found = getattr(output, "logits", output)
    if isinstance(found, dict):
        found = found.get("logits", tuple(found.values()))
    if isinstance(found, tuple | list):
        fits = [i for i, each in enumerate(found) if _fits(each, batch, length)]
        if place is None and len(fits) == 1:
            place = fits[0]
        found = found[place] if place in fits and place is not None else found
    if isinstance(found, Tensor) and _fits(found, batch, length):
        return found, place
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise AbilityError(
        f"forward returned {shape} for ({batch}, {length}) tokens",
        f"logits of the shape ({batch}, {length}, vocabulary) are needed",
        "pass logits= with a function of module and tokens that returns them",
    )


def _fits(value: object, batch: int, length: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim == 3
        and tuple(value.shape[:2]) == (batch, length)
        and value.is_floating_point()
    )


def limits_of(
    ask: Callable[[Tensor], Tensor], *, pad: int, longest: int | None, device: torch.device
) -> Limits:
    """Try a module on a few short sequences and, where needed, on longer ones.

    Args:
        ask: ``(B, T)`` tokens to ``(B, T, V)`` logits.
        pad: A token that is certainly known.
        longest: As stated, to be found out where ``None``: from a table of positions that is looked up, or (on the
            CPU, where a failing call does no harm) by longer and longer sequences, up to 1,024 tokens.
        device: Where the tokens go.

    Raises:
        AbilityError: If the module cannot be called so.
    """
    short = 4 if longest is None else max(1, min(4, longest))
    vocabulary = _called(ask, torch.full((1, short), pad, device=device)).shape[2]
    if not 0 <= pad < vocabulary:
        raise AbilityError(
            f"pad={pad} for {vocabulary} tokens", "padding could not be looked up", "pass pad="
        )
    other = 1 if pad == 0 else 0
    # Not a run of numbers, so that the lookup of tokens cannot be taken for that of positions.
    tokens = torch.tensor([[pad, other, other, pad][:short]], device=device)
    with Listener(products_of=vocabulary) as heard:
        _called(ask, tokens)
    table, found = None, None
    for weight, indices in heard.lookups:
        if indices.numel() != short:
            continue
        flat = indices.reshape(-1)
        if table is None and torch.equal(flat, tokens[0]):
            table = weight.detach()
        elif weight.shape[0] == short:
            continue  # what was computed for these tokens, picked by place: it grows with them
        elif short > 1 and torch.equal(flat - flat[0], torch.arange(short, device=device)):
            rows = weight.shape[0] - int(flat[0])
            found = rows if found is None else min(rows, found)
    if longest is None:
        longest = found
        if longest is None and device.type == "cpu":
            longest = _tried(ask, torch.full((1, _LONGEST_TRIED), other, device=device), short)
    elif found is not None and longest > found:
        raise AbilityError(
            f"longest={longest} for a module with a table of {found} places",
            "it would look up a place that is not there",
            f"pass longest={found}, or leave it out",
        )
    if table is not None and table.shape[0] < vocabulary:
        raise AbilityError(
            f"logits of {vocabulary} tokens from an embedding of {table.shape[0]}",
            "some tokens can be predicted but not read",
            "pass logits= with a function that returns only the logits of tokens that can be read",
        )
    width = next((left.shape[-1] for left, shape in reversed(heard.products)), None)
    return Limits(vocabulary, table, longest, width)


def _called(ask: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    try:
        return ask(tokens)
    except AbilityError:
        raise
    except Exception as error:
        raise AbilityError(
            f"forward failed on {tuple(tokens.shape)} tokens: {type(error).__name__}: {str(error)[:200]}",
            "the module does not map (B, T) tokens to (B, T, V) logits as it is",
            "pass logits= with a function of module and tokens, or write memguard_adapter() on the module",
        ) from error


def _tried(ask: Callable[[Tensor], Tensor], tokens: Tensor, works: int) -> int | None:
    """The most tokens that the module reads without failing; ``None`` if that is all that are tried."""

    def reads(length: int) -> bool:
        try:
            ask(tokens[:, :length])
        except Exception:
            return False
        return True

    length = 64
    while length <= tokens.shape[1] and reads(length):
        works, length = length, 2 * length
    if length > tokens.shape[1]:
        return None
    while length - works > 1:
        middle = (works + length) // 2
        works, length = (middle, length) if reads(middle) else (works, middle)
    return works
