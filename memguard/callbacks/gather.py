"""One list of what every rank has, on every rank."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

__all__ = ["everybody", "my_part", "n_ranks", "rank"]

T = TypeVar("T")


def n_ranks() -> int:
    """How many processes train together.

    Example:
        >>> n_ranks(), rank()
        (1, 0)
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if n_ranks() > 1 else 0


def my_part(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """This process's part ``(about n / processes,)`` of work ``(n,)`` that all of them share out.

    Example:
        >>> my_part(np.arange(3)).tolist()
        [0, 1, 2]
    """
    return rows[rank() :: n_ranks()]


def everybody(mine: T) -> list[T]:
    """What each rank passed, in rank order; all ranks must call.

    Example:
        >>> everybody("alone")
        ['alone']
    """
    if n_ranks() == 1:
        return [mine]
    found: list[T | None] = [None] * n_ranks()
    dist.all_gather_object(found, mine)
    return [one for one in found if one is not None]
