"""Gaussian noise that nobody can foresee, repeat or subtract: seeded by the operating system, apart from the run's own.

A run that calls ``seed_everything`` and is resumed would draw the same noise again from torch's global generator, and
the difference of two updates would be free of noise. So the noise has generators of its own, whose seed is never
stored; the ledger holds a fingerprint that shows that two runs had different ones.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from memguard.errors import PrivacyError

__all__ = ["NoiseSource", "entropy", "fingerprint", "generator"]

_BYTES = 32
_BLOCK = 1 << 22  # numbers made at once: bounds the float64 scratch to 32 MiB


def entropy() -> bytes:
    """32 bytes of the operating system's randomness, for a seed that is used once.

    Example:
        >>> len(entropy()), entropy() == entropy()
        (32, False)
    """
    return os.urandom(_BYTES)


def fingerprint(seed: bytes, purpose: str) -> str:
    """SHA-256 of a seed for the ledger: equal for equal seeds of one purpose; of 32 random bytes it tells nothing else.

    Example:
        >>> fingerprint(bytes(32), "noise") == fingerprint(bytes(32), "sampling")
        False
    """
    return _digest(seed, purpose, "fingerprint").hex()


def generator(seed: bytes, purpose: str, number: int = 0) -> np.random.Generator:
    """A NumPy generator that is a function of the seed, what it is for and a number: one stream for each.

    Example:
        >>> a, b = (generator(bytes(32), "sampling", number).random() for number in (0, 1))
        >>> a == b, a == generator(bytes(32), "sampling", 0).random()
        (False, True)
    """
    key = np.frombuffer(_digest(seed, purpose, str(number)), dtype="<u4")
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(key.tolist(), pool_size=len(key))))


def _digest(seed: bytes, purpose: str, part: str) -> bytes:
    """Independent looking keys from one seed: no stream, and no fingerprint, leads to another."""
    return hashlib.sha256(b"\0".join([b"memguard.privacy", purpose.encode(), part.encode(), seed])).digest()


class NoiseSource:
    """Gaussian noise from generators that are nobody else's.

    Seeded with 32 bytes of ``os.urandom``. The generators of torch, NumPy and ``random`` are neither read nor
    advanced, so that ``seed_everything`` does not repeat the noise and the noise does not change the run's own draws.
    An object cannot be copied, pickled or used in a forked process: there the same noise would be added twice.

    Attributes:
        fingerprint: SHA-256 of the seed, for the ledger.

    Note:
        The numbers are made in float64 and rounded to float32: torch's float32 normals on the CPU end at 5.77 standard
        deviations, since they come from 24 random bits, and where the noise ends it hides nothing. The CPU has a PCG64
        stream keyed with 256 bits (``torch.Generator`` on the CPU uses 32 bits of its seed), other devices a
        ``torch.Generator`` with 64 bits. All are pseudo-random generators and not cryptographic ones, and the sum is
        rounded to floating point: the attacks on rounding of Mironov 2012 (doi:10.1145/2382196.2382264) are outside
        the guarantee.

    Example:
        >>> noise = NoiseSource().normal_like(torch.zeros(2, 3), std=0.5)
        >>> noise.shape, noise.dtype, bool((noise != 0).all())
        (torch.Size([2, 3]), torch.float32, True)
    """

    def __init__(self, *, _seed: bytes | None = None) -> None:
        # _seed is for tests, which must be able to repeat a draw; a run that gives one has no privacy.
        self._seed = entropy() if _seed is None else _seed
        self.fingerprint = fingerprint(self._seed, "noise")
        self._process = os.getpid()
        self._cpu = generator(self._seed, "noise", 0)
        self._devices: dict[torch.device, torch.Generator] = {}

    def normal_like(self, tensor: Tensor, std: float) -> Tensor:
        """Independent N(0, std^2), new at every call.

        Args:
            tensor: Gives shape and device.
            std: Standard deviation, noise multiplier times clip norm.

        Returns:
            float32, of the shape and on the device of ``tensor``.

        Raises:
            PrivacyError: If ``std`` is not a number, or this is a copy of the process that made the source.
        """
        if not 0 <= std < float("inf"):
            raise PrivacyError(
                f"noise with a standard deviation of {std}",
                "epsilon is computed for Gaussian noise of a positive multiple of max_grad_norm",
                "pass a noise multiplier and a max_grad_norm that are finite and not negative",
            )
        if os.getpid() != self._process:
            self._refuse("used in a forked process")
        noise = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
        for at in range(0, noise.numel(), _BLOCK):
            block = noise.view(-1)[at : at + _BLOCK]
            block.copy_(self._float64(block.numel(), tensor.device).mul_(std))
        return noise

    def _float64(self, n: int, device: torch.device) -> Tensor:
        if device.type in ("cpu", "mps"):  # the latter has no float64
            return torch.from_numpy(self._cpu.standard_normal(n))
        own = self._devices.get(device)
        if own is None:
            own = self._devices[device] = torch.Generator(device)
            own.manual_seed(int.from_bytes(_digest(self._seed, "noise", str(device))[:8], "little"))
        return torch.randn(n, generator=own, device=device, dtype=torch.float64)

    def _refuse(self, seen: str) -> NoReturn:
        raise PrivacyError(
            f"a source of noise was {seen}",
            "both would give the same noise, and the difference of two updates would have none",
            "make a NoiseSource in each process",
        )

    def __copy__(self) -> NoReturn:
        self._refuse("copied")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self._refuse("copied")

    def __reduce__(self) -> NoReturn:
        self._refuse("pickled")
