"""A hash of weights: whether a model is the one that was meant."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["weights_hash"]


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of the weights and buffers.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> weights_hash(layer) == weights_hash(layer)
        True
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return f"sha256:{digest.hexdigest()}"
