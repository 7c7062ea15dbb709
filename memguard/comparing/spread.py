"""Runs of a study one after another, or spread over processes and machines by Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from memguard.errors import MemguardError
from memguard.references.ray_tasks import each_in_ray

__all__ = ["Backend", "each"]

Backend = Literal["sequential", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    backend: Backend = "sequential",
    *,
    ray_options: Mapping[str, Any] | None = None,
    ray_workers: int | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Each item with what the work made of it, as soon as it is done.

    Args:
        work: Of one item.
        items: All of them.
        backend: ``"sequential"``, or ``"ray"``.
        ray_options: Of a Ray task (``num_cpus``, ``num_gpus``, ``resources``).
        ray_workers: Start a Ray of this process alone, with so many tasks at a time.

    Raises:
        MemguardError: If the backend is neither, or the work fails.

    Example:
        >>> list(each(str, [1, 2]))
        [(1, '1'), (2, '2')]
    """
    if backend == "sequential":
        for item in items:
            yield item, work(item)
    elif backend == "ray":
        yield from each_in_ray(work, items, options=ray_options, workers=ray_workers, what=str)
    else:
        raise MemguardError(
            f"backend={backend!r}",
            "runs would be trained in a way nobody asked for",
            'pass "sequential" or "ray"',
        )
