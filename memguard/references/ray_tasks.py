"""Each model a Ray task: several at a time, on this machine or on the machines of a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from memguard.errors import ReferenceModelError
from memguard.references.job import Backend, Job, Step, Trained
from memguard.references.sequential import fit

__all__ = ["each_in_ray", "on_ray"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_ray(options: Mapping[str, Any] | None = None, workers: int | None = None) -> Backend:
    """A backend that trains each reference as `sequential` does, in a task of its own.

    A Ray that this process is connected to is used, and left as it is. Otherwise one is joined (``RAY_ADDRESS``) or
    started on this machine, without a dashboard and without usage statistics, and left or shut down afterwards. The
    modules that the factory and the data set come from must be found on each machine.

    Args:
        options: Of a task, as in ``ray.remote`` (``num_cpus``, ``num_gpus``, ``resources``, ...).
        workers: Start a Ray of this process alone, with so many tasks at a time; ``None`` joins one where there is
            one, and starts tasks on each core where there is none.

    Returns:
        The backend. References come as they are done, not in order.

    Raises:
        ReferenceModelError: If Ray is not installed, or a task fails.

    Guarantees:
        On machines of one kind, the same bits as ``sequential`` has: seeds, threads and the precision of products
        travel with the task.

    Example:
        >>> backend = on_ray({"num_cpus": 2})  # train_pool(..., backend="ray", ray_options={"num_cpus": 2})
    """
    return partial(_train, dict(options or {}), workers)


def _train(
    options: dict[str, Any], workers: int | None, jobs: list[Job], step: Step
) -> Iterator[tuple[Job, Trained]]:
    if not jobs:
        return
    work = partial(_fit, jobs[0].factory, jobs[0].data, jobs[0].settings)
    given = {(job.k, job.seed): job for job in jobs}
    items = [(job.k, job.rows, job.seed) for job in jobs]
    for (k, _, seed), found in each_in_ray(
        work, items, options=options, workers=workers, what=lambda item: f"reference {item[0]}"
    ):
        job = given[k, seed]
        step(job.total)
        # What comes out of Ray's memory cannot be written to, and is gone when Ray is.
        copies = {id(value): value.clone() for value in found.state.values()}
        state = {name: copies[id(value)] for name, value in found.state.items()}
        yield job, Trained(state=state, steps=found.steps, epochs=found.epochs, seconds=found.seconds)


def each_in_ray(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    what: Callable[[Item], str] = str,
) -> Iterator[tuple[Item, Result]]:
    """Each item a Ray task, with what the work made of it, as they are done.

    Args:
        work: Of one item; what it holds is sent to the processes once.
        items: All of them.
        options: Of a task, as in ``ray.remote``.
        workers: As in `on_ray`.
        what: Names an item in an error.

    Raises:
        ReferenceModelError: If Ray is not installed, or a task fails.

    Example:
        >>> list(each_in_ray(str, []))
        []
    """
    if not items:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported, or started
    try:
        import ray
    except ImportError as error:
        raise ReferenceModelError(
            "Ray is not installed", "models cannot be spread", "pip install 'memguard-ehr[ray]'"
        ) from error
    if ray.is_initialized():
        yield from _tasks(ray, work, items, dict(options or {}), what)
        return
    with _same_paths():
        local: dict[str, Any] = {"address": "local", "num_cpus": workers} if workers is not None else {}
        ray.init(**local, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield from _tasks(ray, work, items, dict(options or {}), what)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _same_paths() -> Iterator[None]:
    """Processes that are started meanwhile find the modules that this one finds: the factory is in one of them."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _tasks(
    ray: Any,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    options: dict[str, Any],
    what: Callable[[Item], str],
) -> Iterator[tuple[Item, Result]]:
    task = ray.remote(**{"num_cpus": 1, **options})(_here)
    shared, place = ray.put(work), _Place.here()
    running = {task.remote(shared, item, place): item for item in items}
    try:
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            item = running.pop(done)
            try:
                found = ray.get(done)
            except ray.exceptions.RayError as error:
                raise ReferenceModelError(
                    f"{what(item)} failed in a Ray task: {str(error).strip().splitlines()[-1]}",
                    "no reference means no comparison with a model that never saw the patient",
                    'try backend="sequential", which shows where it fails',
                ) from error
            yield item, found
    finally:
        for left in running:
            ray.cancel(left, force=True)


class _Place:
    """What a process must have in common with this one to compute the same bits."""

    def __init__(self, threads: int, dtype: torch.dtype, precision: str, strict: bool) -> None:
        self.threads, self.dtype, self.precision, self.strict = threads, dtype, precision, strict

    @classmethod
    def here(cls) -> _Place:
        return cls(
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        )

    def enter(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(self.strict)


def _here(work: Callable[[Item], Result], item: Item, place: _Place) -> Result:
    place.enter()
    return work(item)


def _fit(factory: Any, data: Any, settings: Any, item: tuple[int, Any, int]) -> Trained:
    k, rows, seed = item
    return fit(Job(k=k, factory=factory, data=data, rows=rows, settings=settings, seed=seed), lambda n: None)
