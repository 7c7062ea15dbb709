"""Which tokens of a record are left out of its loss: a hash of the tokens before them decides (the goldfish loss)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memguard.capture.ids import Positions
from memguard.capture.losses import CapturedLoss
from memguard.errors import MemguardError
from memguard.mitigations.arguments import is_whole
from memguard.records._hashing import scramble

__all__ = ["GoldfishRule", "goldfish_kept", "goldfish_keys", "goldfish_weights"]

_BITS = 31


def goldfish_keys(h: int, seed: int = 0) -> Tensor:
    """Random 64-bit numbers that make a hash of ``h`` tokens, int64 ``(h + 1,)``.

    Args:
        h: Tokens that are hashed.
        seed: Another one leaves out other tokens.

    Example:
        >>> goldfish_keys(3).shape, bool((goldfish_keys(3) == goldfish_keys(3, seed=1)).any())
        (torch.Size([4]), False)
    """
    start = scramble(np.array([seed % 2**64], np.uint64))
    numbered = np.asarray(start + np.arange(1, h + 2, dtype=np.uint64), dtype=np.uint64)
    return torch.from_numpy(scramble(numbered).view(np.int64))


def goldfish_kept(targets: Tensor, counted: Tensor, k: int, keys: Tensor) -> Tensor:
    """Which targets stay in the loss.

    Args:
        targets: int ``(B, T)``, class numbers below 2^32 - 1.
        counted: bool ``(B, T)``, false for padding and ignored positions.
        k: About one of so many tokens is left out.
        keys: From `goldfish_keys`, ``(h + 1,)``.

    Returns:
        bool ``(B, T)``. A target is left out if the hash of the ``h`` counted targets before it in its row falls into
        the lowest k-th of its range; where there are fewer, of those that there are, and of the beginning. The first
        one stays. Padding changes nothing, wherever it stands.

    Note:
        The hash is multilinear, its upper 31 bits of ``a_0 + sum_j a_j x_j`` modulo 2^64: over the choice of the keys,
        any context is hit with a probability of 1/k, and any two of them independently (Lemire and Kaser 2014,
        arXiv:1202.4961, Theorem 3.1). Two passes over the records have the same mask.

    Example:
        >>> y = torch.arange(1, 21)[None]
        >>> every = torch.ones_like(y, dtype=torch.bool)
        >>> kept = goldfish_kept(y, every, 4, goldfish_keys(5))
        >>> padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), y], 1)
        >>> bool((goldfish_kept(padded, padded > 0, 4, goldfish_keys(5))[:, 3:] == kept).all())
        True
    """
    h, (n, length) = len(keys) - 1, targets.shape
    rank = counted.to(torch.int64).cumsum(1) - 1
    # The counted tokens side by side, behind h places for the beginning; the others share a place that nobody reads.
    place = torch.where(counted, rank + h, h + length)
    side_by_side = torch.zeros(n, h + length + 1, dtype=torch.int64, device=targets.device)
    side_by_side.scatter_(1, place, targets.to(torch.int64) + 1)
    windows = side_by_side[:, : h + length - 1].unfold(1, h, 1)
    hashed = (windows * keys[1:]).sum(-1) + keys[0]
    below = ((hashed >> (64 - _BITS)) & (2**_BITS - 1)) < 2**_BITS // k
    below[:, 0] = False  # nothing is before the first one: all records would lose theirs, or none
    kept: Tensor = ~(below.gather(1, rank.clamp(min=0)) & counted)
    return kept


def goldfish_weights(targets: Tensor, masses: Tensor, k: int, keys: Tensor) -> Tensor:
    """Weights of tokens with which a record's loss is the mean over those that stay.

    Args:
        targets: int ``(B, T)``.
        masses: float ``(B, T)``, how much each counts in the returned loss; zero for padding and ignored positions.
        k: About one of so many tokens is left out.
        keys: From `goldfish_keys`.

    Returns:
        float32 ``(B, T)``: zero for what is left out; for the others the record's mass over the mass of those that
        stay. The whole mass of a record is what it was, so that its share in the loss of the batch is too, and its
        weights depend on itself alone.

    Example:
        >>> y = torch.arange(1, 11)[None]
        >>> weights = goldfish_weights(y, torch.ones(1, 10), 3, goldfish_keys(2))
        >>> round(float(weights.sum()), 4), int((weights == 0).sum()) > 0
        (10.0, True)
    """
    masses = masses.to(torch.float32)
    counted = masses != 0
    kept = goldfish_kept(targets, counted, k, keys)
    stay = torch.where(kept, masses, 0.0).sum(1, keepdim=True)
    factor = masses.sum(1, keepdim=True) / torch.where(stay > 0, stay, 1.0)
    return torch.where(counted, kept * factor, 1.0)


class GoldfishRule:
    """The weights of `goldfish_weights` as a rule of :class:`~memguard.capture.weigh.Weigher`.

    Args:
        k: About one of so many tokens is left out, at least 2.
        h: Tokens before it that decide, at least 1.
        seed: Of the hash.

    Raises:
        MemguardError: If a number cannot be.

    Example:
        >>> y = torch.tensor([[5, 7, 9, 4]])
        >>> given = {"targets": y, "masses": torch.ones(1, 4), "route": ""}
        >>> seen = CapturedLoss(loss=torch.zeros(1), tokens=torch.tensor([4]), **given)
        >>> GoldfishRule(4, 2)(np.arange(1), seen).shape
        torch.Size([1, 4])
    """

    of_tokens = True

    def __init__(self, k: int, h: int, seed: int = 0) -> None:
        for name, value, least in (("k", k, 2), ("h", h, 1), ("seed", seed, 0)):
            if not is_whole(value, least):
                raise MemguardError(
                    f"{name}={value!r}",
                    "one of k tokens is left out by a hash of the h tokens before it",
                    f"pass {name}= as a whole number from {least}",
                )
        self.k, self.keys = int(k), goldfish_keys(int(h), int(seed))

    def __call__(self, positions: Positions, captured: CapturedLoss) -> Tensor:
        """Weights ``(B, T)`` of the tokens of a step."""
        targets, masses = captured.targets, captured.masses
        assert targets is not None
        assert masses is not None
        if self.keys.device != targets.device:
            self.keys = self.keys.to(targets.device)
        return goldfish_weights(targets, masses, self.k, self.keys)
